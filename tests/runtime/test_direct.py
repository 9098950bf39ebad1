"""Kernels are launched by their compiled form as Triton's JIT would launch them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="builds a library in C")
def test_direct_launches_give_a_gpu_what_the_jit_gives_it(tmp_path):
    """Which way was taken, its bytes, hooks, odd addresses, another Triton: see ``direct_launches``."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_DIRAC_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.runtime.direct_launches"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "byte by byte" in done.stdout
