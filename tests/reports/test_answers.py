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


def test_what_the_intervals_are_made_of_is_said(tmp_path, small):
    assert "7 samples a time" in Page((made(tmp_path / "one", small) / "index.html").read_text()).text
    for entry in small["benchmarks"]:
        entry["stats"]["data"] *= 5
        entry["extra_info"]["samples_per_process"] = [7] * 5
    assert (
        "35 samples a time, from 5 processes" in Page((made(tmp_path / "five", small) / "index.html").read_text()).text
    )
