"""How a config is chosen, with scripted times: no GPU, no kernel."""

import json
import math
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import triton_dirac
from tests.scripted_gpu import Clock, FakeGpu
from triton_dirac.conv import dgrad_configs, fprop_configs, wgrad_configs
from triton_dirac.conv.config import Config
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.models import conv_problems, diracnet
from triton_dirac.runtime import autotune, measure, timings
from triton_dirac.runtime.compile_ahead import Outcome
from triton_dirac.runtime.launch import INTERPRETED, Launch
from triton_dirac.runtime.targets import INTERPRETER, TARGETS

PROBLEM = ConvProblem(8, 64, 14, 14, 64, 3, 3, padding=(1, 1, 1, 1))
SMALL, WIDE, DEEP = Config(32, 32, 32, 4, 2), Config(128, 128, 32, 8, 3), Config(64, 64, 64, 4, 4)
CPU = torch.device("cpu")


class Kernel:
    """A kernel whose configs take scripted milliseconds, None for no answer; it notes what was planned and run."""

    def __init__(self, times):
        self.times, self.ran = times, []

    def plan(self, config):
        return [Launched(self.ran, config)]

    def measure(self, runs, entry):
        times = {}
        for name, run in runs.items():
            run()
            times[name] = self.times[self.ran[-1]]
        return {name: time for name, time in times.items() if time is not None}

    def pick(self, promising=None, problem=PROBLEM, kernel="conv_wgrad", default=SMALL, **options):
        configs = list(self.times) if promising is None else promising
        return autotune.pick(
            kernel,
            problem,
            torch.float16,
            CPU,
            promising=lambda *_: configs,
            default=lambda *_: default,
            plan=self.plan,
            **{"measure": self.measure} | options,
        )


class Launched:
    def __init__(self, ran, config):
        self.ran, self.config = ran, config

    def run(self):
        self.ran.append(self.config)


def measured_again(runs, entry):
    pytest.fail("measured again")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(timings.CACHE_DIR, str(tmp_path))
    monkeypatch.delenv(autotune.AUTOTUNE, raising=False)
    autotune.forget()
    yield
    autotune.forget()


def stored():
    return timings.open_store(CPU)


def test_forced_config_is_taken_and_nothing_measured():
    kernel = Kernel({SMALL: 3.0, WIDE: 1.0})
    assert kernel.pick(config=DEEP) == DEEP
    assert kernel.ran == []


def test_fastest_is_measured_kept_and_not_measured_again():
    kernel = Kernel({SMALL: 3.0, WIDE: 1.0, DEEP: 2.0})
    assert kernel.pick() == WIDE
    measured = len(kernel.ran)
    assert kernel.pick() == WIDE
    autotune.forget()  # as a new process would start
    assert kernel.pick(measure=measured_again) == WIDE
    assert len(kernel.ran) == measured


def test_steady_state_is_a_dictionary_hit(monkeypatch):
    kernel = Kernel({SMALL: 3.0, WIDE: 1.0})
    kernel.pick()
    for name in ("_fastest", "target_of"):
        monkeypatch.setattr(autotune, name, lambda *_: pytest.fail("more than a lookup"))
    assert kernel.pick() == WIDE


def test_without_gpu_nothing_is_measured_and_no_file_written(tmp_path):
    kernel = Kernel({SMALL: 3.0, WIDE: 1.0})
    assert kernel.pick(measure=None) == SMALL
    assert kernel.ran == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("switch", ["argument", "environment"])
def test_off_switches(switch, monkeypatch):
    kernel = Kernel({SMALL: 3.0, WIDE: 1.0})
    if switch == "environment":
        monkeypatch.setenv(autotune.AUTOTUNE, "0")
    assert kernel.pick(tune=switch == "environment") == SMALL
    assert kernel.ran == []


def test_deterministic_algorithms_take_the_default():
    kernel = Kernel({SMALL: 3.0, WIDE: 1.0})
    torch.use_deterministic_algorithms(True)
    try:
        assert kernel.pick() == SMALL
    finally:
        torch.use_deterministic_algorithms(False)
    assert kernel.pick() == WIDE


def test_an_added_config_is_measured_alone_but_for_its_rival():
    times = {SMALL: 3.0, WIDE: 2.0, DEEP: 1.0}
    kernel = Kernel(times)
    assert kernel.pick(promising=[SMALL, WIDE]) == WIDE
    kernel.ran.clear()
    autotune.forget()
    assert kernel.pick() == DEEP
    assert SMALL not in kernel.ran
    assert set(kernel.ran) == {WIDE, DEEP}


def test_a_removed_config_is_not_picked():
    kernel = Kernel({SMALL: 3.0, WIDE: 1.0, DEEP: 2.0})
    kernel.pick()
    autotune.forget()
    assert kernel.pick(promising=[SMALL, DEEP]) == DEEP


