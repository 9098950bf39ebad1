"""Weight preparation of whole nets: all Dirac layers of DiracNet-28-10, 34-2 and ImageNet-34, one call each.

Beside times, the results hold what is counted (``counted``): kernel launches, and bytes moved beside the least.
On a CPU only float32 is timed; the Triton contenders run on cropped nets in Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from bench import counting, networks
from bench.accuracy import Error, failures
from bench.allocator import keep_freed_memory
from bench.conftest import lab_of
from bench.lab import Lab, Outcome
from bench.networks import LAYER, NETWORKS, PASSES, SUITE, Checker, NetContender, shapes
from bench.obstacles import EMULATED, FLOAT32_ONLY, NO_COMPILER, NO_GPU, TRUNCATED, Obstacle, has_cpp_compiler
from bench.options import chosen
from bench.results import digits
from bench.suite import STORAGE
from bench.timing import REPLAY, Gpu, Samples, device_samples, record, wall_samples

NO_GRAPH = Obstacle("no GPU: a CUDA graph needs one", False)


class Place(NamedTuple):
    """What contenders are compared on."""

    net: str
    dtype: str
    direction: str

    def names(self, contender: NetContender) -> dict[str, str]:
        return {
            "suite": SUITE,
            "pass": self.direction,
            "net": self.net,
            "layer": LAYER,
            "dtype": self.dtype,
            "contender": contender.name,
        }

    @property
    def problem(self) -> dict[str, int]:
        """What a results file calls the problem of a whole net."""
        return described(shapes(self.net))


def described(of: Any) -> dict[str, int]:
    return {"layers": len(of), "weights": sum(torch.Size(shape).numel() for shape in of)}


def obstacle(device: torch.device, dtype: str, contender: NetContender) -> Obstacle | None:
    """Why ``contender`` is not timed on this machine; None if it is."""
    if device.type == "cuda":
        return None
    if contender.graph:
        return NO_GRAPH
    if contender.engine == "triton":
        return TRUNCATED if dtype == "bfloat16" else NO_GPU
    if contender.engine == "compile" and not has_cpp_compiler():
        return NO_COMPILER
    if dtype != "float32":
        return FLOAT32_ONLY if contender.engine == "compile" else EMULATED
    return None


class NetsLab:
    """Runs what is selected, and leaves accuracy, counts and what was not run in the session's lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._place: Place | None = None
        self._found: dict[str, Outcome] = {}
        self._checked_for = ("", "")
        self._checked: tuple[networks.NetWork, Checker] | None = None

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(net, dtype, pass, contender) of all that is selected; none where layers are named."""
        selection = self.lab.selection
        dtypes = selection.dtypes or (("float32", "bfloat16") if self.lab.on_gpu else ("float32",))
        return [
            (net, dtype, direction, contender.name)
            for net in NETWORKS
            if chosen(net, selection.nets) and selection.layers is None
            for dtype in dtypes
            if dtype != "tf32"
            for direction in PASSES
            for contender in networks.CONTENDERS
            if chosen(contender.name, selection.contenders)
        ]

    def run(self, benchmark: Any, place: Place, contender: NetContender) -> None:
        """Give ``benchmark`` the samples of one contender; else skip with the reason."""
        benchmark.group = " ".join((SUITE, place.direction, place.net, place.dtype))
        stopped = obstacle(self.lab.device, place.dtype, contender)
        outcome: Outcome
        if stopped is None:
            outcome = self._outcomes(place, benchmark.enabled)[contender.name]
        else:
            outcome = stopped.reason
            if stopped.executable:
                outcome = self._check_on_crop(place, contender) or outcome
        if contender.engine == "triton" and not contender.graph:
            self._count_launches(place, contender)
        if isinstance(outcome, Samples):
            benchmark.extra_info.update(self._extra_info(place, contender, outcome))
            if benchmark.enabled:
                record(benchmark, outcome)
            else:
                benchmark.pedantic(lambda: None)  # --benchmark-disable: checked, not timed
            return
        reason = f"{type(outcome).__name__}: {outcome}" if isinstance(outcome, Exception) else outcome
        self.lab.not_run.append({**place.names(contender), "reason": reason})
        if isinstance(outcome, Exception):
            raise outcome
        pytest.skip(reason)

    def _extra_info(self, place: Place, contender: NetContender, samples: Samples) -> dict[str, Any]:
        flops, moved = networks.cost(shapes(place.net), STORAGE[place.dtype], place.direction)
        return {
            **place.names(contender),
            "count": 1,
            "problem": place.problem,
            "device": self.lab.device.type,
            "label": "measured",
            "clock": "device events, cold L2" if self.lab.on_gpu else "wall clock",
            "flops": flops,
            "bytes": moved,
            "host_us": samples.host_us,
            "calls_per_sample": samples.calls,
        }

    def _outcomes(self, place: Place, timed: bool) -> dict[str, Outcome]:
        """What became of each contender that can be timed here; kept until the next place is asked for."""
        if self._place != place:
            self._found = {}
            self._found = self._run_place(place, timed)
            self._place = place
        return self._found

    def _run_place(self, place: Place, timed: bool) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        calls = {}
        work, checker = self._work(place)
        for contender in networks.CONTENDERS:
            is_wanted = chosen(contender.name, self.lab.selection.contenders)
            if not is_wanted or obstacle(self.lab.device, place.dtype, contender):
                continue
            try:
                call = contender.build(work)
                errors = checker.errors(call(), place.direction)
            except Exception as error:  # its own test reports it; the others are measured all the same
                outcomes[contender.name] = error
                continue
            self._keep(place, contender, errors, "gpu" if self.lab.on_gpu else "cpu", place.problem)
            if reason := failures(errors):
                outcomes[contender.name] = reason
                continue
            calls[contender.name] = call
            self._count_operations(place, contender, call)
        if not timed:
            return outcomes | dict.fromkeys(calls, Samples([]))
        if self.lab.on_gpu:
            return outcomes | device_samples(calls, Gpu())
        keep_freed_memory()
        return outcomes | wall_samples(calls)

    def _work(self, place: Place) -> tuple[networks.NetWork, Checker]:
        """Both passes of a net have the same inputs and the same truth: kept until another net is asked for."""
        if self._checked is None or self._checked_for != (place.net, place.dtype):
            self._checked = None  # first let go of the last net's tensors
            work = networks.draw(shapes(place.net), place.direction, place.dtype, self.lab.device)
            self._checked, self._checked_for = (work, Checker(work)), (place.net, place.dtype)
        work, checker = self._checked
        return replace(work, direction=place.direction), checker

    def _check_on_crop(self, place: Place, contender: NetContender) -> str | Exception | None:
        """Check on the cropped net. What failed, or None."""
        cropped = networks.crop(shapes(place.net))
        try:
            work = networks.draw(cropped, place.direction, place.dtype, self.lab.device)
            errors = Checker(work).errors(contender.build(work)(), place.direction)
        except Exception as error:
            return error
        executor = "interpreter" if contender.engine == "triton" else "cpu"
        self._keep(place, contender, errors, executor, described(cropped))
        return failures(errors)

    def _keep(
        self, place: Place, contender: NetContender, errors: list[Error], executed_by: str, problem: dict[str, int]
    ) -> None:
        for error in errors:
            numbers = {name: digits(getattr(error, name), 4) for name in ("error", "scale", "torch_error")}
            known = {"tensor": error.tensor, **numbers, "passed": error.passed, "executed_by": executed_by}
            self.lab.accuracy.append({**place.names(contender), **known, "problem": problem})

    # --- counts -----------------------------------------------------------------------------------------

    def _count_operations(self, place: Place, contender: NetContender, call: Any) -> None:
        if contender.engine != "eager" or contender.graph or (contender.name == "auto" and self.lab.on_gpu):
            return
        counted = counting.count_operations(call)
        if self.lab.on_gpu:
            kernels = counting.count_kernels(call)
            self._keep_count(place, contender, kernels, counted.bytes, "GPU kernels, torch.profiler")
        else:
            self._keep_count(place, contender, counted.launches, counted.bytes, "operations dispatched by torch")

    def _count_launches(self, place: Place, contender: NetContender) -> None:
        """From plans for meta tensors, of the whole net: planned alike wherever the tensors are."""
        work = networks.draw(shapes(place.net), place.direction, place.dtype, torch.device("meta"))
        launches = counting.planned_launches(networks.call_of(contender.prepare(work), work))
        moved = sum(networks.launch_bytes(launch, work) for launch in launches)
        self._keep_count(place, contender, len(launches), moved, "planned launches")

    def _keep_count(self, place: Place, contender: NetContender, launches: int, moved: int, how: str) -> None:
        _, least = networks.cost(shapes(place.net), STORAGE[place.dtype], place.direction)
        names = {**place.names(contender), "label": "counted", "counted_by": how}
        self.lab.counted.append({**names, "launches": launches, "bytes": moved, "least_bytes": least})


_LAB = pytest.StashKey[NetsLab]()


def nets_lab(config: pytest.Config) -> NetsLab:
    if _LAB not in config.stash:
        config.stash[_LAB] = NetsLab(lab_of(config))
    return config.stash[_LAB]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "contender" in metafunc.fixturenames:
        rows = nets_lab(metafunc.config).rows()
        metafunc.parametrize("net, dtype, direction, contender", rows, ids=[" ".join(row) for row in rows])


@pytest.mark.benchmark(timer=REPLAY)
def test_weight_prep_nets(benchmark, pytestconfig, net, dtype, direction, contender):
    known = {one.name: one for one in networks.CONTENDERS}
    nets_lab(pytestconfig).run(benchmark, Place(net, dtype, direction), known[contender])
