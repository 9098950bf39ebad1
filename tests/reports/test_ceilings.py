"""Rates, and their share of the ceilings that were measured on the machine."""

import json
import re

import numpy as np
import pytest

from reports import ceilings, roofline, tables, verdict
from reports.load import load
from reports.render import render
from reports.report import build

CEILINGS = {
    "copy": {"short": 4e12, "sustained": 3.9e12},
    "bfloat16": {"short": 800e12, "sustained": 680e12},
}
PLACE = {"suite": "conv", "pass": "fprop", "net": "N", "layer": "8x8x8-8 3x3", "dtype": "bfloat16", "device": "cuda"}


def entry(contender, seconds, **more):
    info = {**PLACE, "contender": contender, "clock": "device events, cold L2", "label": "measured", **more}
    return {"name": contender, "extra_info": info, "stats": {"data": [seconds * (1 + i / 1000) for i in range(11)]}}


@pytest.fixture
def document():
    work = {"flops": 60e9, "bytes": 200e6}
    return {
        "environment": {"gpu": "H200", "commit": "1", "ceilings": CEILINGS, "warnings": ["the SM clock fell"]},
        "benchmarks": [entry("cudnn", 150e-6, **work), entry("triton", 100e-6, **work)],
    }


@pytest.fixture
def written(tmp_path, document):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    "flops, moved, expected",
    [(60e9, 200e6, 0.75), (6e9, 200e6, 0.5), (np.nan, 200e6, 0.5), (np.nan, np.nan, np.nan)],
)
def test_share_is_of_the_nearer_ceiling(flops, moved, expected):
    row = {"dtype": "bfloat16", "flops": flops, "bytes": moved}
    found = ceilings.share(row, 100e-6, {"ceilings": CEILINGS})
    assert found == pytest.approx(expected, nan_ok=True)
    assert np.isnan(ceilings.share(row, 100e-6, {}))
    assert np.isnan(ceilings.share({**row, "bytes": np.nan, "dtype": "float64"}, 1e-4, {"ceilings": CEILINGS}))


def test_rates_and_share_stand_beside_each_time(written):
    report = build(load([written]))
    shares = dict(zip(report.comparisons["contender"], report.comparisons["share"], strict=True))
    assert shares["triton"] == pytest.approx(0.75, rel=0.01)
    page = render(report)["index.html"]
    assert "597 TFLOP/s · 1.99 TB/s · 75%" in page
    assert "398 TFLOP/s · 1.33 TB/s · 50%" in page


def test_the_roofline_is_drawn_where_there_are_ceilings_and_says_the_shares(written, document):
    files = render(build(load([written])))
    assert re.search(
        r"<desc>measured; ceilings 800 TFLOP/s and 4 TB/s; shares of the nearer one: cudnn 50% to 50%, "
        r"triton 75% to 75%\.</desc>",
        files["figures/roofline-1.svg"],
    )
    assert "Roofline: H200, bfloat16" in files["index.html"]
    written.write_text(json.dumps({**document, "environment": {}}))
    files = render(build(load([written])))
    assert not [name for name in files if "roofline" in name]
    assert 'id="roofline"' not in files["index.html"]


@pytest.mark.parametrize("narrow", [False, True])
def test_a_roofline_s_legend_lies_above_all_marks(tmp_path, document, narrow):
    """Inside the axes it lay over the slowest: a training step's baseline was not to be seen."""
    document["benchmarks"].append(entry("slow", 1.0, flops=60e9, bytes=1e3))
    files = [tmp_path / name for name in ("a.json", "b.json")]
    for file in files:
        file.write_text(json.dumps(document))
    report = build(load(files))
    first, second = roofline.roofs(report.comparisons, report.results.runs)
    assert (first["title"], second["title"]) == ("H200, bfloat16, a.json", "H200, bfloat16, b.json")
    text = roofline.svg(first, narrow=narrow)
    legend = [float(y) for y in re.findall(r'y="(\S+)" transform="[^"]*">(?:measured ceilings|baseline|others)<', text)]
    marks = [float(y) for path in re.findall(r'd="M([^"]*)h0"', text) for y in path.split()[1::2]]
    assert (len(legend), len(marks)) == (3, 3)
    assert max(legend) < min(marks)


def test_ceilings_are_said_for_both_loads_and_warnings_are_shown(written):
    (found,) = tables.environments(load([written]))
    assert ("Measured ceilings", (
        "copy 4 TB/s (3.9 TB/s sustained), bfloat16 800 TFLOP/s (680 TFLOP/s sustained)"
    )) in found["known"]  # fmt: skip
    assert "the SM clock fell" in found["wary"]


NO_RATES = [None, "fast", 0, -1.0, True, np.nan, np.inf, [1e12]]


@pytest.mark.parametrize(
    "stated", [None, [], {"copy": 3}, *({"copy": {"short": rate, "sustained": 1e12}} for rate in NO_RATES)]
)
def test_what_is_no_ceiling_is_none(written, document, stated):
    written.write_text(json.dumps({**document, "environment": {"ceilings": stated}}))
    report = build(load([written]))
    assert np.isnan(report.comparisons["share"]).all()
    assert "Measured ceilings" not in render(report)["index.html"]


def test_a_journal_makes_the_same_report_as_its_results_file(tmp_path, written, document):
    journal = tmp_path / "results.journal.jsonl"
    row = {"row": ["conv"], "seconds": 1, "benchmarks": document["benchmarks"]}
    stated = [{"environment": {"gpu": "before the last"}}, {"environment": document["environment"]}]
    lines = [*stated, {"warning": "the SM clock fell"}, {"started": ["conv"]}, row]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    journal.write_text(text + text[: len(text) // 3].replace("\n", " "))
    ours, theirs = (
        verdict.compare(found, verdict.choose_baselines(found)) for found in (load([journal]), load([written]))
    )
    assert ours.equals(theirs)
    cut = "The last line was cut off: what it held is not here."
    assert load([journal]).runs[0]["environment"] == {
        **document["environment"], "warnings": [*document["environment"]["warnings"], cut],
    }  # fmt: skip


def test_a_broken_line_of_a_journal_is_named(tmp_path):
    journal = tmp_path / "j.jsonl"
    journal.write_text('{"environment": {}}\n{"started": [}\n{"started": []}\n')
    with pytest.raises(Exception, match=r"j.jsonl: not JSON \(line 2: "):
        load([journal])


def test_peak_memory_stands_with_the_rates():
    assert ceilings.rates({"flop_per_s": 2e9, "peak_bytes": 1.5e9}) == "2 GFLOP/s · peak 1.5 GB"
    assert ceilings.rates({"peak_bytes": float("nan")}) == ""


@pytest.mark.parametrize("seconds, said", [(2.13, "first call 2.1 s"), (0.01, ""), (float("nan"), "")])
def test_a_first_call_that_takes_a_while_stands_with_the_rates(seconds, said):
    assert ceilings.rates({"first_call_seconds": seconds}) == said
