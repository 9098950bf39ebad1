"""What is compiled and measured for a model, with scripted times, in the interpreter."""

from dataclasses import replace

import pytest
import torch

from triton_dirac import DiracConv2d
from triton_dirac.conv import dgrad_configs, fprop_configs, wgrad_configs
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime import autotune, timings
from triton_dirac.runtime.compile_ahead import Outcome
from triton_dirac.runtime.targets import TARGETS, target_of
from triton_dirac.tuning import Work, run, tune, works_of
from triton_dirac.tuning.work import planners_of

CPU, H100 = torch.device("cpu"), TARGETS["cuda:90"]
SMALL = ConvProblem(2, 32, 4, 4, 32, 3, 3, padding=(1, 1, 1, 1))
DEPTHWISE = ConvProblem(2, 32, 4, 4, 32, 3, 3, padding=(1, 1, 1, 1), groups=32)


def test_a_model_s_work_is_each_pass_of_each_distinct_layer():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        *(DiracConv2d(8, 8, 3, padding=1) for _ in range(3)),
        torch.nn.Conv2d(8, 4, 1),
    )
    works = works_of(model, 6, 2, ["float16"])
    assert [work.label for work in works] == [
        f"conv_{name} 2x8x6x6-8x3x3 s1,1 p1,1,1,1 d1,1 g1 float16" for name in ("fprop+alpha", "dgrad+alpha", "wgrad")
    ]
    both = works_of(model, 6, 2, ["float16", "tf32"], ["split", "materialised"])
    assert len(both) == 2 * (2 + 5 + 3)  # the stem, the Dirac layers in both forms, the last layer


@pytest.mark.parametrize(
    "direction, table", [("fprop", fprop_configs), ("dgrad", dgrad_configs), ("wgrad", wgrad_configs)]
)
@pytest.mark.parametrize("dtype, precision", [("bfloat16", "ieee"), ("tf32", "tf32"), ("float32", "ieee")])
def test_every_config_that_may_be_picked_is_planned_without_memory(direction, table, dtype, precision):
    problem = ConvProblem(256, 512, 56, 56, 512, 3, 3, padding=(1, 1, 1, 1))
    work = Work(direction, problem, dtype, direction != "wgrad")
    planners = planners_of(work, H100)
    assert set(planners) == {c.label for c in table.promising(problem, work.storage, H100, precision)}
    launches = [launch for planner in planners.values() for launch in planner()]
    tensors = [value for launch in launches for value in launch.args.values() if isinstance(value, torch.Tensor)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert precision in {launch.constexprs.get("PRECISION") for launch in launches}


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
def test_direct_kernels_are_planned_too(direction):
    planners = planners_of(Work(direction, DEPTHWISE, "float16", direction != "wgrad"), H100)
    assert next(launch.kernel.__name__ for launch in planners["direct"]()) == f"direct_{direction}_kernel"


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The entries that are measured, where a GPU is pretended; everything takes a millisecond."""
    entries = []

    def measure(runs, entry):
        if "torch" in runs:
            runs["torch"]()
        entries.append(entry)
        return dict.fromkeys(runs, 1.0)

    monkeypatch.setenv(timings.CACHE_DIR, str(tmp_path))
    monkeypatch.delenv(autotune.AUTOTUNE, raising=False)
    monkeypatch.setattr(autotune, "_can_measure", lambda device: True)
    monkeypatch.setattr(autotune, "measure", measure)
    autotune.forget()
    yield entries
    autotune.forget()


def test_each_work_is_measured_with_torch_s_convolution_beside_it_and_kept(measured, monkeypatch):
    works = [Work(direction, SMALL, "float16", direction != "wgrad") for direction in ("fprop", "dgrad", "wgrad")]
    planned, steps = [], []
    monkeypatch.setattr(
        run, "compile_ahead", lambda planners, *_, **__: planned.append(set(planners)) or Outcome({}, {}, 0)
    )
    assert all(run.unmeasured(work, CPU) for work in works)
    tune(works, CPU, {"prep": list}, measuring=lambda done, total: steps.append((done, total)))
    assert planned[0] == {"prep"}
    assert [label.split(":")[0] for label in sorted(planned[1])] == sorted(
        work.label for work in works for _ in run.planners_of(work, target_of(CPU))
    )
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    sizes = "2x32x4x4-32x3x3 s1,1 p1,1,1,1 d1,1 g1 torch.float16 ieee"
    for name in ("fprop", "dgrad", "wgrad"):
        assert f"conv_{name} {sizes}" in measured
        assert any(entry.startswith(f"conv_{name}") and " backend " in entry for entry in measured)
    assert not any(run.unmeasured(work, CPU) for work in works)
    autotune.forget()
    before = len(measured)
    tune(works, CPU)
    assert planned[2:] == [set(), set()], "nothing to compile"
    assert len(measured) == before


def test_a_tuning_that_is_ended_has_measured_what_it_compiled_but_for_the_last_works(measured, monkeypatch):
    works = [Work("fprop", replace(SMALL, N=n), "float16", True) for n in range(1, 6)]
    steps, shown = [], []

    def compile_ahead(planners, target, *, progress):
        steps.append("compile")
        for done in range(3):  # two of the portion's kernels are not in the cache
            progress(done, 2)
        return Outcome({}, {"lost one": "killed"}, 2)

    monkeypatch.setattr(run, "AT_ONCE", 2)
    monkeypatch.setattr(run, "compile_ahead", compile_ahead)
    monkeypatch.setattr(run, "run", lambda work, device: steps.append(work.problem.N))
    outcome = tune(works, CPU, {"prep": list}, compiling=lambda done, total: shown.append((done, total)))
    assert steps == ["compile", "compile", 1, 2, "compile", 3, 4, "compile", 5]
    assert outcome == Outcome({}, {"lost one": "killed"}, 8)
    assert shown == sorted(shown)
    assert shown[-1][0] == shown[-1][1] == 1 + sum(len(run.planners_of(work, target_of(CPU))) for work in works)


def test_a_work_that_memory_does_not_hold_is_left_out(measured, monkeypatch):
    works = [Work("fprop", SMALL, dtype, True) for dtype in ("bfloat16", "float16")]
    monkeypatch.setattr(run, "compile_ahead", lambda *_, **__: Outcome({}, {}, 0))
    original = Work.tensors

    def tensors(self, device):
        if self.dtype == "bfloat16":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch")
        return original(self, device)

    monkeypatch.setattr(run, "unmeasured", lambda *_: False)
    monkeypatch.setattr(Work, "tensors", tensors)
    with pytest.warns(UserWarning, match=r"bfloat16 is not measured: CUDA out of memory. Tried to allocate$"):
        tune(works, CPU)
    assert any("torch.float16" in entry for entry in measured)
