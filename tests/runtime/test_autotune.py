"""How a config is chosen, with scripted times: no GPU, no kernel."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from triton_dirac.conv.config import Config
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime import autotune, timings

PROBLEM = ConvProblem(8, 64, 14, 14, 64, 3, 3, padding=(1, 1, 1, 1))
SMALL, WIDE, DEEP = Config(32, 32, 32, 4, 2), Config(128, 128, 32, 8, 3), Config(64, 64, 64, 4, 4)
CPU = torch.device("cpu")


class Kernel:
    """A kernel whose configs take scripted milliseconds; it notes what was run."""

    def __init__(self, times):
        self.times, self.ran, self.last = times, [], None

    def run(self, config):
        self.ran.append(config)
        self.last = config

    def bench(self, call):
        call()
        time = self.times[self.last]
        if isinstance(time, Exception):
            raise time
        return time

    def pick(self, offered=None, problem=PROBLEM, kernel="conv_wgrad", default=SMALL, **options):
        configs = list(self.times) if offered is None else offered
        return autotune.pick(
            kernel,
            problem,
            torch.float16,
            CPU,
            offered=lambda *_: configs,
            default=lambda *_: default,
            run=self.run,
            **{"bench": self.bench} | options,
        )


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
    assert kernel.pick(bench=lambda call: pytest.fail("measured again")) == WIDE
    assert len(kernel.ran) == measured


def test_steady_state_is_a_dictionary_hit(monkeypatch):
    kernel = Kernel({SMALL: 3.0, WIDE: 1.0})
    kernel.pick()
    for name in ("_spell", "_label", "_fastest", "target_of"):
        monkeypatch.setattr(autotune, name, lambda *_: pytest.fail("more than a lookup"))
    assert kernel.pick() == WIDE


def test_without_gpu_nothing_is_measured_and_no_file_written(tmp_path):
    kernel = Kernel({SMALL: 3.0, WIDE: 1.0})
    assert kernel.pick(bench=None) == SMALL
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
    assert kernel.pick(offered=[SMALL, WIDE]) == WIDE
    kernel.ran.clear()
    autotune.forget()
    assert kernel.pick() == DEEP
    assert SMALL not in kernel.ran
    assert set(kernel.ran) == {WIDE, DEEP}


def test_a_removed_config_is_not_picked():
    kernel = Kernel({SMALL: 3.0, WIDE: 1.0, DEEP: 2.0})
    kernel.pick()
    autotune.forget()
    assert kernel.pick(offered=[SMALL, DEEP]) == DEEP


def test_problems_and_kernels_are_kept_apart():
    fast_wide, fast_small = Kernel({SMALL: 3.0, WIDE: 1.0}), Kernel({SMALL: 1.0, WIDE: 3.0})
    other = ConvProblem(8, 64, 14, 14, 64, 3, 3, padding=(1, 1, 1, 0))
    assert fast_wide.pick() == WIDE
    assert fast_small.pick(problem=other) == SMALL
    assert fast_small.pick(kernel="conv_fprop") == SMALL
    autotune.forget()
    assert fast_small.pick() == WIDE


def test_a_config_that_fails_loses_and_is_not_tried_again():
    kernel = Kernel({SMALL: 3.0, WIDE: RuntimeError("too many resources"), DEEP: 4.0})
    with pytest.warns(UserWarning, match="too many resources"):
        assert kernel.pick() == SMALL
    kernel.ran.clear()
    autotune.forget()
    assert kernel.pick() == SMALL
    assert kernel.ran == []
    (times,) = json.loads(stored().path.read_text())["timings"].values()
    assert times["128x128x32 w8 s3 gather g8"] is None


def test_all_failing_leaves_the_default():
    kernel = Kernel({SMALL: RuntimeError("a"), WIDE: RuntimeError("b")})
    with pytest.warns(UserWarning, match="failed while it was measured"):
        assert kernel.pick() == SMALL


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
    log = []
    times = {"triton": 2.0, "cudnn": 1.0}
    candidates = {name: lambda name=name: log.append(name) for name in times}

    def bench(call):
        call()
        return times[log[-1]]

    def choose(**options):
        arguments = ("conv2d forward", PROBLEM, torch.float16, CPU)
        return autotune.choose(*arguments, candidates=lambda: candidates, default="triton", **options)

    assert choose() == "triton"  # no GPU
    assert log == []
    autotune.forget()
    assert choose(bench=bench) == "cudnn"
    autotune.forget()
    assert choose(bench=lambda call: pytest.fail("measured again")) == "cudnn"
    assert choose(tune=False) == "triton"
