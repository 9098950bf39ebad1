"""A report's numbers: computed once from the results, then shown by page.py and headline.py, saved by render.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from reports import tables, tuning, verdict
from reports.load import Results
from reports.totals import totals


@dataclass(frozen=True)
class Report:
    """Everything computed once from the results, in frames; the CSV files are these frames."""

    results: Results
    comparisons: pd.DataFrame
    overall: pd.DataFrame  # per run, suite and contender
    groups: pd.DataFrame  # per run, suite, pass, net, dtype and contender
    totals: pd.DataFrame  # the same groups: times of a net's layers added up
    accuracy: pd.DataFrame
    compiled: pd.DataFrame
    broken: pd.DataFrame  # kernels that do not compile or spill
    not_run: pd.DataFrame
    precision: pd.DataFrame  # the two forms of the Dirac convolution in bfloat16
    counted: pd.DataFrame  # launches and bytes of whole calls
    moved: pd.DataFrame  # bytes of compiled weight preparations
    tuned: pd.DataFrame  # per kernel and problem, what the autotuner measured
    margin: float


def build(
    results: Results, *, baselines: Mapping[str, str] | None = None, margin: float = verdict.DEFAULT_MARGIN
) -> Report:
    """All of the report's numbers. ``baselines`` maps suites to contenders and goes before the defaults."""
    comparisons = verdict.compare(results, verdict.choose_baselines(results, baselines), margin=margin)
    return Report(
        results,
        comparisons,
        verdict.summarise(comparisons, ["run", "suite", "device", "clock", "label"], margin=margin),
        verdict.summarise(verdict.per_net(comparisons), verdict.GROUP, margin=margin),
        totals(comparisons),
        tables.accuracy(results),
        tables.compiled(results),
        tables.broken(results),
        tables.not_run(results),
        tables.precision(results),
        tables.counted(results),
        tables.moved(results),
        tuning.tuned(results),
        margin,
    )
