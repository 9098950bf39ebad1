"""What a call costs the host, launches included: Python, dispatcher and driver, of one layer and of whole nets' steps.

On a GPU the calls are real, and the clock stops before the device is done. On a CPU a row runs in a process of its own
beside a stubbed driver: see ``host_calls``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.host_calls import COMPILED, HOST_PASSES, LAYER, ONE_LAYER, Subject, host_samples, subjects
from bench.options import Selection, chosen
from bench.results import KINDS, Entries, sizes
from bench.suite import names
from bench.timing import Outcomes, Samples

SUITE = "host_overhead"
STUBBED = "host, driver stubbed"
ON_A_GPU = "wall clock of the host"
WORKER_SECONDS = 300
ROOT = Path(__file__).parents[1]


def key_of(subject: Subject, direction: str) -> tuple[str, str, str, str, str]:
    return SUITE, direction, subject.net, subject.name, "float32"


def asked_for(selection: Selection, contender: str) -> bool:
    left_out = bool(selection.without) and chosen(contender, selection.without)
    return chosen(contender, selection.contenders) and not left_out


def in_a_worker(subject: Subject, direction: str, contenders: Sequence[str]) -> Outcomes:
    """``host_samples`` beside a stubbed driver, which a process that interprets kernels cannot have."""
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    own |= {"TRITON_DIRAC_AUTOTUNE": "0", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "bench.host_worker", subject.net, direction, *contenders]
    done = subprocess.run(command, env=own, cwd=ROOT, capture_output=True, text=True, timeout=WORKER_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    return {name: _outcome(**found) for name, found in json.loads(done.stdout.splitlines()[-1]).items()}


def _outcome(error: str | None = None, seconds: Sequence[float] = (), calls: int = 1) -> Samples | Exception:
    return Samples(list(seconds), calls) if error is None else RuntimeError(error)


def measured(subject: Subject, direction: str, contenders: Sequence[str], device: torch.device) -> Outcomes:
    if device.type == "cuda":
        return host_samples(subject, direction, device, contenders.__contains__)
    return in_a_worker(subject, direction, contenders)


def entries(subject: Subject, direction: str, outcomes: Mapping[str, Samples | Exception], device: str) -> Entries:
    """What the row adds to the results file."""
    key = key_of(subject, direction)
    found: Entries = {kind: [] for kind in KINDS}
    for contender, outcome in outcomes.items():
        row = names(key, contender)
        if isinstance(outcome, Exception):
            reason = f"{type(outcome).__name__}: {outcome}"
            # That torch compiles nothing here (no compiler, say) is the machine's affair.
            found["not_run"].append({**row, "failed": contender not in COMPILED, "reason": reason})
            continue
        info: dict[str, Any] = {
            **row,
            "count": 1,
            "device": device,
            "label": "measured",
            "clock": ON_A_GPU if device == "cuda" else STUBBED,
            "problem": sizes(LAYER),
            "layers": subject.layers,
            "calls_per_sample": outcome.calls,
        }
        data = [round(seconds, 10) for seconds in outcome.seconds]
        found["benchmarks"].append({"name": " ".join((*key, contender)), "extra_info": info, "stats": {"data": data}})
    return found


PLACES = [
    (subject.net, direction, name) for subject in subjects() for direction in HOST_PASSES for name in subject.contenders
]


@pytest.mark.parametrize("net, direction, contender", PLACES)
def test_host_overhead(benchmark, lab, net, direction, contender):
    selection = lab.selection
    of_net = net == ONE_LAYER if selection.nets is None else False
    selected = of_net or (net != ONE_LAYER and chosen(net, selection.nets))
    if selection.layers or not selected or not asked_for(selection, contender):
        pytest.skip("not selected")
    subject = next(subject for subject in subjects() if subject.net == net)
    contenders = [name for name in subject.contenders if asked_for(selection, name)]
    measure = partial(measured, subject, direction, contenders, lab.device)
    key = key_of(subject, direction)
    row = lab.once(key, contenders, lambda: entries(subject, direction, measure(), lab.device.type))
    benchmark.group = " ".join(key)
    lab.give(benchmark, row, contender)
