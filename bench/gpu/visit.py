"""Runs the stages of a visit and keeps what became of each."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import ceilings
from bench.gpu import check_journal
from bench.gpu import failing as failing_tests
from bench.gpu.stages import REHEARSED, STAGES, SUITE, Stage, limits, wrong_contenders
from bench.gpu.summary import entries

ROOT = Path(__file__).parents[2]
INTERRUPTED = "interrupted"
PICKS = "picks"  # the folder below work that timings are kept in
SECONDS_TO_START = 12  # that a suite takes before its first row: torch, Triton, the GPU's first use
SECONDS_TO_END = 10  # seconds that a stage has to write its results after it was asked to end
REPORT_SECONDS = 25  # kept back for the report and its figures


@dataclass(frozen=True)
class Outcome:
    """What became of a stage: "done", "failed (status N)", "stopped after N s", INTERRUPTED or why it was not begun."""

    stage: str
    what: str
    state: str
    seconds: float = 0.0
    last: tuple[str, ...] = ()  # the last lines it printed
    failing: tuple[str, ...] = ()  # tests that failed, and how


@dataclass
class Visit:
    """``out`` gets all that is kept; ``work`` what suites write until the report is made of it."""

    out: Path
    work: Path
    budget: float  # seconds
    rehearse: bool = False
    commit: str | None = None
    wheels: Path | None = None
    only: tuple[str, ...] = ()  # the names of the stages to run; none names all
    picks: Path | None = None  # what an earlier visit tuned
    outcomes: list[Outcome] = field(default_factory=list)

    def run(self, say: Callable[[str], None] = print) -> None:
        begun = time.monotonic()
        if self.picks:
            (self.work / PICKS).mkdir()
            shutil.copy(self.picks, self.work / PICKS)
        until = begun + self.budget - min(REPORT_SECONDS, 0.1 * self.budget)
        stages = tuple(stage for stage in STAGES if not self.only or stage.name in self.only)
        for number, stage in enumerate(stages):
            left = until - time.monotonic()
            seconds = limits(stages[number:], left)
            if left < stage.least and not self.rehearse:
                outcome = Outcome(stage.name, stage.what, f"not begun: {left:.0f} s left, it takes {stage.least}")
            else:
                say(f"{time.monotonic() - begun:5.0f} s  {stage.name}: {stage.what}, at most {seconds:.0f} s")
                outcome = self._run_stage(stage, max(seconds, 1.0))
            self.outcomes.append(outcome)
            say(f"{time.monotonic() - begun:5.0f} s  {stage.name}: {outcome.state}")
            if outcome.state == INTERRUPTED:
                break

    def facts(self) -> dict[str, Any]:
        return {
            "budget_s": self.budget,
            "commit": self.commit,
            "stages": [asdict(outcome) for outcome in self.outcomes],
        }

    @property
    def suites(self) -> list[Path]:
        """The results files, or where a suite was killed its journal, that the report is made of."""
        found = []
        for stage in STAGES:
            names = (f"{stage.name}.json", f"{stage.name}.journal.jsonl")
            paths = [self.work / name for name in names]
            found += [path for path in paths if path.exists() and any(entries(path).values())][:1]
        return found

    def _run_stage(self, stage: Stage, seconds: float) -> Outcome:
        start = time.monotonic()
        log = self.out / "log.txt"
        with open(log, "ab") as file:
            offset = file.seek(0, os.SEEK_END)
            file.write(f"\n=== {stage.name}\n".encode())
            file.flush()
            process = subprocess.Popen(
                self._command(stage, seconds),
                cwd=ROOT,
                env=self._environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            state = _wait(process, seconds)
        text = log.read_bytes()[offset:].decode(errors="replace")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        last = tuple(line[:200] for line in lines[-3:])
        failing = tuple(line.removeprefix(failing_tests.MARK) for line in lines if line.startswith(failing_tests.MARK))
        return Outcome(stage.name, stage.what, state, round(time.monotonic() - start, 1), last, failing)

    def _command(self, stage: Stage, seconds: float) -> list[str]:
        values = {
            "out": self.out,
            "work": self.work,
            "seconds": f"{max(1.0, seconds - 5):.0f}",
            "cores": os.cpu_count() or 1,
        }
        if stage.suite is None:
            words = stage.rehearsal if self.rehearse else stage.command
            return [sys.executable, *(word.format(**values) for word in words)]
        results = self.work / f"{stage.name}.json"
        minutes = max(1.0, seconds - SECONDS_TO_START - SECONDS_TO_END) / 60
        limited = ["--budget", f"{minutes:.2f}", f"--benchmark-json={results}"]
        if known := [path for path in self.suites if ceilings.of_run(path)]:
            limited += ["--ceilings", str(known[0])]
        options = REHEARSED if self.rehearse else stage.command
        wrong = wrong_contenders(check_journal.summary(check_journal.read(self.out / "checks.jsonl"))["wrong"])
        left_out = [*stage.without, *wrong]
        without = ("--without", ",".join(left_out)) if left_out else ()
        return [sys.executable, *SUITE, stage.suite, *limited, *options, *without]

    def _environment(self) -> dict[str, str]:
        path = [str(ROOT), *([str(self.wheels)] if self.wheels else []), os.environ.get("PYTHONPATH", "")]
        mine = {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
            "TRITON_DIRAC_CACHE_DIR": str(self.work / PICKS),
        }
        return {**os.environ, **mine, **({"TRITON_DIRAC_COMMIT": self.commit} if self.commit else {})}


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """How it ended; it is asked to end after ``seconds``, and when this process is interrupted."""
    try:
        status = process.wait(seconds)
        return "done" if status == 0 else f"failed (status {status})"
    except subprocess.TimeoutExpired:
        _end(process)
        return f"stopped after {seconds:.0f} s"
    except KeyboardInterrupt:
        _end(process)
        return INTERRUPTED


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end; SECONDS_TO_END later it is killed with all its children."""
    finally_killed = (signal.SIGTERM, SECONDS_TO_END), (signal.SIGKILL, None)
    for number, patience in finally_killed:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM within it is a KeyboardInterrupt, as Ctrl-C is: what was measured so far is kept."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
