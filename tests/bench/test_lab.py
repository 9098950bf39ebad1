"""Who is timed, who is only checked, what is written down of the rest: with the suite of ``doubling``."""

from dataclasses import replace

import pytest
import torch

from bench import obstacles, trial
from bench.journal import Journal
from bench.lab import Lab
from bench.options import Selection
from bench.suite import Contender, Row
from bench.timing import Samples
from tests.bench.doubling import LAYER, NAMES, PROBLEM, SUITE, WHERE, Benchmark, breaks_in_lacks, built, doubling


@pytest.fixture
def sampled():
    """The names that were timed, row by row."""
    return []


@pytest.fixture
def lab(sampled, monkeypatch):
    def sampler(calls):
        sampled.append(sorted(calls))
        return {name: Samples([1e-3, 2e-3], 4) for name in calls}

    monkeypatch.setattr(obstacles, "NO_GPU", obstacles.NO_GPU._replace(executable=True))
    built.clear()
    return Lab(Selection(), torch.device("cpu"), sampler)


def run(lab, contender, benchmark=None, dtype="float32"):
    benchmark = benchmark or Benchmark()
    lab.run(benchmark, SUITE, *WHERE, dtype, "forward", contender)
    return benchmark


def reason_of(lab, contender, **options):
    """Why it was skipped; the same must stand in ``not_run``, under the contender's name."""
    with pytest.raises(pytest.skip.Exception) as skipped:
        run(lab, contender, **options)
    (entry,) = [entry for entry in lab.results["not_run"][-len(SUITE.contenders) :] if entry["contender"] == contender]
    assert entry["reason"] == skipped.value.msg
    return skipped.value.msg


def accuracy(lab, contender):
    return [entry for entry in lab.results["accuracy"] if entry["contender"] == contender]


def test_a_right_contender_is_timed_and_described(lab):
    benchmark = run(lab, "torch")
    assert benchmark.rounds == 2
    assert benchmark.group == "doubling forward DiracNet-28-10 160x32x32-160 3x3 float32"
    assert 0 < benchmark.extra_info["first_call_seconds"] < 60
    assert benchmark.extra_info == {
        **NAMES,
        "first_call_seconds": benchmark.extra_info["first_call_seconds"],
        "contender": "torch",
        "count": 8,
        "nets": {"DiracNet-28-10": 8},
        "problem": {**dict(zip("NCHWKRS", (2, 160, 32, 32, 160, 3, 3), strict=True)), "padding": (1, 1, 1, 1)},
        "published_batch": 128,
        "device": "cpu",
        "label": "measured",
        "clock": "wall clock",
        "flops": 160,
        "bytes": 1280,
        "host_us": None,
        "peak_bytes": None,
        "calls_per_sample": 4,
    }
    assert "torch" not in {entry["contender"] for entry in lab.results["not_run"]}


@pytest.mark.parametrize("contender, error", [("wrong", "output off by"), ("nan", "output off by nan")])
def test_a_wrong_contender_gets_no_time(lab, sampled, contender, error):
    assert error in reason_of(lab, contender)
    assert sampled == [["torch"]]
    (accuracy,) = [entry for entry in lab.results["accuracy"] if entry["contender"] == contender]
    assert accuracy["passed"] is False


def test_a_row_is_measured_once_and_together(lab, sampled):
    run(lab, "torch")
    reason_of(lab, "wrong")
    run(lab, "torch")
    assert sampled == [["torch"]]


def test_one_that_breaks_fails_its_own_test_only(lab, sampled):
    run(lab, "torch")
    with pytest.raises(ArithmeticError, match="no such kernel"):
        run(lab, "broken")
    with pytest.raises(ArithmeticError, match="no such kernel"):
        run(lab, "broken")
    assert sampled == [["torch"]]
    broken = [entry for entry in lab.results["not_run"] if entry["contender"] == "broken"]
    reason = "ArithmeticError: no such kernel"
    assert broken == [{**NAMES, "contender": "broken", "failed": True, "reason": reason}]


def test_one_that_breaks_while_it_is_timed_costs_itself_alone(lab, sampled):
    def sampler(calls):
        sampled.append(sorted(calls))
        return {"torch": Samples([1e-3]), "flaky": ArithmeticError("the third time")}

    lab.machine.sampler = sampler
    flaky = Contender("flaky", "eager", doubling())
    suite = replace(SUITE, contenders=(flaky, SUITE.contenders[0]))
    for _ in range(2):
        with pytest.raises(ArithmeticError, match="the third time"):
            lab.run(Benchmark(), suite, *WHERE, "float32", "forward", "flaky")
        benchmark = Benchmark()
        lab.run(benchmark, suite, *WHERE, "float32", "forward", "torch")
        assert benchmark.rounds == 1
    assert sampled == [["flaky", "torch"]]
    assert [entry["reason"] for entry in lab.results["not_run"]] == ["ArithmeticError: the third time"]


