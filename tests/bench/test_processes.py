"""Samples from several fresh processes: how their rows become one, and what is said of those that lack one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import processes
from bench.journal import Journal
from bench.results import KINDS
from bench.suite import names
from reports import intervals
from reports.load import load

ROOT = Path(__file__).parents[2]
KEY = ("weight_prep", "forward", "Net", "layer", "float32")


def timed(contender, data, key=KEY, **info):
    known = {**names(key, contender), "clock": "wall clock", "calls_per_sample": 3, "host_us": None, **info}
    return {"name": " ".join((*key, contender)), "extra_info": known, "stats": {"data": list(data)}}


def entries(*benchmarks, **parts):
    return {**{kind: [] for kind in KINDS}, "benchmarks": list(benchmarks), **parts}


def left_out(contender, reason, **more):
    return {**names(KEY, contender), "reason": reason, **more}


def of_all(**parts):
    """``parts`` by number, "p1" for 1, and for the numbers up to five that are not named one time of torch."""
    usual = {number: entries(timed("torch", [number / 1000])) for number in range(1, 6)}
    return usual | {int(name[1:]): part for name, part in parts.items()}


def reasons(found):
    return {entry["contender"]: entry["reason"] for entry in found["not_run"]}


def test_reports_and_suites_agree_on_the_fewest_samples_of_an_interval():
    assert processes.FEWEST == intervals.FEWEST_SAMPLES


def test_samples_of_all_processes_stand_one_after_another_and_say_whose_they_are():
    found = processes.merged(of_all(p2=entries(timed("torch", [1.0, 2.0]))), 5)
    (entry,) = found["benchmarks"]
    assert entry["stats"]["data"] == [0.001, 1.0, 2.0, 0.003, 0.004, 0.005]
    assert entry["extra_info"]["samples_per_process"] == [1, 2, 1, 1, 1]
    assert found["not_run"] == []


def test_of_clocks_and_host_times_the_mean_is_kept_and_of_memory_the_most():
    parts = {
        number: entries(
            timed(
                "torch", [0.001],
                clocks_before={"sm_mhz": 1000.0 + number, "power_w": None}, host_us=float(number), peak_bytes=number,
                times_as_fast_as_cudnn=[float(number)], calls_per_sample=number,
            )
        )
        for number in range(1, 6)
    }  # fmt: skip
    (entry,) = processes.merged(parts, 5)["benchmarks"]
    assert entry["extra_info"]["clocks_before"] == {"sm_mhz": 1003.0, "power_w": None}
    assert entry["extra_info"]["host_us"] == 3.0
    assert entry["extra_info"]["peak_bytes"] == 5
    assert entry["extra_info"]["times_as_fast_as_cudnn"] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert entry["extra_info"]["calls_per_sample"] == [1, 2, 3, 4, 5]


def test_who_has_no_time_in_one_process_has_none_and_that_process_is_named():
    parts = of_all(p4=entries(not_run=[left_out("torch", "out of memory", failed=True)]))
    del parts[2]  # another process that never came to the row does not shift the numbers
    found = processes.merged({**parts, 6: parts[5]}, 6)
    assert found["benchmarks"] == []
    assert found["not_run"] == [left_out("torch", "in process 4: out of memory", failed=True)]
    assert reasons(processes.merged(of_all(p1=entries()), 5)) == {"torch": "in process 1: not timed"}


def test_who_is_timed_nowhere_keeps_the_reason_of_the_first_process():
    found = processes.merged(of_all(p1=entries(timed("torch", [1.0]), not_run=[left_out("cudnn", "no GPU")])), 5)
    assert reasons(found) == {"cudnn": "no GPU"}


def test_checks_are_those_of_the_first_process_and_all_that_failed_in_others():
    passed, failed = {"contender": "torch", "passed": True}, {"contender": "torch", "passed": False}
    parts = of_all(p1=entries(timed("torch", [1.0]), accuracy=[passed]), p3=entries(accuracy=[passed, failed]))
    assert processes.merged(parts, 5)["accuracy"] == [passed, failed]


def test_times_by_different_clocks_are_not_put_together():
    found = processes.merged(of_all(p3=entries(timed("torch", [1.0], clock="device events"))), 5)
    assert reasons(found) == {"torch": "timed by different clocks in different processes: device events, wall clock"}


def test_a_row_that_too_few_processes_came_to_has_no_time_and_says_so():
    parts = of_all()
    assert len(processes.merged(parts, 6)["benchmarks"]) == 1
    del parts[3]
    found = processes.merged(parts, 6)
    assert found["benchmarks"] == []
    assert reasons(found) == {"torch": "4 of 6 processes came to it: an interval over processes takes 5"}


def journal(path, rows, environment=None):
    kept = Journal(path)
    kept.begin(environment or {"torch": "2"})
    for key, part in rows.items():
        kept.start(key)
        kept.finish(key, 1.0, part)


def runs_as(monkeypatch, outcomes):
    """Processes that write these rows to their journals: {number: (status, what it printed, rows)}."""
    commands = []

    def run(command):
        commands.append(command)
        status, output, rows = outcomes[len(commands)]
        if rows:
            journal(Path(command[command.index("--journal") + 1]), rows)
        return status, output

    monkeypatch.setattr(processes, "execute", run)
    return commands


def test_processes_run_one_after_another_with_journals_of_their_own(tmp_path, monkeypatch):
    commands = runs_as(monkeypatch, {number: (0, "", {KEY: part}) for number, part in of_all().items()})
    said = []
    arguments = ["bench", "--processes", "5", "--benchmark-json=r.json", "--budget", "9", "--nets", "A"]
    found = processes.run(arguments, 5, tmp_path / "r.journal.jsonl", 10, said.append)
    assert found.rows[KEY]["benchmarks"][0]["extra_info"]["samples_per_process"] == [1] * 5
    assert found.environment == {"torch": "2"}
    assert found.warnings == []
    assert [line.split(":")[0] for line in said] == [f"process {number} of 5" for number in range(1, 6)]
    for number, command in enumerate(commands, 1):
        own = str(tmp_path / f"process-{number}.r.journal.jsonl")
        assert command[3:10] == ["bench", "--nets", "A", "--processes", "1", "--journal", own]
        assert ("--only-times" in command) == (number > 1)
        assert float(command[command.index("--budget") + 1]) == pytest.approx(10 / (6 - number), abs=0.1)


def test_a_process_that_dies_costs_its_rows_alone_and_is_said(tmp_path, monkeypatch):
    second = (*KEY[:3], "another", "float32")
    part = entries(timed("torch", [0.002], second))
    outcomes = {number: (0, "", {KEY: known, second: part}) for number, known in of_all(p6=of_all()[1]).items()}
    outcomes[2] = (-9, "killed\n", {KEY: of_all()[2]})
    outcomes[5] = (134, "", {})
    runs_as(monkeypatch, outcomes)
    found = processes.run(["bench"], 6, tmp_path / "j.jsonl", None, lambda line: None)
    assert found.rows[KEY]["benchmarks"][0]["extra_info"]["samples_per_process"] == [1] * 5
    assert reasons(found.rows[second]) == {"torch": "4 of 6 processes came to it: an interval over processes takes 5"}
    assert found.warnings == [
        "process 2 of 6 ended with status -9: killed",
        "process 5 of 6 ended with status 134: it said nothing",
        "2 rows of 2: fewer than 6 processes came to it, in the worst case 4",
    ]


def test_an_old_journal_is_not_taken_for_that_of_a_process_that_died(tmp_path, monkeypatch):
    outcomes = {number: (0, "", {KEY: known}) for number, known in of_all(p6=of_all()[1]).items()}
    outcomes[6] = (134, "", {})
    for arguments, measured in ((["bench"], 5), (["bench", "--resume"], 6)):
        journal(tmp_path / "process-6.j.jsonl", {KEY: entries(timed("torch", [9.0]))})
        runs_as(monkeypatch, outcomes)
        found = processes.run(arguments, 6, tmp_path / "j.jsonl", None, lambda line: None)
        assert len(found.rows[KEY]["benchmarks"][0]["extra_info"]["samples_per_process"]) == measured


def test_arguments_that_a_process_refuses_end_the_run(tmp_path, monkeypatch):
    commands = runs_as(monkeypatch, {1: (4, "ERROR: no such option\n", {})})
    with pytest.raises(processes.ProcessesError, match="ERROR: no such option"):
        processes.run(["bench", "--x"], 5, tmp_path / "j.jsonl", None, lambda line: None)
    assert len(commands) == 1


STAND_IN = """
from pathlib import Path
from bench import processes
from tests.bench.test_processes import entries, journal, timed

