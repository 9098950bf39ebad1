"""Numbers, counts and commands as a reader of the page finds them."""

import shlex

import pytest

from reports import page, render, rerun


@pytest.mark.parametrize(
    "value, expected",
    [
        (1.5, "1.50 s"),
        (0.0123, "12.3 ms"),
        (9.996e-4, "1.00 ms"),
        (1e-6, "1.00 µs"),
        (2e-12, "0.00 ns"),
        (float("nan"), "—"),
    ],
)
def test_times_read_well(value, expected):
    assert render.time(value) == expected


def test_intervals_read_well():
    assert render.span(1.181, 1.184) == "1.181–1.184"
    assert render.span(0.98, 1.02) == "0.98–1.02"
    assert render.span(9.8e-4, 1.2e-3, "time") == "0.98–1.20 ms"
    assert render.span(float("nan"), float("nan")) == "no interval"


@pytest.mark.parametrize(
    "over, expected", [(1.5, "1.00 ms (1.50×)"), (float("nan"), "1.00 ms"), (float("inf"), "1.00 ms")]
)
def test_what_is_beside_a_time_is_left_out_where_there_is_nothing(over, expected):
    assert render.beside(1e-3, over) == expected


@pytest.mark.parametrize(
    "nets, expected",
    [
        ({"A": 8}, "8 times in the net"),
        ({"A": 4.0, "B": 6.0}, "4 and 6 times in the nets"),
        ({"A": 1, "B": 1}, ""),
        ({"": 1}, ""),
    ],
)
def test_how_often_a_layer_occurs_reads_well(nets, expected):
    assert page.occurs(nets) == expected


@pytest.mark.parametrize("suite", ["conv; rm -rf", "../conv", "", "ä"])
def test_no_command_for_a_suite_that_is_no_file(suite):
    row = {"suite": suite, "pass": "fprop", "nets": {"N": 1}, "layer": "l", "dtype": "float16", "problem": None}
    assert rerun.command(row | {"batch": 1.0, "published_batch": 1.0}, ["torch"]) == ""


def test_a_command_quotes_what_a_shell_would_take_apart():
    row = {"suite": "conv", "pass": "$(x)", "nets": {"a'b": 1}, "layer": "; ls", "dtype": "", "problem": {"K": 1}}
    command = rerun.command(row | {"batch": float("nan"), "published_batch": float("nan")}, ["x y"])
    assert shlex.split(command)[4:] == [
        "bench/test_conv.py", "--nets=a'b", "--layers=; ls", "--contenders=x y", "--benchmark-json=again.json",
    ]  # fmt: skip
