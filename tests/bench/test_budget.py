"""The order of worth, and what starts when time is short."""

from types import SimpleNamespace

import pytest
import torch

from bench import (
    test_conv,
    test_dirac_block,
    test_inference,
    test_training_step,
    test_weight_prep,
    test_weight_prep_nets,
)
from bench.budget import ENDING, UNSEEN, Budget, worth
from bench.journal import Journal
from bench.lab import Lab
from bench.nets import FIRST_NETS
from bench.options import Selection
from bench.results import KINDS
from triton_dirac.models import DIRACNETS

MODULES = (test_conv, test_dirac_block, test_weight_prep, test_weight_prep_nets, test_training_step, test_inference)
SUITES = tuple(module.SUITE for module in MODULES)
KEY = ("conv", "fprop", "DiracNet-18", "64x56x56-64 3x3", "bfloat16")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def order():
    """(suite, pass, layer, dtype) of all rows of a GPU, the most worth first."""
    lab = Lab(Selection(), torch.device("cpu"))
    lab.on_gpu = True
    rows = {row.key: row for suite in SUITES for row, _ in lab.rows(suite)}
    return [
        SimpleNamespace(suite=row.suite.name, dtype=row.dtype, pass_=row.direction, subject=row.subject)
        for row in sorted(rows.values(), key=lambda row: worth(row, on_gpu=True))
    ]


def test_training_shapes_in_bfloat16_against_cudnn_come_first(order):
    first = order[0]
    assert (first.suite, first.dtype) == ("conv", "bfloat16")
    assert first.subject.has_identity
    conv = [row for row in order if row.suite == "conv" and row.subject.has_identity and row.dtype == "bfloat16"]
    assert order[: len(conv)] == conv
    assert [row.pass_ for row in conv[:3]] == ["fprop", "dgrad", "wgrad"]
    assert len({row.subject for row in conv[:3]}) == 1
    assert {"DiracNet-28-10", "DiracNet-18, DiracNet-34"} <= {row.subject.net for row in conv[:24]}
    assert order[len(conv)].suite == "training_step"


def test_whole_nets_that_others_stand_for_come_last_of_their_dtype(order):
    """All five would take the whole of a short visit to a GPU."""
    whole = [row for row in order if row.suite in ("training_step", "inference") and row.dtype == "bfloat16"]
    assert {row.subject.net for row in whole} == set(DIRACNETS)
    later = [row for row in whole if row.subject.net not in FIRST_NETS]
    assert {row.subject.net for row in later} == {"DiracNet-34", "DiracNet-28-5"}
    of_dtype = [row for row in order if row.dtype == "bfloat16" and row.subject.has_identity]
    assert of_dtype[-len(later) :] == later


def test_rare_dtypes_come_last_and_stems_behind_the_layers_of_their_dtype(order):
    assert list(dict.fromkeys(row.dtype for row in order)) == ["bfloat16", "float16", "tf32", "float32"]
    for dtype in ("bfloat16", "float32"):
        kinds = [row.subject.has_identity for row in order if row.dtype == dtype]
        assert kinds == sorted(kinds, reverse=True)


def test_on_a_cpu_what_can_be_timed_comes_first():
    lab = Lab(Selection(), torch.device("cpu"))
    rows = sorted((row for row, _ in lab.rows(test_conv.SUITE)), key=lambda row: worth(row, on_gpu=False))
    assert rows[0].dtype == "float32"


def test_a_row_starts_if_rows_like_it_ended_in_what_is_left():
    clock = Clock()
    budget = Budget(2, clock)
    assert budget.refusal(KEY) is None
    budget.took(KEY, 30.0)
    budget.took(("weight_prep", *KEY[1:]), 4.0)
    clock.now += 120 - ENDING - 31
    assert budget.refusal(KEY) is None
    clock.now += 2
    assert budget.refusal(KEY) == (
        "left out: of the 2 minutes of --budget 29 s were left, and such a row takes about 30 s"
    )
    assert budget.refusal(("weight_prep", *KEY[1:])) is None, "rows of another kind are quicker"
    assert budget.refusal(("conv", *KEY[1:-1], "float32")) is not None, "a dtype not yet seen is like its suite"
    assert "about 30 s" in budget.refusal(("new", *KEY[1:])), "a suite not yet seen is like any"
    clock.now += 29
    assert budget.refusal(("weight_prep", *KEY[1:])) is not None


def test_the_first_row_of_a_suite_is_taken_to_compile():
    clock = Clock()
    budget = Budget(1, clock)
    budget.took(KEY, 1.0)
    clock.now += 60 - ENDING - UNSEEN - 1
    assert budget.refusal(("dirac_block", *KEY[1:])) is None
    clock.now += 2
    assert f"about {UNSEEN:.0f} s" in budget.refusal(("dirac_block", *KEY[1:]))
    assert budget.refusal(KEY) is None


def test_one_long_row_is_forgotten():
    """The first row loads libraries and compiles."""
    clock = Clock()
    budget = Budget(1, clock)
    for seconds in (50.0, *[2.0] * 5):
        budget.took(KEY, seconds)
    clock.now += 60 - ENDING - 3
    assert budget.refusal(KEY) is None


def entries(**found):
    return {**{kind: [] for kind in KINDS}, **found}


def test_what_is_left_out_is_in_the_results_and_not_in_the_journal(tmp_path):
    clock = Clock()
    lab = Lab(Selection(), torch.device("cpu"), journal=Journal(tmp_path / "j.jsonl"), budget=Budget(1, clock))
    done = lab.once(KEY, ("a", "b"), lambda: entries(counted=[{"launches": 1}]))
    assert done["counted"] == [{"launches": 1}]
    clock.now += 60
    other = (*KEY[:-1], "float32")
    left_out = lab.once(other, ("a", "b"), lambda: pytest.fail("started"))
    assert [entry["contender"] for entry in left_out["not_run"]] == ["a", "b"]
    assert all("--budget" in entry["reason"] and entry["dtype"] == "float32" for entry in lab.results["not_run"])
    assert list(Journal(tmp_path / "j.jsonl", resume=True).rows) == [KEY]


def test_rows_of_the_journal_cost_no_time_and_tell_how_long_others_take(tmp_path):
    first = Lab(Selection(), torch.device("cpu"), journal=Journal(tmp_path / "j.jsonl"))
    first.once(KEY, ("a",), lambda: entries(counted=[{"launches": 1}]))
    clock = Clock()
    journal = Journal(tmp_path / "j.jsonl", resume=True)
    journal.seconds[KEY] = 50.0
    lab = Lab(Selection(), torch.device("cpu"), journal=journal, budget=Budget(1, clock))
    clock.now += 10
    assert lab.once(KEY, ("a",), lambda: pytest.fail("measured again"))["counted"] == [{"launches": 1}]
    assert "takes about 50 s" in lab.once((*KEY[:-1], "float16"), ("a",), dict)["not_run"][0]["reason"]


def test_a_row_that_processes_died_in_is_left_out(tmp_path):
    path = tmp_path / "j.jsonl"
    for _ in range(2):
        journal = Journal(path, resume=True)
        journal.start(KEY)
    lab = Lab(Selection(), torch.device("cpu"), journal=Journal(path, resume=True))
    left_out = lab.once(KEY, ("a",), lambda: pytest.fail("started"))
    assert left_out["not_run"][0]["reason"] == "left out: 2 processes ended while they ran this row"
