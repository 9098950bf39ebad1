"""Workers whose caller is killed: nobody else can end them and clear up."""

import os
import subprocess
import sys
import time
from pathlib import Path

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
