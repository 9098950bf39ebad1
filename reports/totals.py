"""Whole nets: the times of a net's layers added up, each as often as the net has it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from reports import verdict

COLUMNS = [*verdict.GROUP, "contender", "baseline", "layers", "places", "seconds", "baseline_seconds", "ratio"]


def totals(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Per net, pass, type and contender: sum(count * median) over the layers that contender and baseline both have.

    ``layers`` is how many those are, ``places`` how many there are; ``ratio`` is baseline_seconds / seconds. A sum of
    layers leaves out what lies between them, and no interval is given: how a step as a whole fares is timed by
    itself. Nets of which one layer was timed have no sum.
    """
    if comparisons.empty:
        return pd.DataFrame(columns=COLUMNS)
    rows = []
    names = list(dict.fromkeys([*verdict.GROUP, "place", "contender", "baseline", "median", "count", "nets"]))
    timed = comparisons.set_index(["place", "contender"])["median"].to_dict()
    for key, group in verdict.grouped(verdict.per_net(comparisons[names]).to_dict("records"), verdict.GROUP).items():
        places = len({row["place"] for row in group})
        of_contenders = verdict.grouped(group, ["contender", "baseline"]) if places > 1 else {}
        for (contender, baseline), part in of_contenders.items():
            times = [(row["count"], row["median"], timed.get((row["place"], baseline), np.nan)) for row in part]
            both = [of for of in times if all(map(math.isfinite, of))]
            ours, theirs = (sum(of[0] * of[side] for of in both) if both else np.nan for side in (1, 2))
            row = dict(zip(verdict.GROUP, key, strict=True)) | {
                "contender": contender, "baseline": baseline, "layers": len(both), "places": places,
                "seconds": ours, "baseline_seconds": theirs, "ratio": theirs / ours,
            }  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)
