"""A run of the suites against itself: what its processes run, what is planted, what is refused. Nothing is timed."""

import json
from pathlib import Path

import pytest

from bench import alike, processes
from reports.__main__ import main as reports
from tests.bench.test_processes import entries, journal, timed
from triton_dirac.runtime import files

LAYERS = 4


def rows(number, name):
    """What a process measures: 1 ms and what it is off by, some 0.1 %."""
    off = 1e-3 * (1 + 1e-3 * (number % 3) + (2e-4 if name == "b" else 0))
    keys = [("conv", "fprop", "Net", f"layer {layer}", "float32") for layer in range(LAYERS)]
    return {
        key: entries(*(timed(contender, [off, 1.001 * off], key) for contender in ("torch", "auto"))) for key in keys
    }


@pytest.fixture
def commands(monkeypatch):
    """What is run, and in place of each process its journal."""
    found = []

    def execute(command):
        path = Path(command[command.index("--journal") + 1])
        number, name = path.name.removeprefix("process-").split(".")[:2]
        found.append((name, int(number), command))
        journal(path, rows(int(number), name), {"cpu": "made up", "load_before": float(number)})
        return 0, ""

    monkeypatch.setattr(processes, "execute", execute)
    return found


def test_two_runs_take_turns_and_a_third_has_the_times_of_one_contender_multiplied(tmp_path, commands):
    assert alike.main(["--out", str(tmp_path), "--processes", "6"]) == 0
    assert [(name, number) for name, number, _ in commands] == [
        (name, number) for number in range(1, 7) for name in ("ab" if number % 2 else "ba")
    ]
    assert all("--only-times" in command and "bench/test_conv.py" in command for _, _, command in commands)
    a, b, planted = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("a", "b", "planted"))
    assert a["environment"]["load_before"] == [1, 2, 3, 4, 5, 6]
    assert planted["environment"]["planted"] == "the times of auto are multiplied by 1.05"
    assert len(a["benchmarks"]) == len(b["benchmarks"]) == 2 * LAYERS
    for one, changed in zip(b["benchmarks"], planted["benchmarks"], strict=True):
        assert one["extra_info"]["samples_per_process"] == [2] * 6
        factor = 1.05 if one["extra_info"]["contender"] == "auto" else 1
        assert changed["stats"]["data"] == [seconds * factor for seconds in one["stats"]["data"]]


def test_a_comparison_finds_what_was_planted_and_nothing_else(tmp_path, commands, capsys):
    assert alike.main(["--out", str(tmp_path), "--processes", "6"]) == 0
    a, b, planted = (str(tmp_path / name) for name in ("a", "b", "planted"))
    for how in ([], ["--relative"]):
        alarms = ["--fail-on", "slower", "--fail-on", "faster"]
        assert reports(["compare", a, b, *how, *alarms]) == 0
        assert reports(["compare", a, planted, *how, *alarms]) == 1
        assert f"{LAYERS} slower" in capsys.readouterr().out


def test_a_contender_that_is_not_timed_is_refused_after_the_first_process(tmp_path, commands, capsys):
    assert alike.main(["--out", str(tmp_path), "--plant", "cudnn"]) == 1
    assert "--plant cudnn: accepted is one of those that are timed: auto, torch" in capsys.readouterr().err
    assert len(commands) == 1


def test_two_do_not_write_into_one_folder(tmp_path, commands, capsys):
    with files.locked(tmp_path):
        assert alike.main(["--out", str(tmp_path), "--plant", "auto"]) == 1
    assert f"{tmp_path} is in use by another process" in capsys.readouterr().err
    assert not commands


def test_other_suites_can_be_named(tmp_path, commands):
    assert alike.main(["--out", str(tmp_path), "--plant", "torch", "--", "bench/test_dirac_block.py", "-q"]) == 0
    assert commands[0][2][3:5] == ["bench/test_dirac_block.py", "-q"]
    planted = json.loads((tmp_path / "planted/results.json").read_text())
    assert planted["environment"]["planted"].startswith("the times of torch")


def test_a_process_that_ends_badly_ends_the_run_and_says_what_it_said(tmp_path, monkeypatch, capsys):
    journal(tmp_path / "process-1.a.journal.jsonl", rows(1, "a"))  # of an earlier run
    monkeypatch.setattr(processes, "execute", lambda command: (4, "ERROR: no such option\n"))
    assert alike.main(["--out", str(tmp_path)]) == 1
    assert "a, process 1 ended with status 4: ERROR: no such option" in capsys.readouterr().err
    monkeypatch.setattr(processes, "execute", lambda command: (0, ""))
    assert alike.main(["--out", str(tmp_path)]) == 1
    assert "accepted is one of those that are timed: none" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--processes", "4"], "'4': accepted is a whole number from 5"),
        (["--percent", "0"], "'0': accepted is a number of percent above 0, up to 1000"),
        (["--percent", "nan"], "'nan': accepted is a number of percent above 0, up to 1000"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit):
        alike.main(["--out", str(tmp_path), *arguments])
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_named(tmp_path, commands, capsys):
    (tmp_path / "file").write_text("")
    assert alike.main(["--out", str(tmp_path / "file")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert not commands
