"""Comparison between runs: the verdicts, what they promise, and the command's exit status."""

import json

import numpy as np
import pytest

from reports import compare
from reports.__main__ import main
from tests.reports.reports_data import benchmark, environment

ROWS = 210
SLOW = 7  # the row that is made slower


def run(path, seed, *, spread=0.01, between=0.0, factor=1.0, samples=20, rows=ROWS, **changes):
    """A results file of ``rows`` log-normal times; ``between``: what a whole process is off by, row by row."""
    noise = np.random.default_rng(seed)
    base = 1e-3 * (1 + np.arange(rows) % 9)
    times = base[:, None] * np.exp(spread * noise.standard_normal((rows, samples)))
    times *= np.exp(between * noise.standard_normal((rows, 1)))
    times[SLOW] *= factor
    entries = [
        benchmark("conv", "fprop", "Net", f"layer {row}", "float32", "torch", list(row_times))
        for row, row_times in enumerate(times)
    ]
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps({"environment": environment(**changes), "benchmarks": entries}))
    return path


def folder(path, seed, processes=6, **how):
    for process in range(processes):
        run(path / f"{process}.json", 100 * seed + process, **how)
    return path


def verdicts(old, new, **how):
    found = compare.changes(compare.read(old), compare.read(new), margin=how.pop("margin", 0.0), **how)
    return {change.row[3]: change.verdict for change in found}


@pytest.mark.parametrize("processes", [1, 6])
def test_runs_in_which_nothing_changed_raise_no_more_alarms_than_stated(tmp_path, processes):
    alarms, tries = 0, 8
    for seed in range(tries):
        how = {"between": 0.01 if processes > 1 else 0.0, "processes": processes}
        old, new = (folder(tmp_path / f"{seed}{side}", 2 * seed + side, **how) for side in (0, 1))
        words = verdicts(old, new)
        assert len(words) == ROWS
        alarms += any(word in ("faster", "slower") for word in words.values())
    assert alarms <= 2  # at 5 % each, three of eight or more have a probability of 0.6 %


@pytest.mark.parametrize("processes", [1, 6])
@pytest.mark.parametrize("factor, word", [(1.05, "slower"), (1 / 1.05, "faster")])
def test_a_planted_change_of_5_percent_is_found(tmp_path, processes, factor, word):
    how = {"spread": 0.005, "between": 0.002 if processes > 1 else 0.0, "processes": processes}
    old, new = folder(tmp_path / "a", 1, **how), folder(tmp_path / "b", 2, factor=factor, **how)
    words = verdicts(old, new, margin=0.02)
    assert words.pop(f"layer {SLOW}") == word
    assert "faster" not in words.values()
    assert "slower" not in words.values()


def test_what_differs_between_processes_is_seen_by_several_alone(tmp_path):
    one = verdicts(folder(tmp_path / "a", 1, processes=1, between=0.05), folder(tmp_path / "b", 2, 1, between=0.05))
    several = verdicts(folder(tmp_path / "c", 3, between=0.05), folder(tmp_path / "d", 4, between=0.05))
    assert sum(word in ("faster", "slower") for word in one.values()) > ROWS / 4
    assert not {"faster", "slower"} & set(several.values())


def test_too_few_samples_or_processes_are_said(tmp_path):
    few = compare.changes(*(compare.read(run(tmp_path / f"{i}.json", i, samples=8)) for i in (1, 2)), margin=0.03)
    assert {(change.verdict, change.reason) for change in few} == {
        ("ambiguous", "8 samples, of 15 that 99.98 % take")
    }  # fmt: skip
    two = verdicts(folder(tmp_path / "a", 1, processes=2), folder(tmp_path / "b", 2))
    assert set(two.values()) == {"ambiguous"}


