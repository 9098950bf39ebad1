"""One row of a comparison, start to end: who can run here, who is right, how long they take.

A row is one pass over one layer in one dtype; all its contenders are checked and timed together when the
first of them is asked for. What cannot be timed but can be executed is checked on a crop of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import pytest
import torch

from bench import environment, peers
from bench.accuracy import Error, check, failures
from bench.layers import NETS, Layer, crop, shared_layers
from bench.obstacles import Obstacle, has_cudnn, obstacle
from bench.options import CPU_DTYPES, DTYPES, Selection, chosen
from bench.results import digits, sizes
from bench.suite import STORAGE, Contender, Row, Suite, Work, float32_products
from bench.timing import Call, Gpu, Samples, device_samples, record, wall_samples
from triton_dirac.conv.problem import ConvProblem

CPU_BATCH = 2  # enough for every sample to take longer than the clock's noise; said in each result's problem
Outcome = Samples | str | Exception  # its time, why it has none, or how it broke
Sampler = Callable[[Mapping[str, Call]], dict[str, Samples]]


class Lab:
    """Holds what the suites need between rows, and what they leave behind: ``accuracy``, ``not_run``, ``counted``."""

    def __init__(self, selection: Selection, device: torch.device, sampler: Sampler | None = None) -> None:
        self.selection = selection
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.accuracy: list[dict[str, Any]] = []
        self.not_run: list[dict[str, Any]] = []
        self.counted: list[dict[str, Any]] = []
        self.load_before = environment.load()
        self.clocks_before = environment.clocks() if self.on_gpu else None
        self._sampler = sampler
        self._row: Row | None = None
        self._found: dict[str, Outcome] = {}
        self._checked: dict[tuple, tuple[list[Error], list[dict[str, Any]]]] = {}
        if self.on_gpu:
            torch.backends.cudnn.benchmark = True

    # --- what there is to run ---------------------------------------------------------------------------

    @property
    def batch(self) -> int | None:
        """None stands for each net's published batch."""
        return self.selection.batch or (None if self.on_gpu else CPU_BATCH)

    def rows(self, suite: Suite) -> Iterator[tuple[Layer, str, str, str]]:
        """(layer, dtype, pass, contender) of all that is selected."""
        asked = self.selection.dtypes or (DTYPES if self.on_gpu else CPU_DTYPES)
        dtypes = [dtype for dtype in asked if suite.multiplies or dtype != "tf32"]
        for layer in self._layers(suite):
            for dtype in dtypes:
                for direction in suite.passes:
                    for contender in self._contenders(suite):
                        yield layer, dtype, direction, contender.name

    def _layers(self, suite: Suite) -> Iterator[Layer]:
        """Each distinct layer once, however many of the nets have it."""
        nets = (net for net in NETS if chosen(net, self.selection.nets))
        for layer in shared_layers(nets, self.batch):
            if (layer.dirac or not suite.dirac_only) and chosen(layer.name, self.selection.layers):
                yield layer

    def _contenders(self, suite: Suite) -> list[Contender]:
        """Where cuDNN is torch's convolution, "torch" would only be another name for it."""
        return [
            contender
            for contender in suite.contenders
            if chosen(contender.name, self.selection.contenders)
            and not (contender.engine == "cpu" and has_cudnn(self.device))
        ]

    def _obstacle(self, row: Row, contender: Contender) -> Obstacle | None:
        return obstacle(self.device, row, contender, compile_all=self.selection.layers is not None)

    # --- one result -------------------------------------------------------------------------------------

    def run(self, benchmark, suite: Suite, net: str, layer: str, dtype: str, direction: str, contender: str) -> None:
        """Give ``benchmark`` the samples of one contender in one row; else skip with the reason."""
        found = next(known for known in self._layers(suite) if (known.net, known.name) == (net, layer))
        who = next(known for known in suite.contenders if known.name == contender)
        row = Row(suite, found, dtype, direction)
        benchmark.group = f"{suite.name} {direction} {net} {layer} {dtype}"
        outcome: Outcome
        if stopped := self._obstacle(row, who):
            outcome = stopped.reason
            if stopped.executable:
                outcome = self._check_on_crop(row, who) or outcome
        else:
            outcome = self._outcomes(row, timed=benchmark.enabled)[contender]
        if isinstance(outcome, Samples):
            benchmark.extra_info.update(self._extra_info(row, who, outcome))
            if benchmark.enabled:
                record(benchmark, outcome)
            else:
                benchmark.pedantic(lambda: None)  # --benchmark-disable: checked, not timed
            return
        reason = f"{type(outcome).__name__}: {outcome}" if isinstance(outcome, Exception) else outcome
        self.not_run.append({**row.names(who), "reason": reason})
        if isinstance(outcome, Exception):
            raise outcome
        pytest.skip(reason)

    def _extra_info(self, row: Row, contender: Contender, samples: Samples) -> dict[str, Any]:
        problem = row.layer.problem
        flops, moved = row.suite.cost(problem, STORAGE[row.dtype], row.direction)
        return {
            **row.names(contender),
            "count": row.layer.count,
            "nets": dict(row.layer.counts),
            "problem": asdict(problem),
            "published_batch": row.layer.published_batch,
            "device": self.device.type,
            "label": "measured",
            "clock": "device events, cold L2" if self.on_gpu else "wall clock",
            "flops": flops,
            "bytes": moved,
            "host_us": samples.host_us,
            "calls_per_sample": samples.calls,
        }

    # --- a row ------------------------------------------------------------------------------------------

    def _outcomes(self, row: Row, timed: bool) -> dict[str, Outcome]:
        """What became of each contender that can be timed on this row; kept until the next is asked for."""
        if self._row != row:
            self._row, self._found = None, {}  # an exception kept here would keep the last row's tensors too
            self._found = self._run_row(row, timed)
            self._row = row
        return self._found

    def _run_row(self, row: Row, timed: bool) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        calls: dict[str, Call] = {}
        contenders = self._contenders(row.suite)
        able = [contender for contender in contenders if self._obstacle(row, contender) is None]
        with float32_products(row.dtype):
            try:
                work = row.suite.work(row.layer.problem, row.dtype, row.direction, self.device)
                checker = Checker(row.suite, work)
            except torch.OutOfMemoryError as error:
                return {contender.name: _out_of_memory(error) for contender in able}
            for contender in able:
                try:
                    call = contender.build(work)
                    errors = checker.errors(call())
                except torch.OutOfMemoryError as error:
                    outcomes[contender.name] = _out_of_memory(error)
                    continue
                except Exception as error:  # its own test reports it; the others are measured all the same
                    is_peer = contender.engine in peers.ENGINES
                    outcomes[contender.name] = _breaks(error) if is_peer else error
                    continue
                self._keep(row, contender, errors, "gpu" if self.on_gpu else "cpu", row.layer.problem)
                if reason := failures(errors):
                    outcomes[contender.name] = reason
                else:
                    calls[contender.name] = call
            del checker  # and its float64 tensors
            if calls:
                outcomes.update(self._sample(calls) if timed else dict.fromkeys(calls, Samples([])))
        return outcomes

    def _sample(self, calls: Mapping[str, Call]) -> dict[str, Samples]:
        if self._sampler is None:
            gpu = Gpu() if self.on_gpu else None
            self._sampler = wall_samples if gpu is None else lambda calls: device_samples(calls, gpu)
        return self._sampler(calls)

    def _check_on_crop(self, row: Row, contender: Contender) -> str | Exception | None:
        """Check on a crop of the layer. What failed or why it could not be checked, or None.

        Equal crops are executed and recorded once; the record names the other layers under ``also``.
        """
        problem = crop(row.layer.problem)
        if lacking := contender.lacks(problem, row.dtype, row.direction, self.device):
            return f"no GPU, and no check of the {problem.C}-channel crop for Triton's interpreter: {lacking}"
        key = (row.suite.name, problem, row.dtype, row.direction, contender.name)
        if key in self._checked:
            errors, entries = self._checked[key]
            for entry in entries:
                entry.setdefault("also", []).append(f"{row.layer.net} {row.layer.name}")
            return failures(errors)
        try:
            with float32_products(row.dtype):
                work = row.suite.work(problem, row.dtype, row.direction, self.device)
                errors = Checker(row.suite, work).errors(contender.build(work)())
        except Exception as error:
            return error
        executed_by = "interpreter" if contender.engine == "triton" else "cpu"
        self._checked[key] = errors, self._keep(row, contender, errors, executed_by, problem)
        return failures(errors)

    def _keep(
        self, row: Row, contender: Contender, errors: list[Error], executed_by: str, problem: ConvProblem
    ) -> list[dict[str, Any]]:
        """Record ``errors``; returns the entries made, one for each."""
        entries = []
        for error in errors:
            numbers = {name: digits(getattr(error, name), 4) for name in ("error", "scale", "torch_error")}
            entries.append(
                {
                    **row.names(contender),
                    "tensor": error.tensor,
                    **numbers,
                    "passed": error.passed,
                    "executed_by": executed_by,
                    "problem": sizes(problem),
                }
            )
        self.accuracy += entries
        return entries


class Checker:
    """The true results of a work, and how far plain torch in the same dtype is from them."""

    def __init__(self, suite: Suite, work: Work) -> None:
        self._suite, self._work = suite, work
        self._truth = suite.truth(work)
        self._torch_errors = suite.torch_errors(work, self._truth)

    def errors(self, results: tuple[torch.Tensor, ...]) -> list[Error]:
        named = self._suite.named(self._work.direction, results)
        return check(named, self._truth, self._torch_errors, self._work.dtype)


def _breaks(error: Exception) -> str:
    """A peer's error in a line: what it cannot do is a reason in the report, and no failure of this project."""
    first, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first[:200]}"


def _out_of_memory(error: torch.OutOfMemoryError) -> str:
    return f"the GPU's memory does not hold it: {str(error).splitlines()[0]}"
