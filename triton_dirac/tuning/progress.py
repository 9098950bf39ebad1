"""How far a long command is, on one line of the terminal; in a log, a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from threading import Lock
from typing import TextIO

WIDTH = 30  # characters of the bar
EVERY = 10.0  # seconds between the lines of a log


class Progress:
    """``progress(done, total)`` after each step, from any thread."""

    def __init__(self, what: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self.stream, self.clock = what, stream or sys.stderr, clock
        self.start = self.said = clock()
        self.most = -1
        self._lock = Lock()

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            if done <= self.most:  # threads overtake each other
                return
            self.most = done
            ends = done == total
            now = self.clock()
            if self.stream.isatty():
                filled = WIDTH * done // max(total, 1)
                line = f"{self.what} [{'#' * filled}{'.' * (WIDTH - filled)}] {self._words(done, total, now)}"
                print(f"\r{line:<100}", end="\n" if ends else "", file=self.stream, flush=True)
            elif ends or done == 0 or now - self.said >= EVERY:
                self.said = now
                print(f"{self.what} {self._words(done, total, now)}", file=self.stream, flush=True)

    def _words(self, done: int, total: int, now: float) -> str:
        passed = now - self.start
        left = f", about {_clock(passed * (total - done) / done)} left" if 0 < done < total else ""
        return f"{done} of {total}, {_clock(passed)}{left}"


def _clock(seconds: float) -> str:
    """e.g. 1:07"""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