def test_one_that_breaks_when_it_is_asked_what_it_lacks_costs_itself_alone(lab, sampled):
    suite = replace(SUITE, contenders=(Contender("odd", "eager", doubling(), breaks_in_lacks), SUITE.contenders[0]))
    with pytest.raises(ArithmeticError, match="no such target"):
        lab.run(Benchmark(), suite, *WHERE, "float32", "forward", "odd")
    lab.run(Benchmark(), suite, *WHERE, "float32", "forward", "torch")
    assert sampled == [["torch"]]


def test_a_row_without_inputs_is_tried_once_and_recorded_for_everybody(lab, sampled):
    drawn = []

    def draw(problem, normal, storage):
        drawn.append(problem)
        raise ArithmeticError("no inputs")

    suite = replace(SUITE, draw=draw, contenders=SUITE.contenders[:2])
    for name in ("torch", "wrong"):
        with pytest.raises(ArithmeticError, match="no inputs"):
            lab.run(Benchmark(), suite, *WHERE, "float32", "forward", name)
    assert len(drawn) == 1
    assert [entry["contender"] for entry in lab.results["not_run"]] == ["torch", "wrong"]
    assert sampled == []


def test_a_broken_sampler_is_everybody_s_reason(lab):
    def sampler(calls):
        raise torch.OutOfMemoryError("no room to flush in")

    lab.machine.sampler = sampler
    assert reason_of(lab, "torch") == "the GPU's memory does not hold it: no room to flush in"


