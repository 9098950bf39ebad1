"""python -m reports compare: its exit status, what it prints and writes, and what it refuses."""

import io
import json
import re
import sys

import pytest

from reports import compare
from reports.__main__ import main
from reports.changes import Change, Comparison
from reports.sides import STATED, Row
from tests.reports.test_sides import LAYERS, document, entries, written


def run(path, seed=1, **how):
    return written(path, document(seed, **how))


def strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def pair(tmp_path):
    """A run, and one in which all became 1.2 times as slow at another commit."""
    old = run(tmp_path / "old.json")
    return str(old), str(run(tmp_path / "new.json", 2, factor=1.2, changes={"commit": "another"}))


def test_the_exit_status_is_what_was_asked_for(pair, capsys):
    old, new = pair
    assert main(["compare", old, new]) == 0
    said = capsys.readouterr().out
    assert f"\n{LAYERS} slower\n" in said
    assert "| slower | conv fprop Net layer 0 float32 torch |" in said
    assert "- commit: 6e1f659c0ffee → another" in said
    assert "3 intervals within one process" in said
    assert main(["compare", old, new, "--fail-on", "slower"]) == 1
    assert main(["compare", old, old, new, "--fail-on", "slower"]) == 1
    assert main(["compare", new, old, "--fail-on", "slower"]) == 0
    assert main(["compare", new, old, "--fail-on", "slower", "--fail-on", "faster"]) == 1
    assert main(["compare", old, old, "--fail-on", "ambiguous"]) == 0


def test_what_is_ambiguous_fails_when_that_is_asked(tmp_path):
    old, new = (str(run(tmp_path / f"{seed}.json", seed, sizes=[3])) for seed in (1, 2))
    assert main(["compare", old, new, "--fail-on", "slower"]) == 0
    assert main(["compare", old, new, "--fail-on", "ambiguous"]) == 1


def test_a_contender_that_is_slower_over_all_its_rows_together_fails_too(pair, monkeypatch, capsys):
    def compared(old, new, **_):
        together = Row("conv", "", "", "all layers and passes", "float32", "torch")
        return Comparison(old, new, [], [Change(together, "slower", ratio=0.8, low=0.7, high=0.9)])

    monkeypatch.setattr(compare, "compared", compared)
    assert main(["compare", *pair, "--fail-on", "slower"]) == 1
    assert (
        "| slower | conv all layers and passes float32 torch | — | — | 0.80× | 0.70–0.90 |" in capsys.readouterr().out
    )


def test_all_files_are_written_and_say_the_same(tmp_path, pair):
    out = tmp_path / "out"
    strange = run(tmp_path / "<b>|.json", 2, factor=2.0)
    assert main(["compare", pair[0], str(strange), pair[1], "--output", str(out)]) == 0
    one, two = strict((out / "compare.json").read_text())["comparisons"]
    assert (one["tally"]["slower"], two["tally"]["slower"]) == (LAYERS, LAYERS)
    assert {change["row"]["layer"] for change in one["changes"]} == {"layer 0", "layer 1", "layer 2"}
    assert one["changes"][0]["ratio"] == pytest.approx(0.5, rel=0.01)
    assert one["changes"][0]["over"] == "samples"
    page = (out / "compare.html").read_text()
    assert page.count("▼ slower") == 2 * LAYERS
    assert "<b>|.json" not in page
    assert "&lt;b&gt;|.json" in page
    summary = (out / "compare.md").read_text()
    assert "&lt;b&gt;\\|.json" in summary
    assert summary.count("| slower |") == 2 * LAYERS


