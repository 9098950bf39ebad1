"""What the suites need between rows: what is selected, what is done, what they leave behind.

A row is one pass over one subject in one dtype; all its contenders are checked and timed together when the first of
them is asked for, and are then in the results and in the journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from bench import environment
from bench.allocator import keep_freed_memory
from bench.budget import Budget
from bench.journal import Journal, Key
from bench.nets import NETS
from bench.obstacles import has_cudnn
from bench.options import CPU_DTYPES, DTYPES, Selection, chosen
from bench.results import KINDS, Entries, ResultsFile
from bench.suite import Contender, Row, Subject, Suite, names
from bench.timing import Gpu, device_samples, record, wall_samples
from bench.trial import Crops, Sampler, Trial

CPU_BATCH = 2  # enough for every sample to take longer than the clock's noise; said in each result's problem
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
        self.on_gpu = device.type == "cuda"
        self.results: Entries = {kind: [] for kind in KINDS}
        self.load_before = environment.load()
        self.clocks_before = environment.clocks() if self.on_gpu else None
        self._sampler = sampler
        self._journal, self._budget, self.file = journal, budget, file
        self._command = command
        self.has_ended = False
        self._started: dict[str, Any] | None = None  # the environment, once a row has been
        self._done: dict[Key, Entries] = {}
        self._errors: dict[str, Exception] = {}  # of the last row: they keep its tensors
        self._crops: Crops = {}
        if self.on_gpu:
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
            trial = Trial(row, self._contenders(suite), self.device, self._crops)
            entries = trial.run(self._sample if benchmark.enabled else None, self.selection.layers is not None)
            self._errors = trial.errors
            return entries

        contenders = [known.name for known in self._contenders(suite)]
        self.give(benchmark, self.once(row.key, contenders, measure), contender)

    def once(self, key: Key, contenders: Sequence[str], measure: Callable[[], Entries]) -> Entries:
        """The entries of a row: known, or in the journal, or measured now; nothing where no time is left for it."""
        if key in self._done:
            return self._done[key]
        self._errors = {}  # first let go of the last row's tensors
        entries = self._from_journal(key) or self._refused(key, contenders)
        if entries is None:
            entries = self._measured(key, measure)
        self._done[key] = entries
        for kind in KINDS:
            self.results[kind] += entries[kind]
        if self.file:
            self.file.update({"environment": self._started or {}, **self.results})
        return entries

    def _measured(self, key: Key, measure: Callable[[], Entries]) -> Entries:
        if self._started is None:
            self._started = self.environment()
            if self._journal:
                self._journal.begin(self._started)
        start = time.monotonic()
        if self._journal:
            self._journal.start(key)
        entries = measure()
        seconds = time.monotonic() - start
        if self._journal:
            self._journal.finish(key, seconds, entries)
        if self._budget:
            self._budget.took(key, seconds)
        return entries

    def _from_journal(self, key: Key) -> Entries | None:
        if self._journal is None or key not in self._journal.rows:
            return None
        if self._budget:
            self._budget.took(key, self._journal.seconds[key])
        return self._journal.rows[key]

    def _refused(self, key: Key, contenders: Sequence[str]) -> Entries | None:
        reason = self._budget.refusal(key) if self._budget else None
        if self._journal and self._journal.unfinished[key] >= MOST_DEATHS:
            reason = f"left out: {self._journal.unfinished[key]} processes ended while they ran this row"
        if reason is None:
            return None
        not_run = [{**names(key, contender), "reason": reason} for contender in contenders]
        return {**{kind: [] for kind in KINDS}, "not_run": not_run}

    def give(self, benchmark: Any, entries: Entries, contender: str) -> None:
        """Of a row's ``entries`` the contender's to ``benchmark``: samples, a reason to skip or a failure."""
        for entry in entries["benchmarks"]:
            if entry["extra_info"]["contender"] == contender:
                benchmark.extra_info.update(entry["extra_info"])
                if benchmark.enabled:
                    record(benchmark, entry["stats"]["data"])
                else:
                    benchmark.pedantic(lambda: None)  # --benchmark-disable: checked, not timed
                return
        if contender in self._errors:
            raise self._errors[contender]
        left_out = next(entry for entry in entries["not_run"] if entry["contender"] == contender)
        (pytest.fail if left_out.get("failed") else pytest.skip)(left_out["reason"])

    def _sample(self, calls: Any) -> Any:
        if self._sampler is None:
            if self.on_gpu:
                gpu = Gpu()
                self._sampler = lambda calls: device_samples(calls, gpu)
            else:
                keep_freed_memory()
                self._sampler = wall_samples
        return self._sampler(calls)

    # --- where ------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, Any]:
        clocks_now = environment.clocks() if self.on_gpu else None
        found = environment.environment(self._command, self.clocks_before, clocks_now, self.load_before)
        return {**found, "batch": self.selection.batch, "contenders": self.selection.contenders}

    def end(self) -> dict[str, Any]:
        """What the results file says beside the benchmarks, when the run ends."""
        self.has_ended = True
        environment = self.environment()
        if self._journal and self._started:
            self._journal.begin(environment)
        return {"environment": environment, **{kind: self.results[kind] for kind in KINDS if kind != "benchmarks"}}
