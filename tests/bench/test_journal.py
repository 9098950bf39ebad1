"""What is on disk of a run that is killed, and what a resumed one makes of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.conftest import lab_of
from bench.journal import Journal, JournalError
from bench.results import KINDS, ResultsFile
from reports import journal as reading
from tests.bench.test_collection import config_with
from triton_dirac.runtime import files

ROOT = Path(__file__).parents[2]
KEY = ("conv", "fprop", "DiracNet-18", "64x56x56-64 3x3", "bfloat16")
ENTRIES = {**{kind: [] for kind in KINDS}, "not_run": [{"reason": "too long"}]}
ENVIRONMENT = {"gpu": "H200", "torch": "2.11.0", "code": "1234", "contenders": ["a"], "date": "today"}


def written(path, *, rows=1):
    journal = Journal(path)
    journal.begin(ENVIRONMENT)
    for number in range(rows):
        key = (*KEY[:-1], f"dtype {number}")
        journal.start(key)
        journal.finish(key, 1.5, ENTRIES)
    return journal


def test_a_row_is_on_disk_as_soon_as_it_is_finished(tmp_path):
    path = tmp_path / "results.journal.jsonl"
    written(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [next(iter(line)) for line in lines] == ["environment", "started", "row"]
    assert reading.document(path.read_text()) == {**ENTRIES, "environment": ENVIRONMENT}


def test_nothing_is_made_before_there_is_something_to_keep_and_an_old_journal_moves_aside(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path)
    assert os.listdir(tmp_path) == []
    written(path, rows=3)
    before = path.read_text()
    Journal(path)
    assert path.read_text() == before
    written(path)
    assert (tmp_path / "j.jsonl.old").read_text() == before


def test_a_resumed_journal_knows_rows_and_goes_on_behind_them(tmp_path):
    path = tmp_path / "j.jsonl"
    written(path, rows=2)
    journal = Journal(path, resume=True)
    assert list(journal.rows) == [(*KEY[:-1], "dtype 0"), (*KEY[:-1], "dtype 1")]
    assert journal.rows[(*KEY[:-1], "dtype 0")] == ENTRIES
    assert set(journal.seconds.values()) == {1.5}
    journal.start(KEY)
    journal.finish(KEY, 2.0, ENTRIES)
    assert list(Journal(path, resume=True).rows)[2:] == [KEY]


def test_every_torn_line_is_no_line(tmp_path):
    """A process may be killed after any byte."""
    path = tmp_path / "j.jsonl"
    written(path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        journal = Journal(path, resume=True)
        assert journal.rows == {}
        assert reading.document(whole[:size].decode())["not_run"] == []
    journal.start(KEY)
    journal.finish(KEY, 1.0, ENTRIES)
    assert list(Journal(path, resume=True).rows) == [KEY]


def test_what_is_no_journal_is_named(tmp_path):
    path = tmp_path / "j.jsonl"
    row = '{"row": ["a"], "seconds": 1, "benchmarks": [], "accuracy": [], "not_run": [], "counted": '
    texts = ("{}\n", "[1]\n", "no\n", '{"row": ["a"], "seconds": 1}\n', row + "5}\n", "[" * 100_000 + "\n")
    for text in (*texts, '{"environment": null}\n', '{"environment": 5}\n'):
        path.write_text(text)
        with pytest.raises(JournalError, match=r"j.jsonl:1 is no line of a journal; start anew without --resume"):
            Journal(path, resume=True)


def test_differences_are_said_and_dates_are_none(tmp_path):
    path = tmp_path / "j.jsonl"
    written(path)
    journal = Journal(path, resume=True)
    assert journal.differences({**ENVIRONMENT, "contenders": ("a",), "date": "tomorrow"}) == []
    found = journal.differences({**ENVIRONMENT, "gpu": "H100", "code": "5678"})
    assert found == ["gpu was 'H200', is 'H100'", "code was '1234', is '5678'"]
    assert Journal(tmp_path / "new.jsonl", resume=True).differences(ENVIRONMENT) == []


def test_rows_that_a_process_died_in_are_counted_and_who_lost_the_gpu_is_known(tmp_path):
    path = tmp_path / "j.jsonl"
    for _ in range(2):
        journal = Journal(path, resume=True)
        journal.begin(ENVIRONMENT)
        journal.start(KEY)
    assert Journal(path, resume=True).unfinished[KEY] == 2
    journal.fault(KEY, "triton", "illegal address")
    journal = Journal(path, resume=True)
    assert journal.faulted == {KEY: {"triton": "illegal address"}}
    assert journal.unfinished[KEY] == 1
    journal.finish(KEY, 1.0, ENTRIES)
    assert Journal(path, resume=True).unfinished[KEY] == 0


def test_a_results_file_is_rewritten_for_a_twentieth_of_the_time(tmp_path, monkeypatch):
    now, written_at = [0.0], []

    def write(self, document):
        written_at.append(now[0])
        now[0] += 1.0

    monkeypatch.setattr(ResultsFile, "write", write)
    file = ResultsFile(tmp_path / "r.json", clock=lambda: now[0])
    for _ in range(100):
        now[0] += 0.5
        file.update({})
    assert written_at == [0.5, 21.5, 42.5]


def suites(*more, start=subprocess.run, **options):
    """The suites in a process of their own, on two short layers."""
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "--tb=short",
        *("bench/test_weight_prep.py", "bench/test_conv.py"),
        *("--nets", "DiracNet-34-2", "--layers", "32x32x32-32*,64x8x8-128*", "--dtypes", "float32"),
        *("--contenders", "torch*,reference,weight_norm", *more),
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return start(command, cwd=ROOT, env={**environment, "OMP_NUM_THREADS": "1"}, text=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "written, options",
    [
        ("results.json", ["--journal=other.jsonl"]),
        ("results.journal.jsonl", ["--resume"]),
        ("results.journal.jsonl", ["--processes=5"]),
    ],
)
def test_a_run_beside_another_of_the_same_files_is_refused(tmp_path, written, options):
    """It would move the other's journal aside, both would write into it, or the results would be the last one's."""
    journal = tmp_path / "results.journal.jsonl"
    journal.write_text(json.dumps({"environment": {}}) + "\n")
    found = {file: file.read_text() for file in tmp_path.iterdir()}
    with files.alone(tmp_path / written):
        options = [option.replace("other", str(tmp_path / "other")) for option in options]
        ended = suites(f"--benchmark-json={tmp_path / 'results.json'}", *options, capture_output=True)
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"{tmp_path / written} is being written by another process; wait for it, or name other files" in ended.stderr
    assert {file: file.read_text() for file in tmp_path.iterdir()} == found


@pytest.mark.slow
def test_killed_again_and_again_a_run_comes_to_its_end_and_measures_no_row_twice(tmp_path):
    """SIGKILL, then SIGTERM, after every few results, then --resume: all rows are there, each once."""
    results = tmp_path / "results.json"
    journal = tmp_path / "results.journal.jsonl"
    arguments = (f"--benchmark-json={results}", "--resume")
    kept = []
    for ending in (signal.SIGKILL, signal.SIGTERM):
        process = suites(*arguments, start=subprocess.Popen, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        passed = 0
        for line in process.stdout:
            passed += "PASSED" in line
            if passed == len(kept) + 2:  # early: on a loaded machine it runs on until this process has its turn
                process.send_signal(ending)
                break
        process.communicate()
        assert passed >= len(kept) + 2, "ended before it could be killed"
        found = [entry["name"] for entry in reading.document(journal.read_text())["benchmarks"]]
        assert found[: len(kept)] == kept
        assert len(found) >= passed
        document = json.loads(results.read_text())
        assert len(document["benchmarks"]) >= passed
        if ending == signal.SIGTERM:  # it ends as after Ctrl-C
            assert process.returncode == pytest.ExitCode.INTERRUPTED
            assert "machine_info" in document
        kept = found
    done = suites(*arguments, capture_output=True)
    assert done.returncode == 0, done.stdout[-3000:]
    document = json.loads(results.read_text())
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    rows = [tuple(line["row"]) for line in lines if "row" in line]
    assert len(rows) == len(set(rows)) == 2 * 2 + 2 * 3
    assert len(document["benchmarks"]) == 2 * len(rows)
    data = {entry["name"]: entry["stats"]["data"] for entry in reading.document(journal.read_text())["benchmarks"]}
    for entry in document["benchmarks"]:
        info = entry["extra_info"]
        key = " ".join(info[name] for name in ("suite", "pass", "net", "layer", "dtype", "contender"))
        assert entry["stats"]["data"] == data[key]


def test_a_run_with_other_options_does_not_go_on(tmp_path):
    path = tmp_path / "results.json"
    lab = lab_of(config_with(path, resume=True))
    lab.journal.begin(lab.environment())
    before = lab.journal.path.read_bytes()
    with pytest.raises(pytest.UsageError, match=r"cannot be gone on with: batch was None, is 3\. Without --resume it "):
        lab_of(config_with(path, resume=True, batch=3))
    assert lab.journal.path.read_bytes() == before
    lab_of(config_with(path, resume=True))
