"""Every kind of input that no report can be made from is refused by name."""

import copy
import json
import math
import random

import pytest

from reports import journal
from reports.__main__ import main
from reports.load import ReportError, load
from reports.render import render
from reports.report import build
from tests.reports.reports_data import benchmark, check, compile_table, cpu_results, loop_table

PLACE = ("conv", "fprop", "Net", "layer", "float16", "cudnn")


def refused(tmp_path, content):
    file = tmp_path / "input.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ReportError) as error:
        load([file])
    assert str(error.value).startswith((str(file), file.name)), "the message names the file"
    return str(error.value)


@pytest.mark.parametrize(
    "content, expected",
    [
        ("", "empty file"),
        ("{", "not JSON"),
        ("[1, 2]", "neither `benchmarks` nor `kind`"),
        ({}, "neither `benchmarks` nor `kind`"),
        ({"kind": "trace"}, "unknown kind 'trace'"),
        ({"kind": "compile"}, "without `rows`"),
        ({"kind": "compile", "rows": []}, "without `rows`"),
        ({"kind": "compile", "rows": [{"kernel": "conv"}]}, "rows[0] lacks `target`, `ok`"),
        ({"benchmarks": []}, "holds no benchmark"),
        ({"benchmarks": {}}, "holds no benchmark"),
        ({"benchmarks": ["a"]}, "`benchmarks` must be a list of objects"),
        (
            {"benchmarks": [{"name": "test_x", "stats": {"data": [1]}}]},
            "benchmarks[0] (test_x) lacks `extra_info`",
        ),
        ({"benchmarks": [], "accuracy": [{"suite": "conv", "contender": "a"}]}, "accuracy[0] lacks `passed`"),
        ({"benchmarks": [], "not_run": [{"suite": "conv"}]}, "not_run[0] lacks `reason`"),
        ({"benchmarks": [], "not_run": [{"reason": "x"}], "environment": []}, None),
        ({"benchmarks": [], "not_run": [{"reason": "x"}], "environment": "cpu"}, "`environment` is a str"),
    ],
)
def test_unusable_content(tmp_path, content, expected):
    if expected is None:
        file = tmp_path / "input.json"
        file.write_text(json.dumps(content))
        assert len(load([file]).not_run) == 1
    else:
        assert expected in refused(tmp_path, content)


@pytest.mark.parametrize("key", ["suite", "contender"])
def test_a_benchmark_without_its_name_parts(tmp_path, key):
    entry = benchmark(*PLACE, [1.0] * 7)
    del entry["extra_info"][key]
    assert f"extra_info lacks `{key}`" in refused(tmp_path, {"benchmarks": [entry]})


@pytest.mark.parametrize(
    "data",
    [[], "abc", [1, "x"], [1, "1"], [1, True], [0.0], [-1.0], [math.nan], [math.inf], [[1.0]], None],
)
def test_times_that_are_none(tmp_path, data):
    entry = benchmark(*PLACE, [1.0])
    entry["stats"]["data"] = data
    message = refused(tmp_path, {"benchmarks": [entry]})
    assert "stats.data must be" in message or "lacks `data`" in message


@pytest.mark.parametrize("nets", ["Net", ["Net"], {"Net": "often"}, {"Net": 0}])
def test_nets_that_map_to_no_number(tmp_path, nets):
    content = {"benchmarks": [benchmark(*PLACE, [1.0], nets=nets)]}
    assert "extra_info.nets must map nets to how often" in refused(tmp_path, content)


