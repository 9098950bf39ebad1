"""The autotune landscape that a run leaves behind, from scripted timings: no GPU, nothing measured."""

import math

import pytest
import torch

from bench import tuned
from bench.journal import Journal
from bench.layers import layers
from triton_dirac.runtime import autotune, timings
from triton_dirac.runtime.targets import TARGETS
from triton_dirac.tuning.run import entry_of
from triton_dirac.tuning.work import TABLES, Work

CPU, TARGET = torch.device("cpu"), TARGETS["cuda:90"]
LAYER = next(layer for layer in layers("DiracNet-28-10") if layer.name == "160x32x32-160 3x3")
FPROP = Work("fprop", LAYER.problem, "bfloat16", identity=False)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(timings.CACHE_DIR, str(tmp_path))
    monkeypatch.setattr(autotune, "target_of", lambda device: TARGET)
    autotune.forget()
    yield
    autotune.forget()


def timed(suite="conv", direction="fprop", contender="triton", dtype="bfloat16"):
    info = {"suite": suite, "pass": direction, "net": LAYER.net, "layer": LAYER.name, "dtype": dtype}
    return {"extra_info": {**info, "contender": contender, "problem": LAYER.sizes}}


def found(*benchmarks):
    return tuned.landscapes(benchmarks, timings.open_store(CPU), TARGET)


def pick(scripted):
    """What the autotuner picks where configs take the scripted times, in milliseconds."""
    table = TABLES["fprop"]
    return autotune.pick(
        "conv_fprop", LAYER.problem, torch.bfloat16, CPU, promising=table.promising, default=table.default,
        plan=lambda config: [], measure=lambda runs, entry: dict(zip(runs, scripted(len(runs)), strict=True)),
    )  # fmt: skip


def test_the_landscape_is_what_the_autotuner_measured_and_picked_from():
    picked = pick(lambda count: [math.inf, *(1.0 + abs(number - 5) for number in range(1, count))])
    (one,) = found(timed())
    assert (one["kernel"], one["layer"], one["dtype"], one["label"]) == (
        "conv_fprop", LAYER.name, "bfloat16", "measured",
    )  # fmt: skip
    times = one["milliseconds"]
    assert len(times) >= 6
    assert sum(time is None for time in times.values()) == 1
    assert min((name for name in times if times[name]), key=times.__getitem__) == picked.label
    assert one["default"] == TABLES["fprop"].default(LAYER.problem, torch.bfloat16, TARGET).label
    assert one["unmeasured"] == 0


def test_a_config_that_is_no_longer_offered_is_left_out_and_one_without_a_timing_counted():
    pick(lambda count: [1.0] * count)
    (whole,) = found(timed())
    known = dict(list(whole["milliseconds"].items())[1:])
    store = timings.open_store(CPU)
    store.path.unlink()
    store.write(entry_of(FPROP, TARGET), {**known, "of last year": 0.1})
    (one,) = found(timed())
    assert one["milliseconds"] == known
    assert one["unmeasured"] == 1


def test_rows_of_several_suites_share_a_landscape_and_others_have_none():
    pick(lambda count: [1.0] * count)
    rows = [timed("dirac_block", way, "triton-split") for way in ("forward", "forward_backward")]
    assert len(found(timed(), *rows)) == 1
    for row in (timed(contender="cudnn"), timed(direction="dgrad"), timed(dtype="float16"), timed("weight_prep")):
        assert found(row) == []


def test_where_nothing_was_measured_there_is_no_landscape():
    assert found(timed()) == []
    assert not timings.open_store(CPU).path.exists()


def test_a_journal_that_tells_of_tuning_can_be_gone_on_with(tmp_path):
    path = tmp_path / "a.jsonl"
    journal = Journal(path)
    journal.begin({"gpu": None})
    journal.tuned([{"kernel": "conv_fprop"}])
    assert Journal(path, resume=True).environment == {"gpu": None}
