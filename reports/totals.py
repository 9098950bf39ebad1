"""Whole nets: the times of a net's layers added up, each as often as the net has it."""

from __future__ import annotations

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
    frame = comparisons.assign(place=comparisons.groupby(verdict.COMPARABLE, sort=False).ngroup())
    timed = frame[frame["contender"] == frame["baseline"]].set_index("place")["median"]
    frame = verdict.per_net(frame.assign(baseline_median=frame["place"].map(timed)))
    rows = []
    for key, group in frame.groupby(verdict.GROUP, sort=False):
        places = group["place"].nunique()
        for contender, part in group.groupby("contender", sort=False) if places > 1 else ():
            both = part.dropna(subset=["median", "baseline_median"])
            ours, theirs = ((both["count"] * both[name]).sum() for name in ("median", "baseline_median"))
            row = dict(zip(verdict.GROUP, key, strict=True)) | {
                "contender": contender, "baseline": part["baseline"].iloc[0], "layers": len(both), "places": places,
                "seconds": ours if len(both) else np.nan, "baseline_seconds": theirs if len(both) else np.nan,
                "ratio": theirs / ours if len(both) else np.nan,
            }  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)
