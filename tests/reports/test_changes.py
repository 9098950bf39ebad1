"""The verdicts between runs: what they promise, on simulated noise, and what they say where they cannot tell."""

import numpy as np
import pytest

from reports import changes
from reports.load import ReportError
from reports.sides import Row, Side, Timed

ROWS = 210
SLOW = 7  # the row that is made slower


def row(number, contender="torch", suite="conv", pass_="fprop"):
    return Row(suite, pass_, "Net", f"layer {number}", "float32", contender, "{}")


def side(
    seed, *, processes=1, spread=0.01, between=0.0, load=0.0, factor=1.0, rows=ROWS, samples=20, contenders=("torch",)
):
    """Log-normal times. What a process is off by: each row by ``between``, all of them by ``load``. The times of the
    contender "slow", or of row SLOW if there is none, are multiplied by ``factor``."""
    noise = np.random.default_rng(seed)
    base = np.log(1e-3 * (1 + np.arange(rows) % 9))[:, None]
    loads = load * noise.standard_normal(processes)
    timed = {}
    for contender in contenders:
        logs = [
            base + off + between * noise.standard_normal((rows, 1)) + spread * noise.standard_normal((rows, samples))
            for off in loads
        ]
        for number in range(rows):
            is_slow = contender == "slow" if "slow" in contenders else number == SLOW
            data = {
                (0, process): (factor if is_slow else 1.0) * np.exp(one[number]) for process, one in enumerate(logs)
            }
            timed[row(number, contender)] = Timed(data, {"cpu, wall clock"})
    return Side("made up", [{}], processes, timed, {}, {"conv": "torch"})


def compared(old, new, margin=0.0, **how):
    return changes.compared(old, new, margin=margin, **how)


def words(old, new, **how):
    return {change.row.layer: change.verdict for change in compared(old, new, **how).changes}


def is_alarm(change):
    return change.verdict in ("faster", "slower")


@pytest.mark.parametrize("processes, relative", [(1, False), (5, False), (5, True), (10, False), (10, True)])
def test_runs_in_which_nothing_changed_raise_no_more_alarms_than_stated(processes, relative):
    alarms, tries = 0, 12
    for seed in range(tries):
        how = {"processes": processes, "rows": 40, "contenders": ("torch", "reference")}
        how |= {"between": 0.01, "load": 0.1} if processes > 1 else {}
        found = compared(side(2 * seed, **how), side(2 * seed + 1, **how), relative=relative)
        assert len(found.changes) == (40 if relative else 80)
        alarms += any(map(is_alarm, [*found.changes, *found.overall]))
    assert alarms <= 3  # at 5 % each, four of 12 or more have a probability of 0.2 %


@pytest.mark.parametrize("processes", [1, 6])
@pytest.mark.parametrize("factor, word", [(1.05, "slower"), (1 / 1.05, "faster")])
def test_a_planted_change_of_5_percent_is_found(processes, factor, word):
    how = {"spread": 0.005, "between": 0.002 if processes > 1 else 0.0, "processes": processes}
    found = words(side(1, **how), side(2, factor=factor, **how), margin=0.02)
    assert found.pop(f"layer {SLOW}") == word
    assert "faster" not in found.values()
    assert "slower" not in found.values()


def test_what_differs_between_processes_is_seen_by_several_alone():
    one = words(side(1, between=0.05), side(2, between=0.05))
    several = words(side(3, processes=6, between=0.05), side(4, processes=6, between=0.05))
    assert sum(word in ("faster", "slower") for word in one.values()) > ROWS / 4
    assert not {"faster", "slower"} & set(several.values())


def test_under_load_a_contender_that_became_slower_is_found_by_its_rows_together_relative_to_the_baseline():
    """Processes differ by 20 %, rows of one process from each other by 3 %: no row alone tells 5 %."""
    how = {"processes": 10, "load": 0.2, "between": 0.05, "contenders": ("torch", "slow", "auto"), "samples": 5}
    old, new = side(1, **how), side(2, factor=1.05, **how)
    absolute, relative = (compared(old, new, margin=0.03, relative=relative) for relative in (False, True))
    assert {change.verdict for change in [*absolute.changes, *absolute.overall]} == {"ambiguous"}
    assert sum(change.verdict != "ambiguous" for change in relative.changes) < 0.1 * len(relative.changes)
    assert {change.row.contender: change.verdict for change in relative.overall} == {"slow": "slower", "auto": "same"}


