"""All checks of a visit, in parallel processes: ``python -m bench.gpu.checks --journal FILE [--processes N]``.

Each result is a line of the journal (``check_journal``), written the moment it is there. A check that leaves the
driver unusable (a sticky CUDA error) or kills its process costs itself only: its process is started again behind it,
and what was a fault is run once more, alone, under compute-sanitizer where that exists.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():  # before kernels are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

from bench.accuracy import failures
from bench.gpu.call_checks import CallCheck, call_checks
from bench.gpu.check_journal import append, read, summary
from bench.gpu.kernel_checks import KernelCheck, kernel_checks
from bench.suite import float32_products

Check = KernelCheck | CallCheck
STICKY = 3  # exit status of a process whose driver is unusable
MOST_FAULTS = 5  # of one process: beyond that something is wrong with all
SANITIZER_SECONDS = 60


def all_checks(device: torch.device) -> list[Check]:
    """Calls first: they are few and take longest. Kernels shuffled: those that time allows are a sample of all."""
    kernels = list(kernel_checks(device))
    random.Random(0).shuffle(kernels)
    return [*call_checks(device), *kernels]


def run_share(journal: Path, share: int, of: int, skip: int, device: torch.device) -> int:
    """Every ``of``-th check from the ``share``-th on, without the first ``skip``; the exit status."""
    os.environ["TRITON_DIRAC_AUTOTUNE"] = "0"  # every config is checked by name
    with open(journal, "a", encoding="utf-8", buffering=1) as file:
        for check in all_checks(device)[share::of][skip:]:
            print(json.dumps({"share": share, "begins": check.name}), file=file, flush=True)
            result = _result(check, device)
            print(json.dumps({"share": share, **result}), file=file, flush=True)
            if result.get("sticky"):
                return STICKY
    return 0


def _result(check: Check, device: torch.device) -> dict[str, Any]:
    start = time.perf_counter()
    about = {"family": check.family, "name": check.name}
    try:
        with float32_products("float32"):  # as torch has it, cuDNN's convolutions of float32 take TF32, and so do ours
            errors = check.run(device)
    except Exception as error:
        text = f"{type(error).__name__}: {str(error).strip()[:400]}"
        return {**about, "passed": False, "error": text, "sticky": is_sticky(error)}
    seconds = round(time.perf_counter() - start, 3)
    return {**about, "passed": failures(errors) is None, "error": failures(errors), "seconds": seconds}


def is_sticky(error: BaseException) -> bool:
    """Whether the driver answers nothing more in this process."""
    text = str(error)
    return not isinstance(error, torch.OutOfMemoryError) and ("CUDA error" in text or "CUDA driver error" in text)


class Share:
    """One process, started again behind whatever killed it."""

    def __init__(self, journal: Path, share: int, of: int) -> None:
        self.journal, self.share, self.of = journal, share, of
        self.faults = 0
        self.process = self._start(0)

    def _start(self, skip: int) -> subprocess.Popen[bytes]:
        arguments = ("--journal", self.journal, "--share", f"{self.share}/{self.of}", "--skip", str(skip))
        return subprocess.Popen([sys.executable, "-m", "bench.gpu.checks", *map(str, arguments)])

    def done(self) -> bool:
        """Whether it is through; a process that died is replaced, and what it was at is noted as its fault."""
        status = self.process.poll()
        if status is None:
            return False
        if status == 0 or self.faults == MOST_FAULTS:
            return True
        self.faults += 1
        mine = [entry for entry in read(self.journal) if entry.get("share") == self.share]
        begun = [entry["begins"] for entry in mine if "begins" in entry]
        if status != STICKY and begun and begun[-1] not in {entry.get("name") for entry in mine}:
            entry = {"share": self.share, "family": begun[-1].split(":")[0], "name": begun[-1], "passed": False}
            text = f"its process died with status {status}"
            append(self.journal, {**entry, "error": text, "sticky": True})
        self.process = self._start(len(begun))
        return False

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def run_all(journal: Path, processes: int, seconds: float, planned: int) -> None:
    """All checks within ``seconds``; what was not reached has no entry."""
    until = time.monotonic() + seconds
    journal.unlink(missing_ok=True)
    append(journal, {"planned": planned})
    shares = [Share(journal, share, processes) for share in range(processes)]
    running = shares
    while running and time.monotonic() < until:
        time.sleep(0.1)
        running = [share for share in running if not share.done()]
    for share in running:
        share.stop()
    sanitize(journal, until)


def sanitize(journal: Path, until: float) -> None:
    """Run what faulted again under compute-sanitizer, and keep the end of what it says."""
    tool = shutil.which("compute-sanitizer")
    for entry in [entry for entry in read(journal) if entry.get("sticky")][:3]:
        left = min(SANITIZER_SECONDS, until - time.monotonic())
        if tool is None or left < 10:
            return
        command = [tool, "--tool", "memcheck", sys.executable, "-m", "bench.gpu.checks", "--only", entry["name"]]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=left).stdout
        except subprocess.TimeoutExpired:
            continue
        append(journal, {"sanitizer": entry["name"], "says": said[-4000:]})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.gpu.checks", description=__doc__)
    parser.add_argument("--journal", type=Path, help="where results go, one line of JSON each")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--seconds", type=float, default=600, help="time limit for all checks together")
    parser.add_argument("--only", help="run the check of this name here, and say what came of it")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.only is not None:
        found = [check for check in all_checks(device) if check.name == options.only]
        if not found:
            parser.error(f"--only must name a check, got {options.only!r}")
        print(json.dumps(_result(found[0], device)))
        return 0
    if options.journal is None:
        parser.error("--journal FILE is needed")
    if options.share is not None:
        share, of = map(int, options.share.split("/"))
        return run_share(options.journal, share, of, options.skip, device)
    run_all(options.journal, options.processes, options.seconds, len(all_checks(device)))
    found_all = summary(read(options.journal))
    print(json.dumps(found_all, indent=1))
    return 1 if found_all["wrong"] or not found_all["done"] else 0


if __name__ == "__main__":
    sys.exit(main())