@pytest.mark.parametrize(
    "extra, expected",
    [
        ({"published_batch": 1.5}, "`published_batch` is 1.5; accepted is a whole number"),
        ({"published_batch": True}, "`published_batch` is True; accepted is a whole number"),
        ({"flops": "1e9"}, "`flops` is '1e9'; accepted is a number from 0 on"),
        ({"bytes": [1]}, "`bytes` is [1]; accepted is a number from 0 on"),
        ({"peak_bytes": -1}, "`peak_bytes` is -1; accepted is a number from 0 on"),
        ({"flops": math.inf}, "`flops` is inf; accepted is a number from 0 on"),
        ({"published_batch": -128}, "`published_batch` is -128; accepted is a whole number from 0 on"),
        ({"label": {"a": 1}}, "`label` is {'a': 1}; accepted is text"),
        (
            {"problem": {"N": None}},
            "`problem` is {'N': None}; accepted is an object, its sizes whole numbers from 0 on",
        ),
        ({"problem": {"N": -1}}, "`problem` is {'N': -1}; accepted is an object, its sizes whole numbers from 0 on"),
        ({"problem": {"N": 0.5}}, "`problem` is {'N': 0.5}; accepted is an object, its sizes whole numbers"),
        ({"problem": "large"}, "`problem` is 'large'; accepted is an object"),
        ({"nets": {"Net": 1.5}}, "extra_info.nets must map nets to how often"),
    ],
)
def test_values_of_another_kind(tmp_path, extra, expected):
    message = refused(tmp_path, {"benchmarks": [benchmark(*PLACE, [1.0], **extra)]})
    assert expected in message
    assert "conv" in message, "the row is named"


@pytest.mark.parametrize("batch", [128, 128.0, None])
def test_a_whole_number_may_be_written_as_a_float_or_left_out(tmp_path, batch):
    file = tmp_path / "input.json"
    file.write_text(json.dumps({"benchmarks": [benchmark(*PLACE, [1.0], published_batch=batch)]}))
    (read,) = load([file]).benchmarks["published_batch"]
    assert read == 128 or (batch is None and math.isnan(read))


DEEP = "[" * 30 + "]" * 30


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[" * 100_000, "JSON that cannot be read"),
        ("9" * 5000, "JSON that cannot be read"),
        (json.dumps({"benchmarks": [], "environment": {"deep": json.loads(DEEP)}}), "nested deeper than 20 levels"),
        ('{"benchmarks": [], "flops": 1' + "0" * 400 + "}", "a whole number of 401 digits"),
        (
            '{"benchmarks": [], "environment": {"gpu": "a\\ud800"}}',
            "'a\\ud800' holds a character that no page can show",
        ),
        ('{"benchmarks": [], "\\u0000": 1}', "'\\x00' holds a character that no page can show"),
    ],
)
def test_json_that_no_table_or_page_can_hold(tmp_path, text, expected):
    assert expected in refused(tmp_path, text)


def test_an_error_may_be_infinite_and_no_less_than_nothing(tmp_path):
    """What a wrong result is off by may be no number: that is why it is wrong."""
    file = tmp_path / "input.json"
    for error in (math.inf, math.nan):
        file.write_text(json.dumps({"benchmarks": [], "accuracy": [check(*PLACE, error=error, passed=False)]}))
        assert not load([file]).accuracy["passed"].any()
    message = refused(tmp_path, {"benchmarks": [], "accuracy": [check(*PLACE, error=-1.0)]})
    assert "`error` is -1.0; accepted is a number from 0 on" in message


def test_a_layer_counts_as_often_as_its_nets_have_it(tmp_path):
    """``count`` by itself, -5 say, would be a weight of means."""
    file = tmp_path / "input.json"
    file.write_text(json.dumps({"benchmarks": [benchmark(*PLACE, [1.0], nets={"A": 4, "B": 6}, count=-5)]}))
    assert list(load([file]).benchmarks["count"]) == [10]


STARTED = [{"environment": {"gpu": "G"}}, {"started": ["conv", "fprop"]}, {"started": ["conv", "dgrad"]}]


@pytest.mark.parametrize(
    "lines, cut, expected",
    [
        (STARTED, "", ["Begun and not finished: conv fprop, conv dgrad."]),
        ([*STARTED, {"row": ["conv", "fprop"]}], '{"row": ["conv", "dgr', ["Begun and not finished: conv dgrad."]),
        (
            [*STARTED, {"row": ["conv", "fprop"]}, {"faulted": ["conv", "dgrad"]}, {"warning": "the GPU is lost"}],
            "",
            ["the GPU is lost"],
        ),
        ([{"environment": {}}], '{"row": [', ["The last line was cut off: what it held is not here."]),
        ([{"row": ["conv"]}], '{"row": [', ["The last line was cut off: what it held is not here."]),
    ],
)
def test_what_a_journal_was_ended_in_is_said(lines, cut, expected):
    found = journal.document("".join(json.dumps(line) + "\n" for line in lines) + cut)
    assert found["environment"]["warnings"] == expected