def test_over_processes_the_page_says_how_many_and_a_contender_has_a_line_for_all_its_rows(tmp_path, capsys):
    old, new = (run(tmp_path / f"{seed}.json", seed, sizes=[5] * (4 + seed)) for seed in (1, 2))
    assert main(["compare", str(old), str(new), "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "3 intervals over 5 and 6 processes." in said
    assert "| same | conv all layers and passes float32 torch | — | — | 1.00× |" in said
    assert "| same | 3 rows |" in said
    counts = re.findall(r'data-h="processes">(.*?)<', (tmp_path / "compare.html").read_text())
    assert counts == ["5, 6"] * 4, "three rows, and all of them together"


def test_clocks_stand_beside_the_verdict(tmp_path, capsys):
    old = run(tmp_path / "old.json", clocks_before={"sm_mhz": 1980.0})
    new = run(tmp_path / "new.json", 2, factor=2.0, clocks_before={"sm_mhz": 990.0})
    assert main(["compare", str(old), str(new), "--output", str(tmp_path)]) == 0
    assert "| 1980 → 990 MHz | 1.00× |" in capsys.readouterr().out
    assert '>1980 → 990 MHz</td><td data-h="in cycles">1.00×</td>' in (tmp_path / "compare.html").read_text()
    (one,) = strict((tmp_path / "compare.json").read_text())["comparisons"]
    assert one["changes"][0]["mhz"] == [1980.0, 990.0]
    assert one["changes"][0]["cycles"] == pytest.approx(1, rel=0.01)


def test_relative_times_are_against_the_named_baseline(tmp_path, capsys):
    paths = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.json"
        whole = document(seed, sizes=[5] * 6, factor=seed)  # everything twice as slow
        for entry in entries(seed + 10, sizes=[5] * 6, factor=seed):
            entry["extra_info"]["contender"] = "other"
            whole["benchmarks"].append(entry)
        paths.append(str(written(path, whole)))
    assert main(["compare", *paths, "--fail-on", "slower"]) == 1
    assert main(["compare", *paths, "--relative", "--fail-on", "slower"]) == 0
    assert "Relative to torch (conv) in the same process." in capsys.readouterr().out
    assert main(["compare", *paths, "--relative", "--baseline", "conv=other"]) == 0
    assert "Relative to other (conv)" in capsys.readouterr().out
    assert main(["compare", *paths, "--relative", "--baseline", "conv=nobody"]) == 2
    assert "timed there: other, torch" in capsys.readouterr().err


def test_other_machines_are_compared_when_asked_and_labelled(tmp_path, capsys):
    old, new = run(tmp_path / "old.json"), run(tmp_path / "new.json", 2, changes={"gpu": "NVIDIA H200"})
    assert main(["compare", str(old), str(new)]) == 2
    said = capsys.readouterr().err
    assert "new.json is of another machine (NVIDIA H200, Synthetic CPU @ 2.20GHz, 2) than" in said
    assert "accepted is the same, or --across-machines" in said
    assert main(["compare", str(old), str(new), "--across-machines"]) == 0
    assert "**Different machines**" in capsys.readouterr().out
    assert main(["compare", str(old), str(old), "--across-machines"]) == 0
    assert "**Different machines**" not in capsys.readouterr().out


def test_other_clocks_are_compared_when_asked_and_labelled(tmp_path, capsys):
    old, new = run(tmp_path / "old.json"), run(tmp_path / "new.json", 2, factor=0.5, clock="device events")
    assert main(["compare", str(old), str(new)]) == 0
    said = capsys.readouterr().out
    assert "3 ambiguous" in said
    assert "compared with --across-machines: cpu, wall clock, measured → cpu, device events, measured |" in said
    assert main(["compare", str(old), str(new), "--across-machines", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "3 faster" in said
    assert "**Different clocks or devices** in 3 rows" in said
    assert said.count(": cpu, wall clock, measured → cpu, device events, measured |") == 3
    assert (tmp_path / "compare.html").read_text().count(
        "wall clock, measured → cpu, device events, measured</small>"
    ) == 3


def test_a_machine_that_is_not_stated_is_said_to_be_so(tmp_path, capsys):
    old, new = run(tmp_path / "old.json"), written(tmp_path / "new.json", {"benchmarks": entries()})
    assert main(["compare", str(old), str(new)]) == 2
    assert "new.json is of another machine (not stated) than" in capsys.readouterr().err


def test_a_long_summary_says_what_it_leaves_to_the_page(tmp_path, capsys):
    entry = entries()[0]
    many = [
        {**entry, "extra_info": {**entry["extra_info"], "layer": f"layer {row}"}, "stats": {"data": [1e-3 * (1 + row)]}}
        for row in range(90)
    ]
    stated = dict.fromkeys(STATED, "another")
    old, new = (
        written(tmp_path / f"{name}.json", document(changes=changes) | {"benchmarks": many})
        for name, changes in (("old", {}), ("new", stated))
    )
    assert main(["compare", str(old), str(new), "--across-machines"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) < 60
    assert "60 more lines: `--output DIR` writes them all." in said
    assert main(["compare", str(old), str(old), str(old)]) == 0
    assert len(capsys.readouterr().out.splitlines()) < 60


def test_of_many_runs_each_shows_its_worst_rows(pair, capsys):
    old, new = pair
    assert main(["compare", old, *[new] * 40]) == 0
    assert capsys.readouterr().out.count("| slower | conv fprop Net layer") == 40 * LAYERS


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--rate", "0"], "accepted is a number of percent from 1e-6 to 100"),
        (["--rate", "x"], "accepted is a number of percent"),
        (["--margin", "-1"], "accepted is a number of percent"),
        (["--fail-on", "slow"], "invalid choice: 'slow'"),
        (["--baseline", "conv"], "accepted is SUITE=CONTENDER"),
    ],
)
def test_wrong_arguments_are_named(pair, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main(["compare", *pair, *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("make, said", [(lambda path: path.mkdir(), "without results"), (lambda path: None, "no such")])
def test_what_cannot_be_read_is_named(tmp_path, capsys, make, said):
    make(tmp_path / "x")
    assert main(["compare", str(tmp_path / "x"), str(tmp_path / "x")]) == 2
    assert said in capsys.readouterr().err


def test_what_cannot_be_written_is_named(tmp_path, pair, capsys):
    (tmp_path / "file").write_text("")
    assert main(["compare", *pair, "--output", str(tmp_path / "file")]) == 2
    assert "--output" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == ""


def test_a_terminal_that_lacks_the_letters_gets_them_spelled_out(pair, monkeypatch):
    seen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(seen, "latin-1"))
    assert main(["compare", *pair]) == 0
    sys.stdout.flush()
    assert b"old.json \\u2192" in seen.getvalue()


def test_hostile_names_stay_text(tmp_path):
    name = "<img src=x onerror=y> a|b `c`"
    strange = document(1)
    for entry in strange["benchmarks"]:
        entry["extra_info"]["layer"] += name
    strange["environment"]["commit"] = name
    for file in ("old", "new"):
        (tmp_path / f"{file}.json").write_text(json.dumps(strange))
    paths = [str(tmp_path / f"{file}.json") for file in ("old", "new")]
    assert main(["compare", *paths, "--output", str(tmp_path / "out")]) == 0
    for file in ("compare.html", "compare.md"):
        assert "<img" not in (tmp_path / "out" / file).read_text()