def test_the_interval_covers_the_median_as_often_as_it_says():
    noise = np.random.default_rng(0)
    for confidence in (0.9, 0.99):
        missed = 0
        for _ in range(2000):
            low, high = compare._covering(np.exp(noise.standard_normal(15)), confidence)
            missed += not low <= 1 <= high
        assert missed / 2000 <= 1 - confidence + 0.01


def test_rows_that_appear_and_vanish_are_listed(tmp_path):
    old, new = run(tmp_path / "old.json", 1, rows=9), run(tmp_path / "new.json", 2, rows=8)
    words = verdicts(old, new)
    assert words["layer 8"] == "vanished"
    assert verdicts(new, old)["layer 8"] == "appeared"


def test_the_exit_status_is_what_was_asked_for(tmp_path, capsys):
    old = run(tmp_path / "old.json", 1, spread=0.001)
    new = run(tmp_path / "new.json", 2, spread=0.001, factor=1.2, commit="another")
    assert main(["compare", str(old), str(new)]) == 0
    assert main(["compare", str(old), str(new), "--fail-on", "slower"]) == 1
    assert main(["compare", str(new), str(old), "--fail-on", "slower"]) == 0
    assert main(["compare", str(old), str(old), "--fail-on", "ambiguous"]) == 0
    said = capsys.readouterr().out
    assert f"| slower | conv fprop Net layer {SLOW} float32 torch |" in said
    assert "- commit: 6e1f659c0ffee → another" in said
    assert "1 slower, 209 same" in said


def test_all_pages_are_written_and_say_the_same(tmp_path):
    old, new = run(tmp_path / "old.json", 1), run(tmp_path / "<b>.json", 2, factor=2.0)
    assert main(["compare", str(old), str(new), "--output", str(tmp_path / "out")]) == 0

    def no_constants(name):
        raise AssertionError(f"{name} is no JSON")

    (one,) = json.loads((tmp_path / "out/compare.json").read_text(), parse_constant=no_constants)["comparisons"]
    assert one["changes"][0]["verdict"] == "slower"
    assert one["changes"][0]["row"][3] == f"layer {SLOW}"
    page = (tmp_path / "out/compare.html").read_text()
    assert page.count("<tr>") >= ROWS
    assert "<b>.json" not in page
    assert "&lt;b&gt;.json" in page
    assert len((tmp_path / "out/compare.md").read_text().splitlines()) < 60


def test_other_machines_are_compared_when_asked_and_labelled(tmp_path, capsys):
    old, new = run(tmp_path / "old.json", 1), run(tmp_path / "new.json", 2, gpu="NVIDIA H200")
    assert main(["compare", str(old), str(new)]) == 2
    assert "accepted is the same, or --across-machines" in capsys.readouterr().err
    assert main(["compare", str(old), str(new), "--across-machines"]) == 0
    assert "**Different machines**" in capsys.readouterr().out


def test_a_journal_beside_its_results_is_not_a_second_process(tmp_path):
    run(tmp_path / "a" / "results.json", 1)
    (tmp_path / "a" / "results.journal.jsonl").write_text("{}\n")
    assert len(compare.read(tmp_path / "a").environments) == 1


@pytest.mark.parametrize("make, said", [(lambda path: path.mkdir(), "without results"), (lambda path: None, "no such")])
def test_what_cannot_be_read_is_named(tmp_path, capsys, make, said):
    make(tmp_path / "x")
    assert main(["compare", str(tmp_path / "x"), str(tmp_path / "x")]) == 2
    assert said in capsys.readouterr().err


def test_what_lies_beside_results_in_a_folder_is_no_process(tmp_path):
    old = run(tmp_path / "a" / "results.json", 1, spread=0.001).parent
    row = {"kernel": "conv_fprop", "target": "cuda:90", "ok": True}
    (old / "compile.json").write_text(json.dumps({"kind": "compile", "rows": [row]}))
    assert main(["compare", str(old), str(old), "--output", str(old)]) == 0
    assert len(compare.read(old).environments) == 1
    assert set(verdicts(old, old, margin=0.03).values()) == {"same"}