def test_a_byte_order_mark_is_no_content(tmp_path):
    file = tmp_path / "input.json"
    file.write_text("\ufeff" + json.dumps({"benchmarks": [benchmark(*PLACE, [1.0])]}), encoding="utf-8")
    assert len(load([file]).benchmarks) == 1


def test_two_times_for_one_thing(tmp_path):
    message = refused(tmp_path, {"benchmarks": [benchmark(*PLACE, [1.0]), benchmark(*PLACE, [2.0])]})
    assert "more than one benchmark of conv · fprop · Net · layer · float16 · cudnn" in message


def test_optional_keys_may_be_missing(tmp_path):
    entry = {"extra_info": {"suite": "s", "contender": "c"}, "stats": {"data": [1.0]}}
    row = {"kernel": "k", "target": "cuda:90", "ok": True}
    for name, content in (("a", {"benchmarks": [entry]}), ("b", {"kind": "compile", "rows": [row]})):
        (tmp_path / name).write_text(json.dumps(content))
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "index.html").exists()


def test_both_kinds_are_read_and_told_apart(tmp_path):
    contents = (cpu_results(), compile_table(), loop_table())
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for file, content in zip(files, contents, strict=True):
        file.write_text(json.dumps(content))
    results = load(files)
    assert [run["kind"] for run in results.runs] == ["results", "compile", "compile"]
    for name, run, key in (
        ("benchmarks", 0, "benchmarks"),
        ("accuracy", 0, "accuracy"),
        ("not_run", 0, "not_run"),
        ("compiled", 1, "rows"),
        ("loops", 2, "rows"),
    ):
        frame = getattr(results, name)
        assert set(frame["run"]) == {run}
        assert len(frame) == len(contents[run][key])


def test_whatever_a_file_holds_it_is_a_report_or_one_error(tmp_path):
    """One value after another is replaced by what nobody expects there: never another exception, never a report that
    cannot be written."""
    contents = [cpu_results(), compile_table(), loop_table()]
    contents[0]["benchmarks"], contents[0]["accuracy"] = contents[0]["benchmarks"][:4], contents[0]["accuracy"][-2:]
    contents[0]["not_run"] = contents[0]["not_run"][:1]
    contents[1]["rows"], contents[2]["rows"] = contents[1]["rows"][-3:], contents[2]["rows"][:3]
    draw, file, made = random.Random(0), tmp_path / "input.json", 0
    for content in contents:
        places = list(_places(content))
        for place in draw.sample(places, 8):
            changed = copy.deepcopy(content)
            *above, key = place
            _at(changed, above)[key] = draw.choice(UNEXPECTED)
            file.write_text(json.dumps(changed))
            try:
                files = render(build(load([file])))
            except ReportError:
                continue
            assert all(text.encode() for text in files.values())
            made += 1
    assert made > 6


UNEXPECTED = [
    None,
    1.5,
    -1,
    0,
    True,
    10**20,
    1e308,
    5e-324,
    math.nan,
    math.inf,
    "",
    "x",
    "$x$",
    [],
    {},
    [None],
    {"N": 1},
]


def _places(value, above=()):
    """The path of every value inside, of lists the first three."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value[:3])
        for key, part in items:
            yield (*above, key)
            yield from _places(part, (*above, key))


def _at(value, path):
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize("what", ["missing", "directory", "binary"])
def test_the_command_line_names_the_file_and_exits_with_2(tmp_path, capsys, what):
    file = tmp_path / "input"
    if what == "directory":
        file.mkdir()
    elif what == "binary":
        file.write_bytes(b"\xff\xfe\x00")
    assert main([str(file), "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert str(file) in message
    assert "accepted are a results file of" in message
    assert not (tmp_path / "out").exists(), "nothing is written"
