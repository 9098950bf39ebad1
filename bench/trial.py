"""One row of a comparison, start to end: who can run here, who is right, how long they take.

What cannot be timed but can be executed is checked on a crop of the subject. A contender that raises costs itself
alone: its entry in ``not_run`` says what it raised, and the others are measured all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from bench import counting, peers
from bench.accuracy import Error, failures
from bench.checker import Checker
from bench.obstacles import obstacle
from bench.results import KINDS, Entries, digits
from bench.suite import STORAGE, Contender, Row, float32_products
from bench.timing import Call, Outcomes, Samples

Sampler = Callable[[Mapping[str, Call]], Outcomes]
Crops = dict[tuple, str | None]  # what failed of each crop that was checked


class Trial:
    """``entries`` is what the row adds to the results file, ``errors`` what contenders of ours raised."""

    def __init__(self, row: Row, contenders: Sequence[Contender], device: torch.device, crops: Crops) -> None:
        self.row, self.contenders, self.device = row, contenders, device
        self.entries: Entries = {kind: [] for kind in KINDS}
        self.errors: dict[str, Exception] = {}
        self._crops = crops

    def run(self, sampler: Sampler | None, compile_all: bool = False) -> Entries:
        """Check all contenders and time those that can be; without a sampler nothing is timed."""
        able = []
        for contender in self.contenders:
            if stopped := obstacle(self.device, self.row, contender, compile_all):
                failure = self._check_on_crop(contender) if stopped.executable else None
                self._leave_out(contender, failure or stopped.reason)
            else:
                able.append(contender)
            self.entries["counted"] += counting.of_plans(self.row, contender)
        with float32_products(self.row.dtype):
            calls = self._check(able)
            outcomes: Outcomes = dict.fromkeys(calls, Samples([])) if sampler is None else self._time(calls, sampler)
        for contender in able:
            outcome = outcomes.get(contender.name)
            if isinstance(outcome, Samples):
                self.entries["benchmarks"].append(self._benchmark(contender, outcome))
            elif outcome is not None:
                self._leave_out(contender, outcome)
        return self.entries

    # --- right or wrong ---------------------------------------------------------------------------------

    def _check(self, able: Sequence[Contender]) -> dict[str, Call]:
        """The calls of those that are right."""
        calls: dict[str, Call] = {}
        if not able:
            return calls
        try:
            work = self.row.work(self.device)
            checker = Checker(self.row.suite, work)
        except Exception as error:  # nobody can be checked, so nobody is timed
            for contender in able:
                self._leave_out(contender, error)
            return calls
        for contender in able:
            try:
                call = contender.build(work)
                errors = checker.errors(call())
                self._keep(contender, errors, "gpu" if self.device.type == "cuda" else "cpu", self.row.subject.sizes)
                if reason := failures(errors):
                    self._leave_out(contender, reason)
                    continue
                self.entries["counted"] += counting.of_call(self.row, contender, call, self.device)
            except Exception as error:
                self._leave_out(contender, error)
            else:
                calls[contender.name] = call
        return calls

    def _check_on_crop(self, contender: Contender) -> str | Exception | None:
        """What failed or why it could not be checked, or None. Equal crops are executed and recorded once."""
        row = replace(self.row, subject=self.row.subject.cropped())
        problem = row.subject.problem
        if lacking := contender.lacks(problem, row.dtype, row.direction, self.device):
            return f"no GPU, and no check of the {problem.C}-channel crop for Triton's interpreter: {lacking}"
        key = (row.suite.name, problem, row.dtype, row.direction, contender.name)
        if key not in self._crops:
            try:
                with float32_products(row.dtype):
                    work = row.work(self.device)
                    errors = Checker(row.suite, work).errors(contender.build(work)())
            except Exception as error:
                return error
            executed_by = "interpreter" if contender.engine == "triton" else "cpu"
            self._keep(contender, errors, executed_by, row.subject.sizes)
            self._crops[key] = failures(errors)
        return self._crops[key]

    # --- times ------------------------------------------------------------------------------------------

    def _time(self, calls: Mapping[str, Call], sampler: Sampler) -> Outcomes:
        try:
            return (self.row.suite.sampler or sampler)(calls) if calls else {}
        except Exception as error:  # not a call's: the sampler's own
            return dict.fromkeys(calls, error)

    # --- entries ----------------------------------------------------------------------------------------

    def _leave_out(self, contender: Contender, why: str | Exception) -> None:
        entry: dict[str, Any] = self.row.names(contender.name)
        if isinstance(why, torch.OutOfMemoryError):
            why = f"the GPU's memory does not hold it: {_first_line(why)}"
        elif isinstance(why, Exception) and contender.engine in peers.ENGINES:
            why = f"{type(why).__name__}: {_first_line(why)[:200]}"  # a reason in the report, and no failure of ours
        if isinstance(why, Exception):
            self.errors[contender.name] = why
            entry["failed"] = True
            why = f"{type(why).__name__}: {why}"
        self.entries["not_run"].append({**entry, "reason": why})

    def _keep(self, contender: Contender, errors: list[Error], executed_by: str, sizes: dict[str, Any]) -> None:
        for error in errors:
            numbers = {name: digits(getattr(error, name), 4) for name in ("error", "scale", "torch_error")}
            known = {"tensor": error.tensor, **numbers, "passed": error.passed, "executed_by": executed_by}
            self.entries["accuracy"].append({**self.row.names(contender.name), **known, "problem": sizes})

    def _benchmark(self, contender: Contender, samples: Samples) -> dict[str, Any]:
        subject = self.row.subject
        flops, moved = self.row.suite.cost(subject.problem, STORAGE[self.row.dtype], self.row.direction)
        info = {
            **self.row.names(contender.name),
            "count": subject.count,
            "nets": dict(subject.counts),
            "problem": subject.sizes,
            "published_batch": subject.published_batch,
            "device": self.device.type,
            "label": "measured",
            "clock": samples.clock,
            "flops": flops,
            "bytes": moved,
            "host_us": samples.host_us,
            "calls_per_sample": samples.calls,
        }
        data = [round(seconds, 10) for seconds in samples.seconds]
        return {"name": " ".join((*self.row.key, contender.name)), "extra_info": info, "stats": {"data": data}}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