def test_problems_and_kernels_are_kept_apart():
    fast_wide, fast_small = Kernel({SMALL: 3.0, WIDE: 1.0}), Kernel({SMALL: 1.0, WIDE: 3.0})
    other = ConvProblem(8, 64, 14, 14, 64, 3, 3, padding=(1, 1, 1, 0))
    assert fast_wide.pick() == WIDE
    assert fast_small.pick(problem=other) == SMALL
    assert fast_small.pick(kernel="conv_fprop") == SMALL
    autotune.forget()
    assert fast_small.pick() == WIDE


def test_a_config_that_fails_for_good_loses_and_is_not_tried_again():
    kernel = Kernel({SMALL: 3.0, WIDE: math.inf, DEEP: 4.0})
    assert kernel.pick() == SMALL
    kernel.ran.clear()
    autotune.forget()
    assert kernel.pick() == SMALL
    assert kernel.ran == []
    (times,) = json.loads(stored().path.read_text())["timings"].values()
    assert times["128x128x32 w8 s3 gather g8"] is None


def test_a_config_without_an_answer_is_tried_again_in_another_process_and_not_in_this():
    kernel = Kernel({SMALL: 3.0, WIDE: None, DEEP: 4.0})
    assert kernel.pick() == SMALL
    kernel.ran.clear()
    assert kernel.pick() == SMALL
    assert kernel.ran == []
    autotune.forget()  # as a new process would start
    kernel.times[WIDE] = 1.0
    assert kernel.pick() == WIDE
    assert set(kernel.ran) == {SMALL, WIDE}, "with its rival"


@pytest.mark.parametrize("answer", [math.inf, None])
def test_all_failing_leaves_the_default_for_this_process(answer, tmp_path):
    kernel = Kernel({SMALL: answer, WIDE: answer})
    assert kernel.pick() == SMALL
    kernel.ran.clear()
    assert kernel.pick() == SMALL
    assert kernel.ran == []
    assert bool(list(tmp_path.iterdir())) == (answer is not None)


def test_what_does_not_compile_is_not_run_and_kept_only_if_that_is_for_good(monkeypatch):
    """The compiler would crash this process, or hang it."""
    refused, lost = {WIDE.label: "SIGSEGV"}, {DEEP.label: "no answer within 120 s"}
    kernel = Kernel({SMALL: 3.0, WIDE: 1.0, DEEP: 2.0})
    compiled = []

    def compile_ahead(plans, target):
        compiled.append((list(plans), target))
        assert [launch.config for plan in plans.values() for launch in plan()] == [SMALL, WIDE, DEEP]
        return Outcome(refused, lost, 1)

    monkeypatch.setattr(autotune, "_can_measure", lambda device: True)
    monkeypatch.setattr(autotune, "compile_ahead", compile_ahead)
    monkeypatch.setattr(autotune, "measure", kernel.measure)
    with pytest.warns(UserWarning, match="left out") as said:
        assert kernel.pick(measure=None) == SMALL
    assert kernel.ran == [SMALL]
    assert compiled == [([SMALL.label, WIDE.label, DEEP.label], INTERPRETER)]
    messages = sorted(str(warning.message) for warning in said)
    problem = "conv_wgrad 8x64x14x14-64x3x3 s1,1 p1,1,1,1 d1,1 g1 torch.float16 ieee: "
    assert messages == [
        f"{problem}{WIDE.label} is left out for good: SIGSEGV",
        f"{problem}{DEEP.label} is left out this time: no answer within 120 s",
    ]
    (times,) = json.loads(stored().path.read_text())["timings"].values()
    assert times == {SMALL.label: 3.0, WIDE.label: None}


def test_a_copied_cache_of_kernels_is_put_right_before_the_first_kernel_that_is_picked(monkeypatch):
    """Also where all timings are known: the picked kernel would be compiled again."""
    looked = []
    monkeypatch.setattr(autotune.compiled_cache, "relocate_if_moved", lambda: looked.append(1))
    kernel = Kernel({SMALL: 3.0, WIDE: 1.0})
    kernel.pick()
    kernel.pick()
    assert looked == [1]
    autotune.forget()  # as a new process would start
    kernel.pick(measure=measured_again)
    assert looked == [1, 1]


def test_a_layer_has_as_many_kernels_to_compile_as_is_stated():
    """40 of 0.4 s on 16 cores, 3 s of measuring with cuDNN's search, 4 s to start processes: less than 10 s."""
    h100 = TARGETS["cuda:90"]
    for problem in {found.problem for found in conv_problems(diracnet(28, 10), 32, 128)}:
        for dtype in (torch.float16, torch.bfloat16):
            tables = (fprop_configs, dgrad_configs, wgrad_configs)
            promising = [table.promising(problem, dtype, h100) for table in tables]
            assert sum(len(configs) for configs in promising) <= 40
            assert all(len(configs) <= 24 for configs in promising)


def test_a_single_config_is_not_measured():
    kernel = Kernel({SMALL: 3.0})
    assert kernel.pick() == SMALL
    assert kernel.ran == []


