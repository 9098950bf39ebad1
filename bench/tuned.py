"""The autotune landscape of a run: what each config that was offered for its problems took.

Read from the timings that the autotuner keeps and makes its picks from (``triton_dirac.runtime.timings``); they were
taken in this run, or in one before on the same GPU model and Triton. Where nothing was measured there is no entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from bench.results import digits
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.targets import Target
from triton_dirac.runtime.timings import Store
from triton_dirac.tuning.run import entry_of
from triton_dirac.tuning.work import PASSES, TABLES, Work

# (suite, pass) -> the convolutions that a row of it runs.
CONVOLUTIONS = {
    **{("conv", direction): (direction,) for direction in PASSES},
    ("dirac_block", "forward"): ("fprop",),
    ("dirac_block", "forward_backward"): PASSES,
}


def landscapes(benchmarks: Iterable[Mapping[str, Any]], store: Store, target: Target) -> list[dict[str, Any]]:
    """An entry for each convolution (pass, problem, dtype) that rows of ours ran and ``store`` has timings of.

    ``milliseconds`` maps configs to times, None where one failed for good; the fastest is the pick. ``default`` is
    the config that is taken where nothing is measured, ``unmeasured`` how many have no timing. Configs that are not
    promising today are left out, as the autotuner leaves them out.
    """
    found = []
    for work, info in _works(benchmarks).items():
        table, asked = TABLES[work.direction], (work.problem, work.storage, target, work.precision(target))
        default = table.default(*asked).label
        promising = dict.fromkeys([*(config.label for config in table.promising(*asked)), default])
        known = store.read(entry_of(work, target))
        times = {name: _digits(known[name]) for name in promising if name in known}
        if times:
            names = {name: info[name] for name in ("net", "layer", "dtype", "problem")}
            unmeasured = len(promising) - len(times)
            found.append(
                {"kernel": f"conv_{work.direction}", **names, "label": "measured", "default": default}
                | {"unmeasured": unmeasured, "milliseconds": times}
            )
    return found


def _works(benchmarks: Iterable[Mapping[str, Any]]) -> dict[Work, Mapping[str, Any]]:
    """Each convolution of ours once, with what the first row that ran it says of itself."""
    works: dict[Work, Mapping[str, Any]] = {}
    for info in (entry["extra_info"] for entry in benchmarks):
        if info["contender"].startswith("triton"):
            for direction in CONVOLUTIONS.get((info["suite"], info["pass"]), ()):
                sizes: dict[str, Any] = {
                    name: tuple(size) if isinstance(size, list) else size for name, size in info["problem"].items()
                }
                works.setdefault(Work(direction, ConvProblem(**sizes), info["dtype"], identity=False), info)
    return works


def _digits(milliseconds: float) -> float | None:
    return digits(milliseconds, 4) if math.isfinite(milliseconds) else None