def run(command):
    path = Path(command[command.index("--journal") + 1])
    number = int(path.name.split(".")[0].removeprefix("process-"))
    keys = [("weight_prep", pass_, "DiracNet-34-2", "32x32x32-32 3x3", "float32") for pass_ in {passes}]
    journal(path, {{key: entries(timed("reference", [number * 1e-3, 1.0], key)) for key in keys}})
    return 0, ""

processes.execute = run
"""


def test_the_results_file_holds_what_the_processes_measured_and_their_journals_go(tmp_path):
    (tmp_path / "stand_in.py").write_text(STAND_IN.format(passes=["forward"]))
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "stand_in", "bench/test_weight_prep.py",
        "--benchmark-only", "--nets", "DiracNet-34-2", "--layers", "32x32x32-32*", "--contenders", "reference",
        "--dtypes", "float32", "--processes", "5", "--benchmark-json", str(tmp_path / "r.json"),
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    found = subprocess.run(
        command, cwd=ROOT, env={**environment, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout[-3000:]
    assert "process 5 of 5" in found.stdout
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["environment"]["processes"] == 5
    assert [entry["reason"] for entry in document["not_run"]] == ["no process came to it"]
    (samples,) = load([tmp_path / "r.json"]).benchmarks["processes"]
    assert [list(part) for part in samples] == [[number * 1e-3, 1.0] for number in range(1, 6)]
    assert sorted(path.name for path in tmp_path.glob("*.json*")) == ["r.journal.jsonl", "r.json"]
