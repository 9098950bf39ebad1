"""``python -m bench.host_worker SUBJECT PASS [CONTENDER ...]``: host time beside a stubbed driver, as a line of JSON.

In a process of its own, since the stub replaces Triton's driver for good, and since a process that interprets kernels
compiles none. {contender: {"seconds": [...], "calls": N}} or {contender: {"error": TEXT}}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from bench import stub_driver

stub_driver.install()

from bench.host_calls import host_samples, subjects  # noqa: E402 # kernels are imported behind the stub


def main() -> None:
    net, direction, *contenders = sys.argv[1:]
    subject = next(subject for subject in subjects() if subject.net == net)
    outcomes = host_samples(subject, direction, torch.device("cpu"), contenders.__contains__)
    found: dict[str, dict[str, Any]] = {}
    for name, outcome in outcomes.items():
        if isinstance(outcome, Exception):
            found[name] = {"error": f"{type(outcome).__name__}: {outcome}"}
        else:
            found[name] = {"seconds": outcome.seconds, "calls": outcome.calls}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