def test_truths_are_not_searched_for(lab, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    definition = lambda work: (seen.append(torch.backends.cudnn.benchmark), (2 * work.inputs["x"],))[1]  # noqa: E731
    lab.run(Benchmark(), replace(SUITE, definition=definition), *WHERE, "float32", "forward", "torch")
    assert set(seen) == {False}
    assert torch.backends.cudnn.benchmark is True


def test_out_of_memory_is_a_reason_and_no_failure(lab):
    assert reason_of(lab, "large") == "the GPU's memory does not hold it: Tried to allocate 20 GiB."


def test_what_cannot_run_here_is_listed_with_the_reason(lab):
    assert "needs an NVIDIA GPU" in reason_of(lab, "cudnn")
    assert not [entry for entry in lab.results["accuracy"] if entry["contender"] == "cudnn"]


def test_triton_without_a_gpu_is_checked_on_a_miniature_and_not_timed(lab, sampled):
    assert "no GPU" in reason_of(lab, "triton")
    (entry,) = accuracy(lab, "triton")
    assert entry["executed_by"] == "interpreter"
    assert entry["problem"] == {
        "N": 2,
        "C": 40,
        "H": 5,
        "W": 6,
        "K": 40,
        "R": 3,
        "S": 3,
        "padding": (1, 1, 1, 1),
    }
    assert (entry["tensor"], entry["error"], entry["passed"]) == ("output", 0.0, True)
    assert sampled == [["torch"]]


def test_equal_miniatures_are_executed_and_recorded_once(lab):
    other = replace(LAYER, counts={"DiracNet-28-5": 1}, problem=replace(PROBLEM, H=16, W=16))
    suite = replace(SUITE, subjects=lambda nets, batch: [LAYER, other], contenders=SUITE.contenders[6:8])
    for layer, executed in ((LAYER, 2), (other, 2)):
        for contender, reason in (("triton", "no GPU"), ("triton-wrong", "failed the check")):
            with pytest.raises(pytest.skip.Exception, match=reason):
                lab.run(Benchmark(), suite, layer.net, layer.name, "float32", "forward", contender)
        assert len(built) == executed
    assert [entry["contender"] for entry in lab.results["accuracy"]] == ["triton", "triton-wrong"]


def test_a_wrong_kernel_in_the_interpreter_is_named(lab):
    assert "failed the check against float64: output" in reason_of(lab, "triton-wrong")


def test_bfloat16_in_the_interpreter_is_not_even_checked(lab):
    assert "instead of rounding" in reason_of(lab, "triton", dtype="bfloat16")
    assert accuracy(lab, "triton") == []


def test_sixteen_bits_on_a_cpu_are_checked_and_not_timed(lab, sampled):
    assert "checked but not timed" in reason_of(lab, "torch", dtype="bfloat16")
    assert lab.results["accuracy"][0]["executed_by"] == "cpu"
    assert sampled == []


def test_benchmark_disable_checks_without_timing(lab, sampled):
    assert run(lab, "torch", Benchmark(enabled=False)).rounds == 1
    assert "failed the check" in reason_of(lab, "wrong", benchmark=Benchmark(enabled=False))
    assert sampled == []


def test_rows_follow_the_selection(lab):
    assert len(list(lab.rows(SUITE))) == 2 * len(SUITE.contenders)  # dtypes; one layer here
    lab.selection = Selection(("*-18",), None, ("float16",), ("triton*",), None)
    assert list(lab.rows(SUITE)) == []
    lab.selection = Selection(("*-28-10",), None, ("float16",), ("triton*",), None)
    assert [(row.dtype, row.direction, contender) for row, contender in lab.rows(SUITE)] == [
        ("float16", "forward", "triton"),
        ("float16", "forward", "triton-wrong"),
        ("float16", "forward", "triton-wide"),
    ]
    lab.selection = Selection(layers=("64x*",))
    assert list(lab.rows(SUITE)) == []


def test_tf32_is_among_a_gpu_s_dtypes_where_it_changes_anything(lab):
    lab.on_gpu = True
    assert {row.dtype for row, _ in lab.rows(SUITE)} == {"float32", "tf32", "float16", "bfloat16"}
    assert {row.dtype for row, _ in lab.rows(replace(SUITE, multiplies=False))} == {"float32", "float16", "bfloat16"}


def test_a_layer_of_two_nets_is_one_row_and_names_both(lab, monkeypatch):
    both = replace(LAYER, counts={"A": 4, "B": 6})
    benchmark = Benchmark()
    lab.run(
        benchmark, replace(SUITE, subjects=lambda nets, batch: [both]), "A, B", both.name, "float32", "forward", "torch"
    )
    assert {name: benchmark.extra_info[name] for name in ("net", "count", "nets")} == {
        "net": "A, B",
        "count": 10,
        "nets": {"A": 4, "B": 6},
    }
    assert lab.results["accuracy"][0]["net"] == "A, B"


def test_what_a_contender_lacks_is_the_reason_wherever_it_is(lab):
    assert reason_of(lab, "lacking") == "has no such pass"


def test_what_a_miniature_cannot_check_is_said(lab, sampled):
    reason = reason_of(lab, "triton-wide")
    assert reason == "no GPU, and no check of the 40-channel miniature for Triton's interpreter: too narrow"
    assert accuracy(lab, "triton-wide") == []


def test_a_peer_that_breaks_is_a_reason_and_no_failure(lab, monkeypatch):
    assert "other projects" in reason_of(lab, "peer")


def test_where_a_peer_can_run_what_it_raises_is_a_reason_too(lab, monkeypatch):
    monkeypatch.setattr(trial, "obstacle", lambda *_, **__: None)
    assert reason_of(lab, "peer") == "ArithmeticError: no such kernel"


def test_batch_is_small_on_a_cpu_and_the_published_one_on_a_gpu(lab):
    assert lab.batch == 2
    lab.on_gpu = True
    assert lab.batch is None
    lab.selection = Selection(batch=7)
    assert lab.batch == 7


def test_who_lost_the_gpu_in_this_row_is_not_run_again(lab, sampled, tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.start(Row(SUITE, LAYER, "float32", "forward").key)
    journal.fault(Row(SUITE, LAYER, "float32", "forward").key, "broken", "illegal address")
    lab.journal = Journal(tmp_path / "j.jsonl", resume=True)
    with pytest.raises(pytest.fail.Exception, match="lost the GPU: illegal address"):
        run(lab, "broken")
    run(lab, "torch")
    assert sampled == [["torch"]]


class Watch:
    """Clocks that fall while a row is timed."""

    clocks = iter((1980.0, 1665.0))

    def state(self):
        return {"sm_mhz": next(self.clocks)}

    def fall(self, state):
        return "the SM clock fell" if state["sm_mhz"] < 1900 else None


def test_a_row_says_its_clocks_and_a_fall_is_a_warning_that_drops_nothing(lab):
    lab.machine.watch = Watch()
    benchmark = Benchmark()
    with pytest.warns(UserWarning, match="160x32x32-160 3x3 float32: the SM clock fell"):
        run(lab, "torch", benchmark)
    assert benchmark.rounds == 2
    assert benchmark.extra_info["clocks_before"] == {"sm_mhz": 1980.0}
    assert benchmark.extra_info["clocks_after"] == {"sm_mhz": 1665.0}
    assert "the SM clock fell" in lab.environment()["warnings"][0]


def test_what_is_much_faster_than_cudnn_is_checked_and_timed_again(lab, monkeypatch):
    """The kernel is right once and wrong after it was timed: a race, say. It gets no time, and its error is kept."""
    calls = []

    def wrong_later(work):
        return lambda: (calls.append(1), (work.inputs["x"] * (2.0 if len(calls) < 2 else 3.0),))[1]

    monkeypatch.setattr(trial, "obstacle", lambda *_, **__: None)
    monkeypatch.setattr(obstacles, "has_cudnn", lambda device: True)
    seconds = {"cudnn": 1e-3, "triton": 0.5e-3, "right": 0.8e-3}
    sampled = []

    def sampler(calls):
        sampled.append(list(calls))
        return {name: Samples([seconds[name]] * 3) for name in calls}

    lab.machine.sampler = sampler
    contenders = [
        Contender("cudnn", "cudnn", doubling()),
        Contender("triton", "triton", wrong_later),
        Contender("right", "triton", doubling()),
    ]
    suite, right = replace(SUITE, contenders=contenders), Benchmark()
    with pytest.raises(pytest.skip.Exception, match="2 times as fast as cudnn, and checked again it failed the check"):
        lab.run(Benchmark(), suite, *WHERE, "float32", "forward", "triton")
    lab.run(right, suite, *WHERE, "float32", "forward", "right")
    assert right.extra_info["times_as_fast_as_cudnn"] == [1.25, 1.25]
    assert sampled == [["cudnn", "triton", "right"], ["cudnn", "right"]]
    assert [entry["passed"] for entry in accuracy(lab, "triton")] == [True, False]