def test_what_is_replayed_from_a_graph_is_relative_to_the_baselines_graph():
    """Of the eager baseline, half as fast as before, nothing is in it."""
    how = {"processes": 6, "rows": 9, "spread": 0.001, "contenders": ("torch", "torch-graph", "auto-graph", "auto")}
    old, new = side(1, **how), side(2, **how)
    for timed in (timed for row, timed in new.rows.items() if row.contender == "torch"):
        timed.samples = {process: 2 * samples for process, samples in timed.samples.items()}
    found = compared(old, new, margin=0.1, relative=True)
    assert {(change.row.contender, change.verdict) for change in found.changes} == {
        ("auto", "faster"), ("auto-graph", "same"),
    }  # fmt: skip


def test_a_change_of_the_baseline_itself_looks_like_one_of_all_others():
    how = {"processes": 6, "rows": 9, "contenders": ("torch", "auto"), "spread": 0.001}
    old, new = side(1, **how), side(2, **how)
    for timed in (timed for row, timed in new.rows.items() if row.contender == "torch"):
        timed.samples = {process: 1.2 * samples for process, samples in timed.samples.items()}
    found = compared(old, new, relative=True)
    assert {(change.row.contender, change.verdict) for change in found.changes} == {("auto", "faster")}


def test_too_few_samples_processes_or_baselines_are_said():
    def reasons(old, new, **how):
        return {(change.verdict, change.reason) for change in compared(old, new, **how).changes}

    few = {("ambiguous", "8 samples, of 15 that 99.98 % take")}
    assert reasons(side(1, samples=8), side(2, samples=8)) == few
    two = {("ambiguous", "2 and 6 processes: an interval over processes takes 5 on either side")}
    assert reasons(side(1, processes=2), side(2, processes=6)) == two
    old, new = (side(seed, processes=6, rows=9, contenders=("torch", "auto")) for seed in (1, 2))
    del new.rows[row(3)]
    found = compared(old, new, relative=True).changes
    alone = {change.row.layer: change.reason for change in found if change.row.contender == "auto"}
    assert alone["layer 3"] == "its baseline has no time beside it"
    assert alone["layer 4"] == ""


def test_relative_times_are_those_of_samples_of_the_same_round():
    """Load that comes and goes between rounds is in no ratio of neighbours."""
    drift = np.exp(np.random.default_rng(1).standard_normal(20))
    own, beside = Timed({(0, 0): 3e-3 * drift}, {"cpu"}), Timed({(0, 0): 1e-3 * drift}, {"cpu"})
    assert own.relative_to(beside) == {(0, 0): pytest.approx(np.log(3))}
    beside.samples[0, 0] = beside.samples[0, 0][:-1]  # rounds that cannot be told apart
    assert own.relative_to(beside)[0, 0] != pytest.approx(np.log(3))
    beside.how = {"cuda"}
    assert own.relative_to(beside) == {}


def test_processes_that_lack_a_row_are_not_counted_for_it():
    old, new = (side(seed, processes=6, rows=9, spread=0.001) for seed in (1, 2))
    del old.rows[row(3)].samples[0, 2]
    for process in (1, 4):
        del new.rows[row(5)].samples[0, process]
    found = {change.row.layer: change for change in compared(old, new, margin=0.03).changes}
    assert found["layer 3"].processes == (5, 6)
    assert found["layer 3"].verdict == "same"
    assert found["layer 5"].reason.startswith("6 and 4 processes")
    (overall,) = compared(old, new, margin=0.03).overall
    assert overall.verdict == "same"


