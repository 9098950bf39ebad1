"""Ceilings, clocks and the second look, on a scripted GPU."""

import json
from types import SimpleNamespace

import pytest
import torch

from bench import ceilings, environment, lab, machine, second_look
from bench.accuracy import Error
from bench.ceilings import measured
from bench.clocks import ClockWatch
from bench.journal import Journal
from bench.machine import DeviceLostError, Machine
from bench.options import Selection
from bench.results import KINDS
from bench.suite import Contender
from bench.timing import EVENTS, WALL_COLD, Samples
from tests.scripted_gpu import Clock, FakeGpu
from triton_dirac.tuning.work import STORAGE

KEY = ("conv", "fprop", "DiracNet-18", "64x56x56-64 3x3", "bfloat16")


def test_short_and_sustained_loads_are_told_apart():
    """A device that is a fifth slower after half a second of work, as under a power limit."""
    clock = Clock()
    gpu = FakeGpu(clock)
    gpu.L2_MISS, busy = 0.0, [0.0]

    def call():
        seconds = 1e-3 if busy[0] < 0.5 else 1.25e-3
        busy[0] += seconds
        gpu.queue(seconds)

    found = measured({"copy": (call, 4e9)}, gpu, seconds=2.0)
    assert found == {"copy": {"short": pytest.approx(4e12), "sustained": pytest.approx(3.2e12)}}


@pytest.mark.parametrize("dtype, precision", [("tf32", "tf32"), ("float32", "ieee"), ("bfloat16", "ieee")])
def test_a_machine_s_ceilings_are_a_copy_and_products_in_each_dtype(dtype, precision, monkeypatch):
    """On a CPU, by a clock that takes a millisecond for everything."""
    gpu, seen = FakeGpu(Clock()), []
    plain, matmul = gpu.queue, torch.matmul
    monkeypatch.setattr(gpu, "queue", lambda seconds: plain(seconds + 1e-3))
    monkeypatch.setattr(gpu, "idle", lambda seconds: plain(seconds + 1.0))
    monkeypatch.setattr(ceilings, "COPIED", 4096)
    monkeypatch.setattr(ceilings, "SIZE", 16)
    monkeypatch.setattr(ceilings, "SUSTAINED_SECONDS", 5e-3)

    def product(a, b, out):
        seen.append((a.dtype, torch.backends.cuda.matmul.fp32_precision))
        return matmul(a, b, out=out)

    monkeypatch.setattr(torch, "matmul", product)
    before = torch.backends.cuda.matmul.fp32_precision
    found = ceilings.of_gpu([dtype], gpu, torch.device("cpu"))
    assert torch.backends.cuda.matmul.fp32_precision == before
    assert set(seen) == {(STORAGE[dtype], precision)}
    assert found["copy"]["short"] == pytest.approx(2 * 4096 / 1e-3)
    assert found[dtype]["short"] == pytest.approx(2 * 16**3 / 1e-3)
    assert list(found) == ["copy", dtype]


def test_ceilings_that_cannot_be_measured_are_a_warning_and_no_more(tmp_path, monkeypatch):
    def small(*_):
        raise torch.OutOfMemoryError("2 GiB")

    monkeypatch.setattr(ceilings, "of_gpu", small)
    monkeypatch.setattr(lab, "Gpu", lambda: None)
    of_gpu = lab.Lab(Selection(), torch.device("cpu"), journal=Journal(tmp_path / "j.jsonl"))
    of_gpu.on_gpu = True
    with pytest.warns(UserWarning, match="the ceilings are not measured: OutOfMemoryError: 2 GiB"):
        of_gpu.once(KEY, (), lambda: {kind: [] for kind in KINDS})
    monkeypatch.setattr(ceilings, "of_gpu", lambda dtypes, gpu, place: {"copy": {"short": 1.0, "sustained": 1.0}})
    of_gpu._started = None
    of_gpu.once(("other", *KEY[1:]), (), lambda: {kind: [] for kind in KINDS})
    kept = Journal(tmp_path / "j.jsonl", resume=True)
    assert kept.environment["ceilings"] == {"copy": {"short": 1.0, "sustained": 1.0}}
    assert kept.warnings == ["the ceilings are not measured: OutOfMemoryError: 2 GiB"]
    resumed = lab.Lab(Selection(), torch.device("cpu"), journal=kept)
    assert (resumed.ceilings, resumed.warnings) == (kept.environment["ceilings"], kept.warnings)


