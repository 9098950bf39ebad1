"""What a report and a comparison cost for each row, in calls of Python: a number that a loaded machine does not change.

5,000 rows are to take less than 10 s. A call of pandas, numpy or scipy for each row is itself hundreds of calls.
"""

import cProfile
import json

import pytest

from reports.__main__ import main
from reports.load import load
from reports.render import render
from reports.report import build
from tests.reports.reports_data import benchmark, check

CONTENDERS = {"cudnn": 1.0, "triton": 0.9, "inductor": 1.3, "cudnn-nchw": 1.2}


def calls_of(function):
    profile = cProfile.Profile()
    profile.runcall(function)
    return sum(entry.callcount for entry in profile.getstats())


@pytest.fixture(scope="module")
def of_size(tmp_path_factory):
    """``of_size(n)``: a results file of n rows of five processes."""
    folder = tmp_path_factory.mktemp("speed")

    def written(count):
        places = [("conv", "fprop", "Net", f"{number}x8x8-{number} 3x3", "float16") for number in range(count // 4)]
        rows = [(place, name, factor) for place in places for name, factor in CONTENDERS.items()]
        times = [factor * (1 + 0.01 * step) for factor in CONTENDERS.values() for step in range(15)]
        benchmarks = [
            benchmark(*place, name, [factor * time for time in times[:15]], samples_per_process=[3] * 5)
            for place, name, factor in rows
        ]
        accuracy = [check(*place, name) for place, name, _ in rows]
        file = folder / f"{count}.json"
        file.write_text(json.dumps({"benchmarks": benchmarks, "accuracy": accuracy}))
        return file

    return written


def for_each_row(of_size, function):
    """The difference between 80 more rows and none more: what is done once is not in it."""
    few, many = of_size(80), of_size(160)
    function(few)  # what is done once in a process
    return (calls_of(lambda: function(many)) - calls_of(lambda: function(few))) / 80


def test_a_row_of_a_report_takes_few_calls(of_size):
    assert for_each_row(of_size, lambda file: render(build(load([file])))) < 2200


def test_a_row_of_a_comparison_takes_few_calls(of_size, capsys):
    assert for_each_row(of_size, lambda file: main(["compare", str(file), str(file)])) < 2800
