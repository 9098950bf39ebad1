"""Kernels with their loader forced: what is offered where, and that a forced pick stays with its contender."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench import loaders
from bench.accuracy import failures
from bench.checker import Checker
from bench.contenders import CONV
from bench.layers import layers
from bench.test_conv import SUITE
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime import autotune
from triton_dirac.runtime.targets import TARGETS

CPU, GPU = torch.device("cpu"), SimpleNamespace(type="cuda")
STEM, DIRAC = (layer.problem for layer in layers("DiracNet-34")[:2])
SMALL = ConvProblem(2, 64, 4, 5, 64, 3, 3, padding=(1, 1, 1, 1))
LACKS = {contender.name: contender.lacks for contender in CONV}
BUILD = {contender.name: contender.build for contender in CONV}


@pytest.mark.parametrize(
    "loader, target, problem, dtype, direction, offers",
    [
        ("tile", "cuda:90", DIRAC, "float16", "fprop", True),
        ("tile", "cuda:90", DIRAC, "bfloat16", "dgrad", True),
        ("tile", "cuda:90", DIRAC, "float16", "wgrad", True),
        ("tile", "cuda:90", replace(DIRAC, dilation=(2, 2)), "float16", "wgrad", False),
        ("tile", "cuda:90", DIRAC, "float32", "wgrad", False),
        ("tile", "cuda:90", DIRAC, "float32", "fprop", False),
        ("tile", "cuda:90", replace(DIRAC, stride=(2, 2)), "float16", "fprop", False),
        ("tile", "cuda:90", STEM, "float16", "fprop", False),
        ("tile", "cuda:80", DIRAC, "float16", "fprop", False),
        ("gather", "cuda:80", DIRAC, "float16", "wgrad", True),
        ("gather", "hip:gfx942", STEM, "tf32", "fprop", True),
    ],
)
def test_what_is_offered_on_a_gpu(monkeypatch, loader, target, problem, dtype, direction, offers):
    monkeypatch.setattr(loaders, "target_of", lambda device: TARGETS[target])
    reason = LACKS[f"triton-{loader}"](problem, dtype, direction, GPU)
    assert (reason is None) == offers
    if reason:
        assert reason == f"no {loader} config is offered for such a problem and type on {target}"


def test_tf32_has_tiles_of_its_own(monkeypatch):
    monkeypatch.setattr(loaders, "target_of", lambda device: TARGETS["cuda:90"])
    full, tf32 = (loaders.offered("gather", DIRAC, dtype, "fprop", GPU) for dtype in ("float32", "tf32"))
    assert {config.name for config in tf32} > {config.name for config in full}


def test_without_a_gpu_it_is_an_h100_s_of_a_full_batch():
    assert LACKS["triton-tile"](replace(DIRAC, N=2), "float16", "fprop", CPU) is None
    assert LACKS["triton-gather"](replace(DIRAC, N=2), "float32", "wgrad", CPU) is None
    assert LACKS["triton-tile"](replace(DIRAC, N=2), "float32", "wgrad", CPU).endswith("on cuda:90")


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
def test_tiles_are_right(device, direction):
    work = SUITE.work(SMALL, "float16", direction, device)
    if reason := LACKS["triton-tile"](SMALL, "float16", direction, device):
        pytest.skip(reason)
    assert failures(Checker(SUITE, work).errors(BUILD["triton-tile"](work)())) is None


@pytest.mark.parametrize("dtype, precision", [("float16", "ieee"), ("float32", "ieee"), ("tf32", "tf32")])
def test_only_the_loader_s_own_configs_are_measured_under_the_kernel_s_own_name(monkeypatch, dtype, precision):
    asked = []

    def pick(kernel, problem, storage, device, precision, *, promising, default, plan):
        configs = promising(problem, storage, TARGETS["cuda:80"], precision)
        asked.append((kernel, precision, {config.loader for config in configs}, default() in configs))
        autotune._picked["another"] = configs[-1]
        return configs[-1]

    monkeypatch.setattr(autotune, "pick", pick)
    monkeypatch.setattr(autotune, "_picked", {"conv_wgrad": "kept"})
    BUILD["triton-gather"](SUITE.work(SMALL, dtype, "wgrad", CPU))
    assert asked == [("conv_wgrad", precision, {"gather"}, True)]
    assert autotune._picked == {"conv_wgrad": "kept"}, "what is picked here is remembered for nobody else"
