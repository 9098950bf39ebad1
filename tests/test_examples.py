"""The examples, run as a reader runs them."""

import os
import runpy
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "tests" / "examples"
SAYS = {
    "train": "of the last ten",
    "fold_and_export": "exported: net.onnx",
    "bench_layer": "GFLOP/s",
    "add_kernel": "torch.float16 5x1000: error",
    "graphed_step": "after 20 steps",
}
pytestmark = pytest.mark.cpu


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name, tmp_path):
    if name == "fold_and_export":
        pytest.importorskip("onnxscript")
    own = {variable: value for variable, value in os.environ.items() if variable != "TRITON_INTERPRET"}
    own |= {"PYTHONPATH": str(ROOT), "TRITON_DIRAC_AUTOTUNE": "0"}
    if name == "add_kernel" and not torch.cuda.is_available():
        own["TRITON_INTERPRET"] = "1"
    run = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(run, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout


def test_all_examples_are_run_and_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SAYS)
    assert all(f"(tests/examples/{name}.py)" in readme for name in SAYS)


def test_a_graphed_step_is_warmed_up_aside_captured_once_and_fed_by_copies(monkeypatch):
    """What a CPU can tell of it: the order of things, with a graph that does nothing but take note."""
    happened, inside = [], ["default"]

    class Graph:
        def replay(self):
            happened.append("replay")

    @contextmanager
    def entered(name):
        inside.append(name)
        yield
        inside.pop()

    def stream(name):
        return SimpleNamespace(name=name, wait_stream=lambda other: happened.append(f"{name} waits for {other.name}"))

    default = stream("default")
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream("aside"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: default)
    monkeypatch.setattr(torch.cuda, "stream", lambda of: entered(of.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: entered("graph"))
    example, seen = torch.zeros(2), []

    def step(image):
        happened.append(f"step in {inside[-1]}")
        seen.append(image)
        return image

    train = runpy.run_path(str(EXAMPLES / "graphed_step.py"))["graphed"](step, example)
    assert happened == [
        "aside waits for default", *["step in aside"] * 3, "default waits for aside", "step in graph",
    ]  # fmt: skip
    result = train(torch.ones(2))
    assert happened[-1] == "replay"
    assert happened.count("step in graph") == 1
    assert torch.equal(result, torch.ones(2))  # the capture's own input, filled anew
    assert all(image is seen[0] for image in seen)
    assert torch.equal(example, torch.zeros(2))
    with pytest.raises(ValueError, match=r"shorter|longer"):
        train(torch.ones(2), torch.ones(2))
