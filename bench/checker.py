"""Whether a contender's results are right: held against their definition in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bench.accuracy import Error, Value, check
from bench.suite import Results, Suite, Work


class Checker:
    """The true results of a work, and how far plain torch in the same dtype is from them."""

    def __init__(self, suite: Suite, work: Work) -> None:
        self._suite, self._work = suite, work
        with without_search():
            self._truth: dict[str, Value] = suite.truth(work)
            self._torch_errors = suite.torch_errors(work, self._truth)

    def errors(self, results: Results) -> list[Error]:
        named = self._suite.named(self._work.direction, results)
        return check(named, self._truth, self._torch_errors, self._work.dtype)


@contextmanager
def without_search() -> Iterator[None]:
    """cuDNN takes its first guess: no search among all its plans for a result that nobody times."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
