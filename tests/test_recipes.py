"""The recipes of CONTRIBUTING.md, followed to the letter: each block is read from that page and put where it says."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bench import contenders, nets, test_conv
from bench.compile import __main__ as command
from bench.compile import configs, jobs
from bench.compile.run import rows_of
from bench.gpu import call_checks
from bench.layers import layers
from tests.bench.test_contenders import NARROWING, WIDENING, assert_right
from tests.examples import add_kernel
from triton_dirac.conv import configs as tables
from triton_dirac.conv.config import Config
from triton_dirac.runtime import targets

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.cpu


def blocks(title: str) -> list[str]:
    """The Python of a section, block by block."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def recipe(title: str) -> str:
    return "\n".join(blocks(title))


def changed(module: ModuleType, after: str, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``module`` as if ``line`` had been written after the line ``after`` of its file."""
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    assert source.count(f"\n{after}\n") == 1
    file = folder / f"changed_{module.__name__.rpartition('.')[2]}.py"
    file.write_text(source.replace(f"\n{after}\n", f"\n{after}\n    {line}"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    twin = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, file.stem, twin)  # where dataclasses look for their module
    spec.loader.exec_module(twin)
    return twin


@pytest.mark.parametrize("direction", test_conv.SUITE.passes)
def test_contender(direction):
    file = dict(vars(contenders))
    exec(recipe("A contender"), file)
    new = file["CONV"][-1]
    assert [known.name for known in file["CONV"][:-1]] == [known.name for known in contenders.CONV]
    suite = replace(test_conv.SUITE, contenders=file["CONV"])
    for problem in (WIDENING, NARROWING):
        assert new.lacks(problem, "float32", direction, torch.device("cpu")) is None
        assert_right(suite, problem, "float32", direction, new, torch.device("cpu"))
    assert new.lacks(replace(WIDENING, groups=2), "float32", direction, torch.device("cpu"))


def test_target(tmp_path, monkeypatch):
    twin = changed(targets, "GPUS = (", recipe("A target").replace(")  #", "),  #"), tmp_path, monkeypatch)
    a10 = twin.TARGETS["cuda:86"]
    assert twin.listed("cuda:86", "NVIDIA A10") is a10
    assert set(twin.TARGETS) - set(targets.TARGETS) == {"cuda:86"}
    assert a10.multiply_adds == pytest.approx(125e12 / 2 / (72 * 1.695e9), rel=0.01)
    assert a10.memory_bytes == pytest.approx(600e9 / (72 * 1.695e9), rel=0.02)
    assert tables.configs(torch.float16, True, a10)


def test_net():
    block = recipe("A net")
    assert len([line for line in block.splitlines() if line.strip()]) < 20
    try:
        exec(block, dict(vars(nets)))
        found = layers("VGG-11")
        selected = command.parse(["--nets", "VGG-11", "--targets", "cuda:80", "--kernels", "conv_fprop"]).selected
    finally:
        nets.NETS.pop("VGG-11", None)
    assert [layer.name for layer in found][:2] == ["3x224x224-64 3x3", "64x112x112-128 3x3"]
    assert sum(layer.count for layer in found) == 8
    assert not any(layer.has_identity for layer in found)
    assert {job.net for job in selected} == {"VGG-11"}


def test_config(monkeypatch, capsys):
    row = eval(recipe("A config"), {"Config": Config})
    monkeypatch.setattr(tables, "_NO_DESCRIPTORS", (*tables._NO_DESCRIPTORS, row))
    mine = [
        job
        for job in configs.jobs_of(["cuda:80"], ["float16"], ["fprop"])
        if Config(**job.arguments["config"]).name == row.name
    ]
    assert mine
    rows = rows_of(mine[:1], workers=1, timeout=120, counted=False)
    assert not configs.faults(rows)
    configs.print_rows(rows, configs.Console(width=200))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if row.reason in line]
    assert row.name in line
    assert "cuda:80" in line


def test_a_config_too_many_meets_an_error_that_helps(monkeypatch):
    row = eval(recipe("A config"), {"Config": Config})
    more = tuple(replace(row, block_k=16 * (i + 1)) for i in range(20))
    monkeypatch.setattr(tables, "_NO_DESCRIPTORS", tables._NO_DESCRIPTORS + more)
    with pytest.raises(ValueError, match=r"cuda:80: \d+ rows, at most 24, since .* take out one"):
        configs.jobs_of(["cuda:80"], ["float16"], ["fprop"])


def test_activation(tmp_path):
    """In a copy of the package, by a process of its own: kernels are read from their files."""
    shutil.copytree(ROOT / "triton_dirac", tmp_path / "triton_dirac", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "triton_dirac" / "conv" / "epilogue.py"
    source = file.read_text(encoding="utf-8")
    kernel, row = blocks("An activation")
    for line, changed_to in (
        ("    return z\n", f"{kernel}    return z\n"),
        ("ACTIVATIONS = {\n", "ACTIVATIONS = {\n" + row),
    ):
        assert source.count(line) == 1
        source = source.replace(line, changed_to)
    file.write_text(source, encoding="utf-8")
    program = tmp_path / "use.py"
    program.write_text(WITH_LEAKY_RELU, encoding="utf-8")
    own = {"PYTHONPATH": str(tmp_path), "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env={**os.environ, **own})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "triton_dirac"), "8"]


WITH_LEAKY_RELU = """
import torch
import triton_dirac as td
from pathlib import Path
from triton_dirac import reference

torch.manual_seed(0)
shapes = (2, 16, 3, 4), (16, 16, 3, 3), (16,), (16,), (16,)
leaves = [torch.randn(shape) for shape in shapes]
grad, checked = torch.randn(2, 16, 3, 4), 0

def run(function, dtype, groups, **options):
    x, w, a, b, bias = (leaf.to(dtype).requires_grad_() for leaf in leaves)
    w = w[:, : 16 // groups]  # 16 groups: the direct kernels
    how = dict(padding=1, groups=groups, activation="leaky_relu", **options)
    outputs = function.dirac_conv2d(x, w, a, b, bias, **how), function.conv2d(x, w, bias, alpha=a, **how)
    gradients = torch.autograd.grad(outputs, (x, a, b, bias), [grad.to(dtype)] * 2)
    return *outputs, *gradients

for groups in (1, 16):
    exact = run(reference, torch.float64, groups)
    assert (exact[0] < 0).any()
    for backend in ("triton", "torch", "triton", "torch"):
        for mine, theirs in zip(run(td, torch.float32, groups, backend=backend), exact, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)
        checked += 1
print(Path(td.__file__).parent, checked)
"""


def test_kernel(monkeypatch):
    """In all dtypes that are compiled unasked."""
    monkeypatch.setattr(jobs, "KERNELS", dict(jobs.KERNELS))
    exec(blocks("A kernel")[0], {"KERNELS": jobs.KERNELS})
    layer = next(layer for layer in layers("DiracNet-28-10") if layer.has_identity)
    selected = [
        job for dtype in command.DTYPES[:3] for job in jobs.jobs_of_layer(layer, ["filter_norms"], dtype, "cuda:90")
    ]
    found = rows_of(selected, workers=1, timeout=120)
    assert [row["dtype"] for row in found] == ["bfloat16", "float32", "tf32"]
    for row in found:
        assert row["ok"], row["error"]
        assert (row["kernel"], row["config"], row["spills"]) == ("filter_norms", "256 w4", 0)


@pytest.mark.parametrize("wrong", [False, True])
def test_kernel_s_check_on_a_gpu(wrong):
    """Here in the interpreter; and with a definition that is another, which it must tell."""
    _, function, line = blocks("A kernel")
    definition = (lambda weight: add_kernel.definition(weight) + 1e-3) if wrong else add_kernel.definition
    file = vars(call_checks) | {"filter_norms": add_kernel.filter_norms, "definition": definition}
    exec(f"{function}\ndef checks():\n{line}", file)
    (check,) = file["checks"]()
    (error,) = check.run(torch.device("cpu"))
    assert error.passed is not wrong, error
