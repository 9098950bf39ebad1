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

from bench import environment
from bench.accuracy import Error, check, failures
from bench.layers import NETS, Layer, crop, layers
from bench.obstacles import Obstacle, has_cudnn, obstacle
from bench.options import Selection, chosen
from bench.results import digits
from bench.suite import STORAGE, Contender, Suite, Work, float32_products
from bench.timing import Call, Gpu, Samples, device_samples, record, wall_samples
from triton_dirac.problem import ConvProblem

CPU_BATCH = 2  # enough for every sample to take longer than the clock's noise; said in each result's problem
Outcome = Samples | str | Exception  # its time, why it has none, or how it broke
Sampler = Callable[[Mapping[str, Call]], dict[str, Samples]]


class Lab:
    """Holds what the suites need between rows, and what they leave behind: ``accuracy`` and ``not_run``."""

    def __init__(self, selection: Selection, device: torch.device, sampler: Sampler | None = None) -> None:
        self.selection = selection
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.accuracy: list[dict[str, Any]] = []
        self.not_run: list[dict[str, Any]] = []
        self.clocks_before = environment.clocks() if self.on_gpu else None
        self._sampler = sampler
        self._row: tuple[tuple, dict[str, Outcome]] = ((), {})
        self._checked: dict[tuple, list[Error]] = {}
        if self.on_gpu:
            torch.backends.cudnn.benchmark = True

    # --- what there is to run ---------------------------------------------------------------------------

    @property
    def batch(self) -> int | None:
        """None stands for each net's published batch."""
        return self.selection.batch or (None if self.on_gpu else CPU_BATCH)

    def rows(self, suite: Suite) -> Iterator[tuple[Layer, str, str, str]]:
        """(layer, dtype, pass, contender) of all that is selected."""
        default = ("float32", "float16", "bfloat16") if self.on_gpu else ("float32", "float16")
        for layer in self._layers(suite):
            for dtype in self.selection.dtypes or default:
                for direction in suite.passes:
                    for contender in self._contenders(suite):
                        yield layer, dtype, direction, contender.name

    def _layers(self, suite: Suite) -> Iterator[Layer]:
        for net in NETS:
            if chosen(net, self.selection.nets):
                for layer in layers(net, self.batch):
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

    def _obstacle(
        self, suite: Suite, layer: Layer, dtype: str, direction: str, contender: Contender
    ) -> Obstacle | None:
        compile_all = self.selection.layers is not None
        return obstacle(self.device, suite, layer, dtype, direction, contender, compile_all)

    # --- one result -------------------------------------------------------------------------------------

    def run(
        self, benchmark, suite: Suite, net: str, layer: str, dtype: str, direction: str, contender: str
    ) -> None:
        """Give ``benchmark`` the samples of one contender in one row; else skip with the reason."""
        found = next(known for known in layers(net, self.batch) if known.name == layer)
        who = next(known for known in suite.contenders if known.name == contender)
        names = self._names(suite, found, dtype, direction, who)
        benchmark.group = f"{suite.name} {direction} {net} {layer} {dtype}"
        outcome: Outcome
        if found_obstacle := self._obstacle(suite, found, dtype, direction, who):
            outcome = found_obstacle.reason
            if found_obstacle.executable:
                outcome = self._check_on_crop(suite, found, dtype, direction, who) or outcome
        else:
            outcome = self._outcomes(suite, found, dtype, direction, timed=benchmark.enabled)[contender]
        if isinstance(outcome, Samples):
            benchmark.extra_info.update(self._extra_info(names, suite, found, outcome))
            if benchmark.enabled:
                record(benchmark, outcome)
            else:
                benchmark.pedantic(lambda: None)  # --benchmark-disable: checked, not timed
            return
        reason = f"{type(outcome).__name__}: {outcome}" if isinstance(outcome, Exception) else outcome
        self.not_run.append({**names, "reason": reason})
        if isinstance(outcome, Exception):
            raise outcome
        pytest.skip(reason)

    def _names(
        self, suite: Suite, layer: Layer, dtype: str, direction: str, contender: Contender
    ) -> dict[str, str]:
        return {
            "suite": suite.name,
            "pass": direction,
            "net": layer.net,
            "layer": layer.name,
            "dtype": dtype,
            "contender": contender.name,
        }

    def _extra_info(
        self, names: dict[str, str], suite: Suite, layer: Layer, samples: Samples
    ) -> dict[str, Any]:
        flops, moved = suite.cost(layer.problem, STORAGE[names["dtype"]], names["pass"])
        return {
            **names,
            "count": layer.count,
            "problem": asdict(layer.problem),
            "published_batch": layer.published_batch,
            "device": self.device.type,
            "label": "measured",
            "clock": "device events, cold L2" if self.on_gpu else "wall clock",
            "flops": flops,
            "bytes": moved,
            "host_us": samples.host_us,
            "calls_per_sample": samples.calls,
        }

    # --- a row ------------------------------------------------------------------------------------------

    def _outcomes(
        self, suite: Suite, layer: Layer, dtype: str, direction: str, timed: bool
    ) -> dict[str, Outcome]:
        """What became of each contender that can be timed on this row; kept until the next is asked for."""
        key = (suite.name, layer, dtype, direction)
        if self._row[0] != key:
            self._row = ((), {})  # frees the last row's samples before this row's tensors are made
            self._row = (key, self._run_row(suite, layer, dtype, direction, timed))
        return self._row[1]

    def _run_row(
        self, suite: Suite, layer: Layer, dtype: str, direction: str, timed: bool
    ) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        calls: dict[str, Call] = {}
        able = [
            contender
            for contender in self._contenders(suite)
            if self._obstacle(suite, layer, dtype, direction, contender) is None
        ]
        with float32_products(dtype):
            try:
                work = suite.work(layer.problem, dtype, direction, self.device)
                checker = Checker(suite, work)
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
                    outcomes[contender.name] = error
                    continue
                names = self._names(suite, layer, dtype, direction, contender)
                self._keep(names, errors, "gpu" if self.on_gpu else "cpu", layer.problem)
                if reason := failures(errors):
                    outcomes[contender.name] = reason
                else:
                    calls[contender.name] = call
            del checker
            if calls:
                outcomes.update(self._sample(calls) if timed else dict.fromkeys(calls, Samples([])))
        return outcomes

    def _sample(self, calls: Mapping[str, Call]) -> dict[str, Samples]:
        if self._sampler is None:
            gpu = Gpu() if self.on_gpu else None
            self._sampler = wall_samples if gpu is None else lambda calls: device_samples(calls, gpu)
        return self._sampler(calls)

    def _check_on_crop(
        self, suite: Suite, layer: Layer, dtype: str, direction: str, contender: Contender
    ) -> str | Exception | None:
        """Check on a crop of the layer; equal crops are executed once. What failed, or None."""
        problem = crop(layer.problem)
        key = (suite.name, problem, dtype, direction, contender.name)
        if key not in self._checked:
            try:
                with float32_products(dtype):
                    work = suite.work(problem, dtype, direction, self.device)
                    self._checked[key] = Checker(suite, work).errors(contender.build(work)())
            except Exception as error:
                return error
        names = self._names(suite, layer, dtype, direction, contender)
        executed_by = "interpreter" if contender.engine == "triton" else "cpu"
        self._keep(names, self._checked[key], executed_by, problem)
        return failures(self._checked[key])

    def _keep(
        self, names: dict[str, str], errors: list[Error], executed_by: str, problem: ConvProblem
    ) -> None:
        for error in errors:
            numbers = {
                name: digits(value, 4) if isinstance(value, float) else value
                for name, value in asdict(error).items()
            }
            self.accuracy.append({**names, **numbers, "executed_by": executed_by, "problem": asdict(problem)})


class Checker:
    """The true results of a work, and how far plain torch in the same dtype is from them."""

    def __init__(self, suite: Suite, work: Work) -> None:
        self._suite, self._work = suite, work
        self._truth = suite.truth(work)
        self._torch_errors = suite.torch_errors(work, self._truth)

    def errors(self, results: tuple[torch.Tensor, ...]) -> list[Error]:
        named = self._suite.named(self._work.direction, results)
        return check(named, self._truth, self._torch_errors, self._work.dtype)


def _out_of_memory(error: torch.OutOfMemoryError) -> str:
    return f"the GPU's memory does not hold it: {str(error).splitlines()[0]}"
