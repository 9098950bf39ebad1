"""What comes first, and what still fits, when time is short: ``--budget MINUTES``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from bench.nets import FIRST_NETS
from bench.suite import Row
from triton_dirac.tuning.work import STORAGE

# Most worth first: (suite, pass, nets; None: any), within the first dtype, then within the next. The rest comes last.
SUITES = (
    ("conv", "*", None),
    ("training_step", "*", FIRST_NETS),
    ("weight_prep_nets", "forward_backward", None),
    ("dirac_block", "forward_backward", None),
    ("weight_prep_nets", "forward", None),
    ("dirac_block", "forward", None),
    ("weight_prep", "*", None),
    ("inference", "*", FIRST_NETS),
)
# As nets are trained on a GPU; a CPU times float32 alone.
ORDER_ON_GPU = ("bfloat16", "float16", "tf32", "float32")
ORDER_ON_CPU = ("float32", "float16", "bfloat16", "tf32")

ENDING = 5.0  # seconds that writing the results may take
UNSEEN = 20.0  # seconds that the first row of a suite takes at least: it compiles what no row has before
RECENT = 5  # rows of a kind, the longest of which is expected again


def worth(row: Row, on_gpu: bool) -> tuple[Any, ...]:
    """Rows in the order of this run from the most worth to the least.

    By dtype; in each the layers that Dirac nets are made of before stems and others without an identity term; by suite;
    in each those with the most arithmetic in their nets.
    """
    subject = row.subject
    dtypes = ORDER_ON_GPU if on_gpu else ORDER_ON_CPU
    named = (
        row.suite.name == suite and fnmatchcase(row.direction, direction) and (nets is None or subject.net in nets)
        for suite, direction, nets in SUITES
    )
    rank = next((index for index, is_it in enumerate(named) if is_it), len(SUITES))
    flops, _ = row.suite.cost(subject.problem, STORAGE[row.dtype], row.direction)
    passes = list(row.suite.passes)
    return (
        dtypes.index(row.dtype), not subject.has_identity, rank,
        -flops * subject.count, subject.net, subject.name, passes.index(row.direction),
    )  # fmt: skip


class Budget:
    """Minutes for a whole run, counted from now. A row starts if rows like it ended in what is left."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._minutes, self._clock = minutes, clock
        self._end = clock() + 60 * minutes - ENDING
        self._took: dict[tuple[str, ...], deque[float]] = {}

    def took(self, key: Sequence[str], seconds: float) -> None:
        for kind in _kinds(key):
            self._took.setdefault(kind, deque(maxlen=RECENT)).append(seconds)

    def refusal(self, key: Sequence[str]) -> str | None:
        """Why the row does not start; None if it does."""
        left, needed = self._end - self._clock(), self._estimate(key)
        if needed < left:
            return None
        return (
            f"left out: of the {self._minutes:g} minutes of --budget {max(left, 0):.0f} s were left, and such a row "
            f"takes about {needed:.0f} s"
        )

    def _estimate(self, key: Sequence[str]) -> float:
        """The longest of the last rows of its suite and dtype, else of its suite; the first of a suite is dearer.

        The first of all starts, whatever it takes.
        """
        of_dtype, of_suite, of_all = (self._took.get(kind, ()) for kind in _kinds(key))
        if known := of_dtype or of_suite:
            return max(known)
        return max(UNSEEN, *of_all) if of_all else 0.0


def _kinds(key: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    suite, *_, dtype = key
    return (suite, dtype), (suite,), ()
