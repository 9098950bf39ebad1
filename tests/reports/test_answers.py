"""What a reader who knows the page alone can tell from it, and where it says that it cannot."""

import re

import pytest

from tests.reports.made import Page, made, rows
from tests.reports.reports_data import benchmark, tuned


@pytest.fixture
def small():
    """Two contenders, timed and not compared with float64."""
    times = {"cudnn": 1.0, "triton": 0.8}
    return {
        "benchmarks": [
            benchmark("conv", "fprop", "Net", "layer", "float16", name, [t] * 7) for name, t in times.items()
        ]
    }


def test_a_page_without_checks_says_that_it_cannot_tell(tmp_path, small):
    text = Page((made(tmp_path, {"benchmarks": small["benchmarks"]}) / "index.html").read_text()).text
    assert "No result was compared with float64: whether results are right is not in this report." in text
    assert "whether a type such as bfloat16 is safe to compute in, they do not say" in text


def test_a_lone_contender_is_its_own_baseline_and_nothing_is_claimed_of_it(tmp_path):
    out = made(tmp_path, {"benchmarks": [benchmark("conv", "fprop", "Net", "layer", "float16", "triton", [1.0] * 7)]})
    assert rows(out, "overall") == []
    assert [row["verdict"] for row in rows(out, "verdicts")] == ["baseline"]
    text = Page((out / "index.html").read_text()).text
    assert "Nothing is compared here: what was timed has nothing beside it that it could be compared with." in text
    assert "1.00 s" in text
    assert "nan" not in text.lower().split()


def test_where_there_is_no_interval_that_is_said(tmp_path, small):
    """Of four samples: in brackets, beside the time and behind a mean there was nothing, "1.25× ()"."""
    for entry in small["benchmarks"]:
        entry["stats"]["data"] = entry["stats"]["data"][:4]
    failed = tuned("conv_fprop", "Net", "layer", {"a": None, "b": None}, "a")
    uncounted = {"suite": "weight_prep", "pass": "forward", "net": "Net", "contender": "triton", "launches": 2}
    out = made(tmp_path, small | {"tuned": [failed], "counted": [uncounted]})
    for name in ("summary.md", "full.md"):
        text = (out / name).read_text()
        assert "1.25× (no interval)" in text
        assert not re.search(r"\((—|nan|inf)?\)", text)
    page = (out / "index.html").read_text()
    for cell in ("<b>1.00 s</b><small>no interval</small>", "<small>no interval · 800 ms</small>"):
        assert cell in page
    assert "<small></small>" not in page


def test_what_is_timed_or_modelled_in_several_ways_is_a_table_for_each(tmp_path):
    """In one, whose label was the first way's, the sum of a net's layers was the last way's."""
    ways = [
        ({"device": "cuda", "clock": "device events", "label": "measured"}, 1.0, "2.00 s"),
        ({"device": "cpu", "clock": "wall clock", "label": "measured"}, 10.0, "20.0 s"),
        ({"device": "cuda", "clock": "roofline", "label": "modelled"}, 0.5, "1.00 s"),
    ]
    entries = [
        benchmark("conv", "fprop", "Net", layer, "float16", name, [factor * time] * 7, **way)
        for way, factor, _ in ways
        for layer in "ab"
        for name, time in (("cudnn", 1.0), ("triton", 0.8))
    ]
    out = made(tmp_path, {"benchmarks": entries})
    text = Page((out / "index.html").read_text()).text
    tables = text[text.rindex("Every layer") :].split("conv against cudnn ")[1:]
    for table, (way, _, total) in zip(tables, ways, strict=True):
        assert table.startswith(f"{way['label']} {way['device']} · {way['clock']} · 7 samples a time")
        assert f"Net fprop · float16 {total}" in table
        assert table.count("▲ 1.25×") == 3, "the mean and two layers"
    assert "conv against cudnn · cuda · roofline · modelled: triton 1.25×" in text


def test_what_the_intervals_are_made_of_is_said(tmp_path, small):
    assert "7 samples a time" in Page((made(tmp_path / "one", small) / "index.html").read_text()).text
    for entry in small["benchmarks"]:
        entry["stats"]["data"] *= 5
        entry["extra_info"]["samples_per_process"] = [7] * 5
    assert (
        "35 samples a time, from 5 processes" in Page((made(tmp_path / "five", small) / "index.html").read_text()).text
    )