def test_the_intervals_cover_as_often_as_they_say():
    noise = np.random.default_rng(0)
    for confidence in (0.9, 0.99):
        missed = np.zeros(3)
        for _ in range(1000):
            low, high = changes._covering(noise.standard_normal(15), confidence)
            missed[0] += not low <= 0 <= high
            old, new = noise.standard_normal(5), 2 * noise.standard_normal(8)
            low, high = changes._welch(old, new, confidence)
            missed[1] += not low <= 1 <= high
            low, high = changes._of_medians(
                np.exp(noise.standard_normal(15)), np.exp(noise.standard_normal(20)), confidence
            )
            missed[2] += not low <= 1 <= high
        assert (missed / 1000 <= 1 - confidence + 0.02).all()


def test_rows_that_appear_and_vanish_are_listed_with_what_the_other_side_says_of_them():
    old, new = side(1, rows=9), side(2, rows=8)
    new.left_out["conv fprop Net layer 8 float32 torch"] = "output off by 3"
    (vanished,) = [change for change in compared(old, new).changes if change.verdict == "vanished"]
    assert (vanished.row.layer, vanished.reason, vanished.new) == ("layer 8", "output off by 3", None)
    assert vanished.old == pytest.approx(9e-3, rel=0.05)
    assert words(new, old)["layer 8"] == "appeared"


def test_runs_without_a_common_row_are_refused():
    old, new = side(1, rows=3), side(2, rows=3)
    new = Side("other", [{}], 1, {one._replace(problem="batch 2"): timed for one, timed in new.rows.items()}, {}, {})
    with pytest.raises(ReportError, match="made up and other have no row in common that can be compared, of 3 and 3"):
        compared(old, new)


def test_times_by_different_clocks_are_compared_when_asked():
    old, new = side(1, rows=9), side(2, rows=9)
    new.rows[row(2)].how = {"cuda, device events"}
    clocks = "cpu, wall clock → cuda, device events"
    unasked = {change.row.layer: change for change in compared(old, new).changes}["layer 2"]
    assert (unasked.ratio, unasked.clocks, unasked.reason) == (None, clocks, "compared with --across-machines")
    asked = compared(old, new, across=True).changes
    assert {change.reason for change in asked} == {""}
    assert {change.row.layer: change.clocks for change in asked if change.clocks} == {"layer 2": clocks}
    new.rows[row(2)].how.add("cpu, wall clock")
    mixed = {change.row.layer: change.reason for change in compared(old, new, across=True).changes}["layer 2"]
    assert mixed == "timed differently in different processes: cpu, wall clock | cuda, device events"


def test_where_clocks_fell_the_ratio_in_cycles_shows_it():
    old, new = side(1, rows=9, spread=0.001), side(2, rows=9, spread=0.001)
    for number in range(9):
        old.rows[row(number)].mhz = [1980.0, 1960.0]
        new.rows[row(number)].mhz = [985.0]
        new.rows[row(number)].samples[0, 0] *= 2
    for change in compared(old, new).changes:
        assert change.mhz == (1970, 985)
        assert change.ratio == pytest.approx(0.5, rel=0.01)
        assert change.cycles == pytest.approx(1, rel=0.01)
        assert change.verdict == "slower"
    del new.rows[row(0)].mhz[:]
    assert {change.row.layer: change.cycles for change in compared(old, new).changes}["layer 0"] is None


@pytest.mark.parametrize("processes", [1, 6])
def test_absurd_times_have_numbers_that_json_can_hold(processes):
    how = {"rows": 9, "processes": processes}
    old, new = side(1, **how), side(2, **how)
    for timed, size in ((old.rows[row(0)], 1e9), (new.rows[row(0)], 1e-12)):
        timed.samples = {process: np.full(20, size) for process in timed.samples}
    old.rows[row(0)].samples[0, 0] = np.full(20, 1e-12)  # and the widest spread that there can be
    old.rows[row(0)].samples[0, 0][::3] = 1e9
    (change,) = [change for change in compared(old, new).changes if change.row.layer == "layer 0"]
    assert np.isfinite([change.old, change.new, change.ratio, change.low, change.high]).all()
