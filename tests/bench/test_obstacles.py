"""What stands in the way of timing a contender here, by rule; and how float32 products are made meanwhile."""

from types import SimpleNamespace

import pytest
import torch

from bench import obstacles
from bench.layers import Layer
from bench.suite import Contender, Row, float32_products
from tests.bench.doubling import LAYER, PROBLEM, SUITE, doubling


@pytest.fixture
def gpu(monkeypatch):
    """A device that looks like an NVIDIA GPU to the rules."""
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    return SimpleNamespace(type="cuda")


def rule(device, engine, dtype="float32", direction="forward", layer=LAYER, suite=SUITE, compile_all=False):
    contender = Contender("x", engine, doubling())
    found = obstacles.obstacle(device, Row(suite, layer, dtype, direction), contender, compile_all)
    return found and found.reason


def test_on_a_gpu_everything_is_timed_but_the_stems_dgrad(gpu):
    for engine in ("eager", "compile", "cudnn", "triton", "inductor", "flag_gems"):
        for dtype in ("float32", "tf32", "float16", "bfloat16"):
            assert rule(gpu, engine, dtype) is None
    stem = Layer({"DiracNet-28-10": 1}, False, False, 128, PROBLEM)
    assert "no dgrad: the layer's input is the image" in rule(gpu, "cudnn", direction="dgrad", layer=stem)


def test_on_a_cpu_torch_compile_is_timed_where_it_is_affordable(monkeypatch):
    cpu = torch.device("cpu")
    block = SimpleNamespace(name="dirac_block")
    rare = Layer({"DiracNet-28-10": 1}, True, True, 128, PROBLEM)
    monkeypatch.setattr(obstacles, "dirac_layers", lambda nets, batch: [rare, LAYER])
    monkeypatch.setattr(obstacles.shutil, "which", lambda name: "/usr/bin/" + name)
    assert rule(cpu, "compile") is None
    assert rule(cpu, "compile", suite=block) is None
    assert "most frequent layer only of each net" in rule(cpu, "compile", suite=block, layer=rare)
    assert rule(cpu, "compile", suite=block, layer=rare, compile_all=True) is None
    assert "float32 only" in rule(cpu, "compile", "bfloat16")
    assert "TF32 needs a GPU" in rule(cpu, "eager", "tf32")
    monkeypatch.setattr(obstacles.shutil, "which", lambda name: None)
    assert "needs a C++ compiler" in rule(cpu, "compile")


def test_tf32_is_switched_for_ours_for_cudnn_and_for_inductor():
    switch = torch.backends.cudnn
    before = (switch.allow_tf32, switch.fp32_precision, switch.conv.fp32_precision)
    for dtype, expected in (("tf32", (True, "tf32", "tf32")), ("float32", (False, "none", "none"))):
        with float32_products(dtype):
            assert (switch.allow_tf32, switch.fp32_precision, switch.conv.fp32_precision) == expected
    assert (switch.allow_tf32, switch.fp32_precision, switch.conv.fp32_precision) == before
