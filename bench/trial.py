"""One row of a comparison, start to end: who can run here, who is right, how long they take.

What cannot be timed but can be executed is checked on a miniature of the subject. A contender that raises costs itself
alone: its entry in ``not_run`` says what it raised, and the others are measured all the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bench import counting, peers, second_look
from bench.accuracy import Error, failures
from bench.checker import Checker
from bench.machine import Machine, first_line
from bench.obstacles import obstacle
from bench.results import KINDS, Entries, digits
from bench.suite import Contender, Row, float32_products
from bench.timing import Call, Samples
from triton_dirac.tuning.work import STORAGE


class Trial:
    """``entries`` is what the row adds to the results file, ``errors`` what contenders of ours raised."""

    def __init__(
        self, row: Row, contenders: Sequence[Contender], machine: Machine, faulted: Mapping[str, str] | None = None
    ) -> None:
        """``faulted``: contenders that lost the GPU in this row before, and how; they are not run again."""
        self.row, self.contenders, self.machine = row, contenders, machine
        self.entries: Entries = {kind: [] for kind in KINDS}
        self.errors: dict[str, Exception] = {}
        self.warnings: list[str] = []
        self._faulted = faulted or {}
        self._state: dict[str, Any] = {}  # the GPU's, before and after
        self._info: dict[str, dict[str, Any]] = {}  # by contender

    def run(self) -> Entries:
        """Check all contenders and time those that can be.

        Raises:
            DeviceLostError: the GPU can be used no more, and who is the cause.
        """
        able = [contender for contender in self.contenders if self._is_able(contender)]
        with float32_products(self.row.dtype):
            calls = self._check(able)
            outcomes = self._time(calls, able)
        for contender in able:
            outcome = outcomes.get(contender.name)
            if isinstance(outcome, Samples):
                self.entries["benchmarks"].append(self._benchmark(contender, outcome))
            elif outcome is not None:
                self._leave_out(contender, outcome)
        return self.entries

    def _is_able(self, contender: Contender) -> bool:
        """Whether it can be timed here; else it is checked, if that can be, and left out."""
        if contender.name in self._faulted:
            self._leave_out(contender, f"lost the GPU: {self._faulted[contender.name]}", failed=True)
            return False
        try:
            self.entries["counted"] += counting.of_plans(self.row, contender)
            stopped = obstacle(self.machine.device, self.row, contender, self.machine.compile_all)
            if stopped is None:
                return True
            is_checked = stopped.executable and not self.machine.only_times
            failure = self._check_shrunk(contender) if is_checked else None
        except Exception as error:
            self._leave_out(contender, error)
        else:
            self._leave_out(contender, failure or stopped.reason)
        return False

    # --- right or wrong ---------------------------------------------------------------------------------

    def _check(self, able: Sequence[Contender]) -> dict[str, Call]:
        """The calls of those that are right.

        Their first call is timed, building included: compiling, tuning and planning, as far as no row before has.
        """
        calls: dict[str, Call] = {}
        if not able:
            return calls
        try:
            work = self._work = self.row.work(self.machine.device)
            checker = Checker(self.row.suite, work)
        except Exception as error:  # nobody can be checked, so nobody is timed
            self.machine.require_device("", error)
            for contender in able:
                self._leave_out(contender, error)
            return calls
        for contender in able:
            try:
                start = time.perf_counter()
                call = contender.build(work)
                results = call()
                if self.machine.on_gpu:
                    torch.cuda.synchronize(self.machine.device)
                self._info[contender.name] = {"first_call_seconds": digits(time.perf_counter() - start, 4)}
                errors = checker.errors(results)
                self._keep(contender, errors, "gpu" if self.machine.on_gpu else "cpu", self.row.subject.sizes)
                if reason := failures(errors):
                    self._leave_out(contender, reason)
                    continue
                self.entries["counted"] += counting.of_call(self.row, contender, call, self.machine.device)
            except Exception as error:
                self.machine.require_device(contender.name, error)
                self._leave_out(contender, error)
            else:
                calls[contender.name] = call
        return calls

    def _check_shrunk(self, contender: Contender) -> str | None:
        """What failed or why it could not be checked, or None. Equal miniatures are executed and recorded once."""
        row = replace(self.row, subject=self.row.subject.shrunk())
        problem = row.subject.problem
        if lacking := contender.lacks(problem, row.dtype, row.direction, self.machine.device):
            return f"no GPU, and no check of the {problem.C}-channel miniature for Triton's interpreter: {lacking}"
        key = (row.suite.name, problem, row.dtype, row.direction, contender.name)
        if key not in self.machine.miniatures:
            with float32_products(row.dtype):
                work = row.work(self.machine.device)
                errors = Checker(row.suite, work).errors(contender.build(work)())
            executed_by = "interpreter" if contender.engine == "triton" else "cpu"
            self._keep(contender, errors, executed_by, row.subject.sizes)
            self.machine.miniatures[key] = failures(errors)
        return self.machine.miniatures[key]

    # --- times ------------------------------------------------------------------------------------------

    def _time(self, calls: Mapping[str, Call], able: Sequence[Contender]) -> dict[str, Samples | Exception | str]:
        if self.machine.sampler is None or not calls:
            return dict.fromkeys(calls, Samples([]))
        self._look("clocks_before")
        sample = partial(self.machine.sample, sampler=self.row.suite.sampler)
        outcomes = sample(calls)
        self._look("clocks_after")
        found: dict[str, Samples | Exception | str] = {**outcomes}
        rival, suspects = second_look.suspects(outcomes, able)
        if not suspects:
            return found
        by_name = {contender.name: contender for contender in suspects}
        seen = second_look.look([*by_name], rival, outcomes, calls, self._check_again, sample)
        for name, again in seen.items():
            if isinstance(again.outcome, Exception):
                self.machine.require_device(name, again.outcome)
            self._keep(by_name[name], again.errors, "gpu", self.row.subject.sizes)
            self._info[name]["times_as_fast_as_cudnn"] = again.ratios
            found[name] = again.outcome
        return found

    def _check_again(self, calls: Mapping[str, Call]) -> dict[str, list[Error] | Exception]:
        try:
            checker = Checker(self.row.suite, self._work)
        except Exception as error:
            return dict.fromkeys(calls, error)
        found: dict[str, list[Error] | Exception] = {}
        for name, call in calls.items():
            try:
                found[name] = checker.errors(call())
            except Exception as error:
                found[name] = error
        return found

    def _look(self, when: str) -> None:
        if self.machine.watch and (state := self.machine.watch.state()):
            self._state[when] = state
            if warning := self.machine.watch.fall(state):
                self.warnings.append(f"{' '.join(self.row.key)}: {warning}")

    # --- entries ----------------------------------------------------------------------------------------

    def _leave_out(self, contender: Contender, why: str | Exception, failed: bool = False) -> None:
        entry: dict[str, Any] = self.row.names(contender.name)
        if isinstance(why, torch.OutOfMemoryError):
            why = f"the GPU's memory does not hold it: {first_line(why)}"
        elif isinstance(why, Exception) and contender.engine in peers.ENGINES:
            why = f"{type(why).__name__}: {first_line(why)[:200]}"  # a reason in the report, and no failure of ours
        if isinstance(why, Exception):
            self.errors[contender.name] = why
            failed, why = True, f"{type(why).__name__}: {why}"
        if failed:
            entry["failed"] = True
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
            "device": self.machine.device.type,
            "label": "measured",
            "clock": samples.clock,
            "flops": flops,
            "bytes": moved,
            "host_us": samples.host_us,
            "peak_bytes": samples.peak_bytes,
            "calls_per_sample": samples.calls,
            **self._state,
            **self._info.get(contender.name, {}),
        }
        data = [round(seconds, 10) for seconds in samples.seconds]
        return {"name": " ".join((*self.row.key, contender.name)), "extra_info": info, "stats": {"data": data}}
