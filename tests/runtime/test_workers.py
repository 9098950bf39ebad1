"""Workers whose caller is killed (nobody else can end them and clear up), and those in odd surroundings."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from triton_dirac.runtime import compile_ahead
from triton_dirac.runtime.workers import UNSTARTED, Worker

ROOT = Path(__file__).parents[2]
CALLER = """
from triton_dirac.runtime.workers import Pool
Pool("tests.runtime.writing_worker", 3, 600, {}).ask_all([{}] * 3)
"""


def test_workers_of_a_killed_caller_stop_writing_and_leave_nothing(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    caller = subprocess.Popen([sys.executable, "-c", CALLER], cwd=ROOT, env=environment)
    try:
        wait(lambda: len(list(tmp_path.glob("triton-dirac-*/cache/*/kernel"))) and len(list(tmp_path.iterdir())) == 3)
    finally:
        caller.kill()
        caller.wait()
    wait(lambda: not list(tmp_path.glob("triton-dirac-*")))
    time.sleep(1)
    assert not list(tmp_path.glob("triton-dirac-*")), "made anew"


def wait(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- what a process prints, and where it starts -----------------------------------------------------------


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """ask(code): the answer of a worker that runs the code first."""

    def answer_of(code):
        serving = (
            "from triton_dirac.runtime.workers import serve\nimport sys\nserve(lambda asked: asked, sys.argv[1])\n"
        )
        (tmp_path / "own_worker.py").write_text(code + "\n" + serving)
        worker = Worker("own_worker", 60, {})
        try:
            return worker.ask({"ok": True, "number": 7})
        finally:
            worker.close()

    monkeypatch.syspath_prepend(str(tmp_path))
    return answer_of


def test_what_is_printed_before_the_first_answer_is_no_answer(ask):
    """A sitecustomize.py, a .pth file or a library that greets."""
    assert ask("print('hello')\nprint(12, flush=True)") == {"ok": True, "number": 7}


@pytest.mark.parametrize("variable", ["TMPDIR", "TRITON_CACHE_DIR"])
def test_what_is_written_is_in_the_workers_folder_whatever_the_caller_says(ask, tmp_path, monkeypatch, variable):
    """Else what compilers write stays there when they are killed, and kernels are not compiled but found."""
    monkeypatch.setenv(variable, str(tmp_path))
    show = f"import os, sys\nsys.stderr.write(os.environ['{variable}'] + ' in ' + sys.argv[1])\nsys.exit(3)"
    path, folder = ask(show)["error"].partition("(")[2].rstrip(")").split(" in ")
    assert path.startswith(folder)


def test_bytes_that_are_no_text_are_shown_as_far_as_they_are(ask):
    answer = ask("import os, sys\nos.write(2, b'bad \\xff\\xfe')\nsys.exit(3)")
    assert answer["ended"] == UNSTARTED
    assert "exit status 3 (bad " in answer["error"]


def test_without_a_folder_for_temporary_files_nothing_is_started(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    answer = ask("")
    assert answer["ended"] == UNSTARTED
    assert "No such file or directory" in answer["error"]


def test_a_working_directory_that_was_removed(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.syspath_prepend("")
    (tmp_path / "gone").rmdir()
    assert Worker("nothing", 60, {}).environment["PYTHONPATH"].startswith(os.pathsep)


@pytest.mark.parametrize("processes, share", [("nonsense", 1), ("0", 1), ("-2", 1), ("", 1), ("2", 2), ("2.5", 1)])
def test_the_cores_of_processes_whose_number_makes_no_sense(processes, share, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    monkeypatch.setattr(compile_ahead, "jobs", None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert compile_ahead.cores() == 4 // share