def test_cudnn_searches_all_its_plans_as_ours_tries_all_its_configs(monkeypatch):
    switch = torch.backends.cudnn
    monkeypatch.setattr(switch, "benchmark", False)
    monkeypatch.setattr(switch, "benchmark_limit", 10)
    monkeypatch.setattr(environment, "clocks", lambda: None)
    lab.Lab(Selection(), SimpleNamespace(type="cuda"))
    assert (switch.benchmark, switch.benchmark_limit) == (True, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    monkeypatch.setattr(switch, "version", lambda: 91900)
    assert environment.environment("x", run=lambda command: None)["cudnn_benchmark_limit"] == 0


def state(clock, power=650.0):
    return {"sm_mhz": clock, "temperature_c": 60.0, "power_w": power}


def test_a_fall_of_the_clock_is_a_warning_with_its_circumstances():
    watch = ClockWatch(lambda: None)
    assert watch.fall(None) is None
    assert watch.fall(state(1200.0)) is None, "idle before, not fallen"
    assert watch.fall(state(1980.0)) is None
    assert watch.fall(state(1950.0)) is None
    assert watch.fall(state(1665.0, 698.4)) == "the SM clock fell from 1980 to 1665 MHz, at 698 W and 60 °C"
    assert watch.fall({"sm_mhz": 900.0, "power_w": None}) == "the SM clock fell from 1980 to 900 MHz"
    assert watch.fall({"sm_mhz": None}) is None


def test_without_nvml_nvidia_smi_is_asked_and_nvml_never_again(monkeypatch):
    asked = []

    def nvml():
        asked.append("nvml")

    def nvidia_smi():
        asked.append("nvidia-smi")
        return state(1980.0)

    monkeypatch.setattr(environment, "clocks", nvidia_smi)
    watch = ClockWatch(nvml)
    assert watch.state() == watch.state() == state(1980.0)
    assert asked == ["nvml", "nvidia-smi", "nvidia-smi"]


# --- the second look ----------------------------------------------------------------------------------------


def samples(microseconds, clock=EVENTS):
    return Samples([microseconds * 1e-6] * 3, clock=clock)


CUDNN, NCHW, OURS, SLOW = (
    Contender(name, engine, lambda work: None)
    for name, engine in (("cudnn", "cudnn"), ("cudnn-nchw", "cudnn"), ("triton", "triton"), ("slow", "triton"))
)


@pytest.mark.parametrize(
    "ours, clock, expected",
    [(90.0, EVENTS, ["triton"]), (91.0, EVENTS, []), (50.0, WALL_COLD, []), (200.0, EVENTS, [])],
)
def test_who_is_more_than_a_tenth_faster_than_cudnn_is_suspect(ours, clock, expected):
    found = {"cudnn": samples(100), "cudnn-nchw": samples(120), "triton": samples(ours, clock), "slow": samples(99)}
    rival, suspects = second_look.suspects(found, [CUDNN, NCHW, OURS, SLOW])
    assert rival == "cudnn"
    assert [contender.name for contender in suspects] == expected


def test_without_cudnn_nobody_is_suspect():
    assert second_look.suspects({"triton": samples(1), "cudnn": RuntimeError()}, [CUDNN, OURS])[1] == []


def error(passed):
    return Error("output", 3.0, 4.0, 1e-3, passed)


FIRST = {"cudnn": samples(100), "triton": samples(50), "other": samples(40), "slow": samples(200)}
CALLS = {name: name for name in FIRST}


@pytest.mark.parametrize("second, kept, ratios", [(80.0, 80.0, [2.0, 1.375]), (40.0, 50.0, [2.0, 2.75])])
def test_the_slower_of_both_times_is_kept_and_both_ratios_are_said(second, kept, ratios):
    sampled = []

    def sample(calls):
        sampled.append(list(calls))
        return {"cudnn": samples(110), "triton": samples(second), "other": ArithmeticError("now")}

    def check(calls):
        return {name: [error(True)] for name in calls}

    seen = second_look.look(["triton", "other"], "cudnn", FIRST, CALLS, check, sample)
    assert sampled == [["cudnn", "triton", "other"]], "together, and with nobody else"
    assert seen["triton"].outcome.median == pytest.approx(kept * 1e-6)
    assert seen["triton"].ratios == ratios
    assert isinstance(seen["other"].outcome, ArithmeticError)


def test_what_is_wrong_or_raises_the_second_time_gets_no_time():
    checked = {"triton": [error(False)], "other": ArithmeticError("now")}
    untimed = lambda _: pytest.fail("timed")  # noqa: E731
    seen = second_look.look(["triton", "other"], "cudnn", FIRST, CALLS, lambda calls: checked, untimed)
    said = "2 times as fast as cudnn, and checked again it failed the check against float64"
    assert seen["triton"].outcome.startswith(said)
    assert [one.passed for one in seen["triton"].errors] == [False]
    assert isinstance(seen["other"].outcome, ArithmeticError)


# --- a GPU that is lost -------------------------------------------------------------------------------------


@pytest.fixture
def lost_gpu(monkeypatch):
    """One whose every call fails."""

    def synchronize():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand much more")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    return SimpleNamespace(type="cuda")


def test_the_first_to_raise_is_who_lost_the_gpu(lost_gpu, monkeypatch):
    broken = {"cudnn": samples(1), "triton": RuntimeError("illegal address\nmore"), "auto": RuntimeError("also")}
    of_gpu = Machine(lost_gpu, lambda calls: broken)
    with pytest.raises(DeviceLostError, match=r"^triton lost the GPU: RuntimeError: illegal address$") as error:
        of_gpu.sample({})
    assert error.value.contender == "triton"
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert of_gpu.sample({}) == broken, "an error that leaves the GPU usable"
    assert Machine(torch.device("cpu"), lambda calls: broken).sample({}) == broken


def test_a_lost_gpu_ends_the_process_and_the_next_goes_on_without_its_cause(tmp_path):
    path = tmp_path / "j.jsonl"
    first = lab.Lab(Selection(), torch.device("cpu"), journal=Journal(path))

    def loses():
        raise DeviceLostError("triton", RuntimeError("illegal address"))

    with pytest.raises(pytest.exit.Exception, match=r"triton lost the GPU.*--resume goes on without it") as ended, (
        pytest.warns(UserWarning, match="lost the GPU")
    ):  # fmt: skip
        first.once(KEY, ("cudnn", "triton"), loses)
    assert ended.value.returncode == lab.DEVICE_LOST
    assert first.results["not_run"][0]["contender"] == "triton"
    journal = Journal(path, resume=True)
    assert journal.rows == {}
    assert journal.faulted[KEY] == {"triton": "RuntimeError: illegal address"}
    assert journal.unfinished[KEY] == 0


def test_an_error_of_the_device_itself_names_nobody(lost_gpu):
    with pytest.raises(machine.DeviceLostError, match="the definition lost the GPU"):
        Machine(lost_gpu).require_device("", RuntimeError("x"))


def test_the_ceilings_that_a_run_states(tmp_path):
    stated = {"copy": {"short": 2.0, "sustained": 1.0}}
    environment = {"environment": {"gpu": "A", "ceilings": stated}}
    results, journal, other = (tmp_path / name for name in ("r.json", "r.journal.jsonl", "none.json"))
    results.write_text(json.dumps({**environment, "benchmarks": []}))
    journal.write_text('{"environment": {"gpu": "A"}}\n' + json.dumps(environment) + '\n{"started": ["conv"]}\n')
    other.write_text("[1]")
    assert ceilings.of_run(results) == ceilings.of_run(journal, "A") == stated
    for path, gpu in ((results, "B"), (other, None), (tmp_path / "absent.json", None)):
        assert ceilings.of_run(path, gpu) is None
