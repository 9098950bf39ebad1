"""A worker that never answers and never stops writing into its folder, for test_workers.py."""

import itertools
import os
import sys
from pathlib import Path

from triton_dirac.runtime.workers import serve


def answer(request):
    for number in itertools.count():
        folder = Path(os.environ["TRITON_CACHE_DIR"]) / str(number % 50)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kernel").write_text("code")


if __name__ == "__main__":
    serve(answer, sys.argv[1])
