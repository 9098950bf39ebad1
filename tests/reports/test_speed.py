"""What a report and a comparison cost for each row, in calls of Python and in bytes: numbers that a loaded machine does
not change.

A page of 5,000 rows is to take less than 10 s and 3 MB. A call of pandas, numpy or scipy for each row is itself
hundreds of calls.
"""

import cProfile
import json

import numpy as np
import pytest

from reports.__main__ import main
from reports.load import load
from reports.render import render
from reports.report import build
from tests.reports.reports_data import benchmark, check, environment

CONTENDERS = {"cudnn": 1.0, "triton": 0.97, "inductor": 1.3, "cudnn-nchw": 1.2}
SHARED = {"DiracNet-18": 4, "DiracNet-34": 6}
ROWS, MOST_BYTES = 5000, 2.6e6


def calls_of(function):
    profile = cProfile.Profile()
    profile.runcall(function)
    return sum(entry.callcount for entry in profile.getstats())


@pytest.fixture(scope="module", params=[1, 5], ids=["one process", "five processes"])
def of_size(request, tmp_path_factory):
    """``of_size(n)``: a results file of n rows, all that a cell may show in each, every number of its own size."""
    folder = tmp_path_factory.mktemp("speed")
    machine = environment(
        gpu="SYNTHETIC", ceilings={name: {"short": 4e12, "sustained": 4e12} for name in ("copy", "float16")}
    )

    def written(count):
        draw, benchmarks, accuracy = np.random.default_rng(0), [], []
        for number in range(count // len(CONTENDERS)):
            place = ("conv", ("fprop", "dgrad", "wgrad")[number % 3], ", ".join(SHARED))
            place += (f"{64 + number}x16x16-{64 + number} 3x3", "float16")
            for name, factor in CONTENDERS.items():
                time = 1e-4 * factor * np.exp(0.3 * draw.standard_normal())
                entry = benchmark(
                    *place, name, np.round(time * np.exp(0.02 * draw.random(15)), 9), nets=SHARED, device="cuda",
                    clock="device events, cold L2", peak_bytes=int(1e8 * (1 + draw.random())),
                    first_call_seconds=0.1 + draw.random(), flops=int(1e10 * (1 + draw.random())),
                    samples_per_process=[15 // request.param] * request.param,
                )  # fmt: skip
                benchmarks.append(entry)
                accuracy.append(check(*place, name))
        file = folder / f"{count}.json"
        file.write_text(json.dumps({"environment": machine, "benchmarks": benchmarks, "accuracy": accuracy}))
        return file

    return written


def for_each_row(of_size, function):
    """The difference between 80 more rows and none more: what is done once is not in it."""
    few, many = of_size(80), of_size(160)
    function(few)  # what is done once in a process
    return (calls_of(lambda: function(many)) - calls_of(lambda: function(few))) / 80


def test_a_row_of_a_report_takes_few_calls(of_size):
    assert for_each_row(of_size, lambda file: render(build(load([file])))) < 1100


def test_a_row_of_a_comparison_takes_few_calls(of_size, capsys):
    assert for_each_row(of_size, lambda file: main(["compare", str(file), str(file)])) < 1200


def test_a_page_of_many_rows_is_small(of_size):
    """Measured at 160 rows and at 320, and drawn on from there."""
    few, many = (len(render(build(load([of_size(count)])))["index.html"].encode()) for count in (160, 320))
    assert few + (ROWS - 160) / 160 * (many - few) < MOST_BYTES
