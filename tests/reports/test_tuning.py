"""The autotune landscape in reports, from made-up timings: nothing here was measured."""

import json

import pytest

from reports import chart, figures, journal
from reports.__main__ import main
from reports.load import ReportError, load
from tests.reports.made import Page, made, rows
from tests.reports.reports_data import SYNTHETIC_GPU, benchmark, environment, tuned

PLACE = ("conv", "fprop", "Net", "64x8x8-64 3x3", "bfloat16")
TIMES = {"a": 0.2, "b": 0.1, "c": 0.4, "d": None}


def results(*landscapes, **changes):
    times = {"cudnn": 1.0, "triton": 0.8}
    benchmarks = [benchmark(*PLACE, name, [seconds] * 7, device="cuda") for name, seconds in times.items()]
    return {
        "environment": environment(gpu=SYNTHETIC_GPU), "benchmarks": benchmarks, "tuned": list(landscapes),
    } | changes  # fmt: skip


def landscape(times=TIMES, default="a", **extra):
    return tuned("conv_fprop", "Net", "64x8x8-64 3x3", times, default) | extra


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    other = landscape({"a": 0.3, "b": 0.3}, unmeasured=2, layer="128x8x8-128 3x3")
    return made(tmp_path_factory.mktemp("tuned"), results(landscape(), other))


def test_a_problem_has_its_best_median_and_worst_time_its_failures_and_its_pick(report):
    row, level = rows(report, "tuning")
    assert (row["configs"], row["failed"], row["unmeasured"], row["pick"]) == ("4", "1", "0", "b")
    times = [float(row[name]) for name in ("best", "median", "worst", "default_seconds")]
    assert times == pytest.approx([1e-4, 2e-4, 4e-4, 2e-4])
    ratios = [float(row[f"{name}_over_best"]) for name in ("median", "worst", "default")]
    assert ratios == pytest.approx([2, 4, 2])
    assert (level["failed"], level["unmeasured"], level["pick"]) == ("0", "2", "a")
    assert [row["seconds"] for row in rows(report, "configs")][:4] == ["0.0002", "0.0001", "0.0004", ""]


def test_page_and_summary_tell_it(report):
    page = (report / "index.html").read_text()
    said = (
        "Tuning: 6 configs of 2 problems were measured, 1 failed; the median config takes 1.41 times as long as the "
        "fastest (2 at most); the cost model's default takes 1.41 times as long as the fastest (2 at most)."
    )
    text = Page(page).text
    assert said in text
    assert "4 ✕ 1 100 µs 200 µs (2.00×) 400 µs (4.00×) 200 µs (2.00×) b default: a" in text
    assert "2 of 4 0 300 µs 300 µs (1.00×)" in text
    assert said in (report / "summary.md").read_text().replace("\\", "")
    assert "| conv_fprop | Net 64x8x8-64 3x3 bfloat16 | 4 | 1 | 100 µs | 200 µs (2.00×) |" in (
        report / "full.md"
    ).read_text().replace("\\", "")


def test_the_figure_says_how_it_was_obtained_and_marks_pick_and_default(report):
    drawn = (report / "figures" / "tuning.svg").read_text()
    assert f"measured · {SYNTHETIC_GPU}" in drawn
    for mark in ("pick", "default", "other config", "median"):
        assert f">{mark}</text>" in drawn


def test_of_many_problems_those_with_most_to_gain_are_drawn(tmp_path):
    problems = [landscape({"a": 1.0, "b": 1.0 + number}, layer=f"layer {number}") for number in range(60)]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(results(*problems)))
    drawn = figures.tuning(load([file]), "measured")
    ((_, shown),) = drawn.groups
    assert [row.name for row in shown][:2] == ["layer 59 bfloat16", "layer 58 bfloat16"]
    assert len(shown) == figures.MOST_TUNED
    assert drawn.label == f"measured, {figures.MOST_TUNED} of 60 problems: those that lie furthest apart"
    assert "layer 59" in chart.svg(drawn)


@pytest.mark.parametrize("content", [results(), {k: v for k, v in results().items() if k != "tuned"}])
def test_without_timings_nothing_is_said_of_tuning(tmp_path, content):
    """A run on a CPU, or a file of before."""
    out = made(tmp_path, content)
    for name in ("index.html", "summary.md", "full.md"):
        assert "uning" not in (out / name).read_text().replace("compiling, tuning", "")
    assert not (out / "figures" / "tuning.svg").exists()
    assert rows(out, "tuning") == []


@pytest.mark.parametrize("times", [{"a": None}, {}])
def test_a_problem_without_a_working_config_has_no_pick(tmp_path, times):
    out = made(tmp_path, results(landscape(), landscape(times, layer="broken")))
    row = next(row for row in rows(out, "tuning") if row["layer"] == "broken")
    assert (row["pick"], row["best"], row["median_over_best"]) == ("", "", "")
    assert "nan" not in Page((out / "index.html").read_text()).text.lower().split()


@pytest.mark.parametrize("times", [[], "fast", {"a": 0}, {"a": -1.0}, {"a": True}, {"a": "1"}, {"a": float("nan")}])
def test_times_that_are_none_are_refused(tmp_path, times):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(results(landscape() | {"milliseconds": times})))
    with pytest.raises(ReportError, match=r"tuned\[0\].* must map configs to positive times|lacks `milliseconds`"):
        load([file])


def test_a_hostile_config_stays_text(tmp_path):
    name = "<script>alert(1)</script>"
    out = made(tmp_path, results(landscape({name: 1.0, "b": 2.0}, default="b") | {"kernel": name, "layer": name}))
    assert Page((out / "index.html").read_text()).tags.count("script") == 1
    assert "<script" not in (out / "full.md").read_text()


def test_of_a_journal_the_last_landscape_holds():
    """A run that went on tells what it told before, and more."""
    lines = [{"tuned": [landscape()]}, {"tuned": [landscape(), landscape(layer="later")]}]
    found = journal.document("".join(json.dumps(line) + "\n" for line in lines))
    assert [entry["layer"] for entry in found["tuned"]] == ["64x8x8-64 3x3", "later"]


def test_results_that_hold_tuning_can_be_compared(tmp_path, capsys):
    for name in ("old", "new"):
        (tmp_path / f"{name}.json").write_text(json.dumps(results(landscape())))
    assert main(["compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0
    assert "slower" not in capsys.readouterr().err
