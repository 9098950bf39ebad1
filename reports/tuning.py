"""The autotune landscape: how far apart the configs are that were measured for one problem.

What the autotuner gains is the distance from the default, which the cost model names, to the fastest; what a careless
pick would cost is the distance from the fastest to the median or the slowest.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.load import Results

NAMES = ["run", "kernel", "net", "layer", "dtype", "label"]
COUNTS = ["configs", "failed", "unmeasured"]
TIMES = ["best", "median", "worst", "default_seconds"]
OVER_BEST = ["median_over_best", "worst_over_best", "default_over_best"]


def tuned(results: Results) -> pd.DataFrame:
    """Per kernel and problem: how many configs, times in seconds, and over the fastest; ``pick`` and ``default``.

    Times are NaN where every config failed, the default's where it did or was not measured. ``median`` is that of the
    configs that have a time.
    """
    rows = []
    for entry in results.tuned.to_dict("records"):
        seconds = {config: np.nan if time is None else time / 1000 for config, time in entry["milliseconds"].items()}
        finite = pd.Series(seconds, dtype=float).dropna()
        best, median, worst = finite.min(), finite.median(), finite.max()
        default = finite.get(entry["default"], np.nan)
        rows.append(
            {name: entry[name] for name in NAMES}
            | dict(zip(COUNTS, (len(seconds), len(seconds) - len(finite), entry["unmeasured"]), strict=True))
            | dict(zip(TIMES, (best, median, worst, default), strict=True))
            | dict(zip(OVER_BEST, (median / best, worst / best, default / best), strict=True))
            | {"pick": finite.idxmin() if len(finite) else "", "default": entry["default"]}
        )
    return pd.DataFrame(rows, columns=[*NAMES, *COUNTS, *TIMES, *OVER_BEST, "pick", "default"])


def configs(results: Results) -> pd.DataFrame:
    """A row for each config of each problem; seconds are NaN for one that failed."""
    rows = [
        {name: entry[name] for name in NAMES} | {"config": config, "seconds": np.nan if time is None else time / 1000}
        for entry in results.tuned.to_dict("records")
        for config, time in entry["milliseconds"].items()
    ]
    return pd.DataFrame(rows, columns=[*NAMES, "config", "seconds"])
