"""What the suites need between rows: what is selected, what is done, what they leave behind.

A row is one pass over one subject in one dtype; all its contenders are checked and timed together when the first of
them is asked for, and are then in the results and in the journal.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import pytest
import torch

from bench import ceilings, environment, tuned
from bench.allocator import keep_freed_memory
from bench.budget import Budget
from bench.ceilings import Loads
from bench.clocks import ClockWatch
from bench.journal import Journal, Key
from bench.machine import DeviceLostError, Machine, Sampler
from bench.nets import NETS
from bench.obstacles import has_cudnn
from bench.options import CPU_DTYPES, DTYPES, Selection, chosen
from bench.processes import Together
from bench.results import KINDS, Entries, ResultsFile
from bench.suite import Contender, Row, Subject, Suite, names
from bench.timing import Call, Gpu, Outcomes, device_samples, record, wall_samples
from bench.trial import Trial
from triton_dirac.runtime import timings
from triton_dirac.runtime.targets import target_of

CPU_BATCH = 2  # enough for every sample to take longer than the clock's noise; said in each result's problem
DEVICE_LOST = 75  # the exit status: EX_TEMPFAIL, another process may go on
MOST_DEATHS = 2  # a row that a process died in so often is not started again


class Lab:
    """``results`` is what is left behind: a list for each of KINDS."""

    def __init__(
        self,
        selection: Selection,
        device: torch.device,
        sampler: Sampler | None = None,
        journal: Journal | None = None,
        budget: Budget | None = None,
        file: ResultsFile | None = None,
        command: str = "",
    ) -> None:
        self.selection = selection
        self.device = device
        self.machine = Machine(
            device,
            sampler or self._first_sample,
            compile_all=selection.layers is not None,
            only_times=selection.only_times,
        )
        self.on_gpu = self.machine.on_gpu
        self.warnings: list[str] = list(journal.warnings) if journal else []
        self.ceilings: Loads | None = ((journal and journal.environment) or {}).get("ceilings")
        self.results: Entries = {kind: [] for kind in KINDS}
        self.load_before = environment.load()
        self.clocks_before = environment.clocks() if self.on_gpu else None
        self.journal, self._budget, self.file = journal, budget, file
        self._command = command
        self.has_ended = False
        self._started: dict[str, Any] | None = None  # the environment, once a row has been
        self._done: dict[Key, Entries] = {}
        self._elsewhere: dict[Key, Entries] | None = None  # rows that other processes measured
        self._errors: dict[str, Exception] = {}  # of the last row: they keep its tensors
        if self.on_gpu:
            self.machine.watch = ClockWatch()
            torch.backends.cudnn.benchmark = True
            torch.backends.cudnn.benchmark_limit = 0  # all plans, as ours tries all its configs

    # --- what there is to run ---------------------------------------------------------------------------

    @property
    def batch(self) -> int | None:
        """None stands for each net's published batch."""
        return self.selection.batch or (None if self.on_gpu else CPU_BATCH)

    def rows(self, suite: Suite) -> Iterator[tuple[Row, str]]:
        """(row, contender) of all that is selected."""
        asked = self.selection.dtypes or (DTYPES if self.on_gpu else CPU_DTYPES)
        dtypes = [dtype for dtype in asked if suite.multiplies or dtype != "tf32"]
        for subject in self.subjects(suite):
            for dtype in dtypes:
                for direction in suite.passes:
                    for contender in self._contenders(suite):
                        yield Row(suite, subject, dtype, direction), contender.name

    def subjects(self, suite: Suite) -> Iterator[Subject]:
        """Each distinct layer once, however many of the nets have it."""
        asked = self.selection.nets
        nets = [name for name, net in NETS.items() if (net.by_default if asked is None else chosen(name, asked))]
        for subject in suite.subjects(nets, self.batch):
            if chosen(subject.name, self.selection.layers):
                yield subject

    def row(self, suite: Suite, net: str, layer: str, dtype: str, direction: str) -> Row:
        subject = next(known for known in self.subjects(suite) if (known.net, known.name) == (net, layer))
        return Row(suite, subject, dtype, direction)

    def _contenders(self, suite: Suite) -> list[Contender]:
        """Where cuDNN is torch's convolution, "torch" would only be another name for it."""
        return [
            contender
            for contender in suite.contenders
            if chosen(contender.name, self.selection.contenders)
            and not (self.selection.without and chosen(contender.name, self.selection.without))
            and not (contender.engine == "cpu" and has_cudnn(self.device))
        ]

    # --- results ----------------------------------------------------------------------------------------

    def run(self, benchmark: Any, suite: Suite, *place: str) -> None:
        """Give ``benchmark`` the samples of one contender in one row; else skip, or fail, with the reason.

        ``place``: net, layer, dtype, pass, contender.
        """
        *of_row, contender = place
        row = self.row(suite, *of_row)
        benchmark.group = " ".join(row.key)

        def measure() -> Entries:
            faulted = self.journal.faulted.get(row.key) if self.journal else None
            machine = self.machine if benchmark.enabled else replace(self.machine, sampler=None)
            trial = Trial(row, self._contenders(suite), machine, faulted)
            entries = trial.run()
            self._errors = trial.errors
            self.warn(trial.warnings)
            return entries

        contenders = [known.name for known in self._contenders(suite)]
        self.give(benchmark, self.once(row.key, contenders, measure), contender)

    def take(self, found: Together) -> None:
        """Rows that other processes measured: these here, and no others."""
        self._elsewhere = found.rows
        self.ceilings = found.environment.get("ceilings")
        self.warn(found.warnings)

    def once(self, key: Key, contenders: Sequence[str], measure: Callable[[], Entries]) -> Entries:
        """The entries of a row: known, or in the journal, or measured now; nothing where no time is left for it."""
        if key in self._done:
            return self._done[key]
        self._errors = {}  # first let go of the last row's tensors
        entries = self._from_journal(key) or self._refused(key, contenders)
        if entries is None:
            taken = None if self._elsewhere is None else self._taken(key, contenders)
            entries = self._measured(key, measure if taken is None else lambda: taken)
        self._done[key] = entries
        for kind in KINDS:
            self.results[kind] += entries[kind]
        if self.file:
            self.file.update({"environment": self._started or {}, **self.results})
        return entries

    def _measured(self, key: Key, measure: Callable[[], Entries]) -> Entries:
        if self._started is None:
            self.ceilings = self.ceilings or self._measured_ceilings()
            self._started = self.environment()
            if self.journal:
                self.journal.begin(self._started)
        start = time.monotonic()
        if self.journal:
            self.journal.start(key)
        try:
            entries = measure()
        except DeviceLostError as error:
            self._end_without_device(key, error)
        seconds = time.monotonic() - start
        if self.journal:
            self.journal.finish(key, seconds, entries)
        if self._budget:
            self._budget.took(key, seconds)
        return entries

    def _end_without_device(self, key: Key, error: DeviceLostError) -> NoReturn:
        """No call of the GPU in this process succeeds any more: whoever goes on is another process."""
        message = f"{' '.join(key)}: {error}; nothing was measured after it, and --resume goes on without it"
        if self.journal and error.contender:
            self.journal.fault(key, error.contender, error.reason)
        self.results["not_run"].append({**names(key, error.contender), "failed": True, "reason": str(error)})
        self.warn([message])
        pytest.exit(message, returncode=DEVICE_LOST)

    def warn(self, messages: Sequence[str]) -> None:
        """For the report, and now for whoever looks on."""
        for message in messages:
            self.warnings.append(message)
            if self.journal:
                self.journal.warn(message)
            warnings.warn(message, stacklevel=2)

    def _from_journal(self, key: Key) -> Entries | None:
        if self.journal is None or key not in self.journal.rows:
            return None
        if self._budget:
            self._budget.took(key, self.journal.seconds[key])
        return self.journal.rows[key]

    def _taken(self, key: Key, contenders: Sequence[str]) -> Entries:
        known = (self._elsewhere or {}).get(key)
        return known or _not_run(key, contenders, "no process came to it")

    def _refused(self, key: Key, contenders: Sequence[str]) -> Entries | None:
        reason = self._budget.refusal(key) if self._budget else None
        if self.journal and self.journal.unfinished[key] >= MOST_DEATHS:
            reason = f"left out: {self.journal.unfinished[key]} processes ended while they ran this row"
        if reason is None:
            return None
        return _not_run(key, contenders, reason)

    def give(self, benchmark: Any, entries: Entries, contender: str) -> None:
        """The contender's part of ``entries`` to ``benchmark``: samples, a reason to skip or a failure."""
        for entry in entries["benchmarks"]:
            if entry["extra_info"]["contender"] == contender:
                benchmark.extra_info.update(entry["extra_info"])
                if benchmark.enabled:
                    record(benchmark, entry["stats"]["data"])
                else:
                    benchmark.pedantic(lambda: None)  # --benchmark-disable: checked, not timed
                return
        if contender in self._errors:  # with the place where it was raised
            raise self._errors[contender]
        left_out = next(entry for entry in entries["not_run"] if entry["contender"] == contender)
        (pytest.fail if left_out.get("failed") else pytest.skip)(left_out["reason"])

    # --- how and where ------------------------------------------------------------------------------------------

    def _first_sample(self, calls: Mapping[str, Call]) -> Outcomes:
        """The sampler of the device, made when it is first needed: a GPU's takes memory."""
        if self.on_gpu:
            self.machine.sampler = partial(device_samples, device=Gpu())
        else:
            keep_freed_memory()
            self.machine.sampler = wall_samples
        return self.machine.sampler(calls)

    def _measured_ceilings(self) -> Loads | None:
        try:
            return None if not self.on_gpu else ceilings.of_gpu(self.selection.dtypes or DTYPES, Gpu(), self.device)
        except Exception as error:  # a small GPU, say: shares of ceilings are not worth the run
            self.warn([f"the ceilings are not measured: {type(error).__name__}: {error}"])
            return None

    def environment(self) -> dict[str, Any]:
        clocks_now = environment.clocks() if self.on_gpu else None
        found = environment.environment(self._command, self.clocks_before, clocks_now, self.load_before)
        asked = {name: getattr(self.selection, name) for name in ("batch", "contenders", "without", "processes")}
        return {**found, **asked, "ceilings": self.ceilings, "warnings": self.warnings}

    def end(self) -> dict[str, Any]:
        """What the results file says beside the benchmarks, when the run ends."""
        self.has_ended = True
        try:
            stated = self.environment()
        except Exception:  # a lost GPU does not even tell its name
            stated = {**(self._started or {}), "warnings": self.warnings}
        landscapes = self._landscapes()
        if self.journal and self._started:
            self.journal.begin(stated)
            self.journal.tuned(landscapes)
        kinds = {kind: self.results[kind] for kind in KINDS if kind != "benchmarks"}
        return {"environment": stated, "tuned": landscapes, **kinds}

    def _landscapes(self) -> list[dict[str, Any]]:
        """What tuning measured of the convolutions of this run; nothing where only a GPU could have."""
        try:
            return tuned.landscapes(self.results["benchmarks"], timings.open_store(self.device), target_of(self.device))
        except Exception as error:  # a lost GPU, say: how the picks came about is not worth the run
            self.warn([f"what tuning measured is not in the results: {type(error).__name__}: {error}"])
            return []


def _not_run(key: Key, contenders: Sequence[str], reason: str) -> Entries:
    not_run = [{**names(key, contender), "reason": reason} for contender in contenders]
    return {**{kind: [] for kind in KINDS}, "not_run": not_run}