@pytest.mark.parametrize(
    "text",
    [
        "{not json",
        "[]",
        '{"format": 0}',
        '{"format": 1, "gpu": "another", "triton": "0.0", "timings": {}}',
        '{"format": 1, "gpu": "cpu", "triton": "TRITON", "timings": {"conv": {"config": "fast"}}}',
        '{"format": 1, "gpu": "cpu", "triton": "TRITON", "timings": {"conv": 3}}',
    ],
)
def test_corrupted_or_foreign_file_is_ignored_with_a_warning(text):
    import triton

    store = stored()
    store.path.parent.mkdir(exist_ok=True)
    store.path.write_text(text.replace("TRITON", triton.__version__))
    kernel = Kernel({SMALL: 3.0, WIDE: 1.0})
    with pytest.warns(UserWarning, match="is ignored"):
        assert kernel.pick() == WIDE
    autotune.forget()
    assert kernel.pick() == WIDE  # the file was replaced by a good one


def test_unwritable_directory_is_warned_of(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(timings.CACHE_DIR, str(tmp_path / "file" / "below"))
    kernel = Kernel({SMALL: 3.0, WIDE: 1.0})
    with pytest.warns(UserWarning, match="timings are not kept"):
        assert kernel.pick() == WIDE


def test_concurrent_writers_lose_nothing(tmp_path):
    """Each writer has a lock file handle of its own, which excludes threads and processes alike."""

    def write(worker):
        own = timings.Store(tmp_path / "shared.json", "gpu", "3.7")
        for number in range(20):
            own.write(f"entry {number}", {f"config {worker}": float(worker)})

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    store = timings.Store(tmp_path / "shared.json", "gpu", "3.7")
    for number in range(20):
        assert store.read(f"entry {number}") == {f"config {n}": float(n) for n in range(3)}
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".lock"}


def test_infinity_survives_the_file(tmp_path):
    store = timings.Store(tmp_path / "x.json", "gpu", "3.7")
    store.write("entry", {"a": 1.5, "b": math.inf})
    assert store.read("entry") == {"a": 1.5, "b": math.inf}


def test_choice_of_backend_is_measured_and_kept():
    times = {"triton": 2.0, "cudnn": 1.0}

    def choose(**options):
        arguments = ("conv2d forward", PROBLEM, torch.float16, CPU)
        candidates = dict.fromkeys(times, lambda: None)
        return autotune.choose(*arguments, candidates=lambda: candidates, default="triton", **options)

    assert choose() == "triton"  # no GPU
    autotune.forget()
    assert choose(measure=lambda runs, entry: {name: times[name] for name in runs}) == "cudnn"
    autotune.forget()
    assert choose(measure=measured_again) == "cudnn"
    assert choose(tune=False) == "triton"


def test_cudnn_searches_all_its_plans_while_it_is_measured(monkeypatch):
    """torch's limit is 10 plans, ours are up to 24."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark_limit", 10)
    seen = []

    def measure(runs, entry):
        seen.append(torch.backends.cudnn.benchmark_limit)
        return dict.fromkeys(runs, 1.0)

    arguments = ("conv2d backend", PROBLEM, torch.float16, CPU)
    candidates = dict.fromkeys(["triton", "torch"], lambda: None)
    autotune.choose(*arguments, candidates=lambda: candidates, default="triton", measure=measure)
    assert seen == [0]
    assert torch.backends.cudnn.benchmark_limit == 10


def test_what_is_measured_is_held_nowhere_and_two_outputs_are_the_most_that_live(monkeypatch):
    """Each repetition's launch was once held by a recording of the first call, and held its output: 50 GB a config."""
    alive, most = weakref.WeakSet(), []
    original = torch.empty

    def empty(shape, *args, **kwargs):
        tensor = original(shape, *args, **kwargs)
        if tuple(shape) == problem.output_shape:
            alive.add(tensor)
            most.append(len(alive))
        return tensor

    problem = ConvProblem(2, 32, 4, 4, 32, 3, 3, padding=(1, 1, 1, 1))
    clock = Clock()
    measured, launched = [], []

    def on_scripted_gpu(runs, entry):
        measured.append((entry, len(runs)))
        return measure.measure(runs, entry, gpu=lambda: FakeGpu(clock), clock=clock)

    monkeypatch.setattr(autotune, "_can_measure", lambda device: True)
    monkeypatch.setattr(autotune, "measure", on_scripted_gpu)
    monkeypatch.setattr(Launch, "run", lambda self: launched.append(1) or clock.advance(1e-4))
    monkeypatch.setattr(torch, "empty", empty)
    image = torch.randn(problem.input_shape).to(memory_format=torch.channels_last)
    weight = torch.randn(problem.weight_shape)
    triton_dirac.conv2d(image, weight, padding=1, backend="triton")
    ((entry, configs),) = measured
    assert entry.startswith("conv_fprop 2x32x4x4-32x3x3")
    assert configs > 1
    assert len(most) > 3 * configs, "each config is run several times"
    assert max(most) <= 2
    ahead = 0 if INTERPRETED else configs  # where kernels are compiled, each config is planned once for that
    assert len(launched) + ahead == len(most), "each launch has an output of its own"
