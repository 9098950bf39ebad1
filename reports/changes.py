"""What changed between two runs, row by row: the verdicts of ``reports compare``.

A row is one contender's time of one pass over one layer; r = time(OLD) / time(NEW) is how many times as fast it became.

    faster, slower   the whole interval of r lies beyond the margin, up or down
    same             the whole interval lies within it
    ambiguous        neither, or too few samples for an interval

Between FEWEST processes and more on either side the interval is Welch's, of the logarithms of the processes' medians:
it covers what differs between processes. Between one process and one it is of order statistics of their samples, free
of any distribution, and covers what differs within a process alone: the load of the machine, clocks and places in
memory change between processes and can look like a change of the code. Over processes each contender's rows of a suite
and dtype are also compared together, by their geometric mean in each process.

The intervals are simultaneous: each of all these has 1 - rate / their number (Bonferroni), so that a run in which
nothing changed shows one faster or slower or more with a probability of at most ``rate``.

With ``relative`` a row's samples are divided by those of its suite's baseline, taken just before or after them in the
same process: what slows both, such as a neighbour's load, cancels out. A change of the baseline itself looks like one
of all others. This takes several processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from reports import intervals, verdict
from reports.intervals import FEWEST_SAMPLES as FEWEST
from reports.load import ReportError
from reports.sides import Logs, Row, Side, Timed, middle

RATE = 0.05
APPEARED, VANISHED = "appeared", "vanished"
VERDICTS = (verdict.SLOWER, verdict.AMBIGUOUS, verdict.SAME, verdict.FASTER, APPEARED, VANISHED)
NO_BASELINE = "its baseline has no time beside it"
PROCESSES, SAMPLES = "processes", "samples"  # what an interval goes over
MOST = 300.0  # the largest logarithm of a ratio


@dataclass(frozen=True)
class Change:
    """One row of the comparison. Times in seconds, clocks in MHz; numbers that there are not are None.

    ``ratio``, ``low`` and ``high`` are r and its interval, which goes ``over`` processes or samples; ``cycles`` is r in
    cycles of the GPU's clock instead of seconds; ``processes`` how many there were on either side; ``clocks`` says by
    what either side was timed where that differs.
    """

    row: Row
    verdict: str
    reason: str = ""
    old: float | None = None
    new: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    over: str = ""
    processes: tuple[int, int] = (0, 0)
    mhz: tuple[float, float] | None = None
    cycles: float | None = None
    clocks: str = ""


@dataclass(frozen=True)
class Comparison:
    """``changes`` of every row of either side, the worst first; ``overall`` those of each contender's rows together."""

    old: Side
    new: Side
    changes: list[Change]
    overall: list[Change]


def compared(
    old: Side, new: Side, *, margin: float, rate: float = RATE, across: bool = False, relative: bool = False
) -> Comparison:
    """``across``: rows of any device and clock are alike.

    Raises ReportError: no row is on both sides.
    """
    measure = old.baselines if relative else {}
    both = [row for row in old.rows if row in new.rows and not (relative and row == beside(row, measure))]
    if not both:
        raise ReportError(
            f"{old.name} and {new.name} have no row in common that can be compared, of {len(old.rows)} and "
            f"{len(new.rows)}; accepted are runs of the same layers, batches and contenders"
        )
    pairs = {row: (old.rows[row], new.rows[row]) for row in both}
    times = {row: (before.logs(), after.logs()) for row, (before, after) in pairs.items()}
    logs = {row: (_relative(old, row, measure), _relative(new, row, measure)) for row in both} if relative else times
    reasons = {row: _incomparable(*pairs[row], across) or ("" if all(logs[row]) else NO_BASELINE) for row in both}
    groups = _groups([row for row in both if not reasons[row] and _fewest(logs[row]) >= FEWEST])
    confidence = 1 - rate / (len(both) + len(groups))
    changes = []
    for row, (before, after) in pairs.items():
        was, became = map(middle, times[row])
        known = Change(
            row, verdict.AMBIGUOUS, reasons[row], was, became,
            processes=(len(before.samples), len(after.samples)), mhz=_mhz(before, after), clocks=_clocks(before, after),
        )  # fmt: skip
        samples = None if relative else (before, after)
        changes.append(known if reasons[row] else _judged(known, logs[row], samples, margin, confidence))
    changes.sort(key=lambda change: (VERDICTS.index(change.verdict), change.ratio or 0))
    together = {name: _together([logs[row] for row in rows]) for name, rows in groups.items()}
    overall = [
        _judged(
            Change(name, verdict.AMBIGUOUS, processes=(len(found[0]), len(found[1]))), found, None, margin, confidence
        )
        for name, found in together.items() if all(found)
    ]  # fmt: skip
    return Comparison(old, new, [*changes, *_alone(new, old, APPEARED), *_alone(old, new, VANISHED)], overall)


def _relative(side: Side, row: Row, measure: dict[str, str]) -> Logs:
    """The row's times relative to its suite's baseline, in processes that timed both."""
    measured = side.rows.get(beside(row, measure))
    return side.rows[row].relative_to(measured) if measured else {}


def beside(row: Row, measure: dict[str, str]) -> Row:
    """Its suite's baseline on the same layer: what a relative time is a multiple of."""
    return row._replace(contender=verdict.against(row.contender, measure[row.suite]))


def _incomparable(old: Timed, new: Timed, across: bool) -> str:
    for side in (old, new):
        if len(side.how) > 1:
            return f"timed differently in different processes: {' | '.join(sorted(side.how))}"
    return "compared with --across-machines" if _clocks(old, new) and not across else ""


def _clocks(old: Timed, new: Timed) -> str:
    return " → ".join(" | ".join(sorted(side.how)) for side in (old, new)) if old.how != new.how else ""


def _groups(rows: Sequence[Row]) -> dict[Row, list[Row]]:
    """The rows of each suite, dtype and contender, under a name for all."""
    found: dict[Row, list[Row]] = {}
    for row in rows:
        found.setdefault(Row(row.suite, "", "", "all layers and passes", row.dtype, row.contender), []).append(row)
    return found


def _together(logs: Sequence[tuple[Logs, Logs]]) -> tuple[Logs, Logs]:
    """The mean over rows of each process that has them all."""
    old, new = (
        {process: float(np.mean([one[process] for one in side])) for process in set.intersection(*map(set, side))}
        for side in zip(*logs, strict=True)
    )
    return old, new


def _judged(
    known: Change, logs: tuple[Logs, Logs], samples: tuple[Timed, Timed] | None, margin: float, confidence: float
) -> Change:
    """``known`` with its ratio, interval and verdict, or with what an interval would take. No side is empty."""
    old, new = (np.array(list(side.values())) for side in logs)
    ratio = _exp(old.mean() - new.mean())
    cycles = ratio * known.mhz[0] / known.mhz[1] if known.mhz else None
    known = replace(known, ratio=ratio, cycles=cycles)
    if _fewest(logs) >= FEWEST:
        interval, over = _welch(old, new, confidence), PROCESSES
    elif samples and len(old) == len(new) == 1:
        before, after = (next(iter(side.samples.values())) for side in samples)
        fewest, needed = min(len(before), len(after)), _needed(confidence)
        if fewest < needed:
            return replace(known, reason=f"{fewest} samples, of {needed} that {100 * confidence:.4g} % take")
        interval, over = _of_medians(before, after, confidence), SAMPLES
    else:
        counts = f"{len(old)} and {len(new)} processes"
        return replace(known, reason=f"{counts}: an interval over processes takes {FEWEST} on either side")
    word = verdict.word(intervals.Estimate(ratio, *interval), margin)
    return replace(known, verdict=word, low=interval[0], high=interval[1], over=over)


def _fewest(logs: tuple[Logs, Logs]) -> int:
    return min(map(len, logs))


def _mhz(old: Timed, new: Timed) -> tuple[float, float] | None:
    return (float(np.mean(old.mhz)), float(np.mean(new.mhz))) if old.mhz and new.mhz else None


def _alone(side: Side, other: Side, word: str) -> list[Change]:
    """The rows that one side alone has, and why the other has not, as far as it says."""
    found = []
    for row, timed in side.rows.items():
        if row not in other.rows:
            time = middle(timed.logs())
            old, new = (None, time) if word == APPEARED else (time, None)
            found.append(Change(row, word, other.left_out.get(row.name, ""), old, new))
    return found


# --- intervals ---------------------------------------------------------------------------------------------


def _exp(logarithm: float) -> float:
    """Also of absurd times a number that JSON can hold."""
    return math.exp(max(-MOST, min(MOST, logarithm)))


def _welch(old: np.ndarray, new: np.ndarray, confidence: float) -> tuple[float, float]:
    """Of exp(mean(old) - mean(new)); the two may spread differently."""
    parts = np.array([side.var(ddof=1) / len(side) for side in (old, new)])
    spread = float(np.sqrt(parts.sum()))
    difference = float(old.mean() - new.mean())
    if spread == 0:
        return _exp(difference), _exp(difference)
    freedom = parts.sum() ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (old, new), strict=True))
    half = float(special.stdtrit(freedom, (1 + confidence) / 2)) * spread
    return _exp(difference - half), _exp(difference + half)


def _each(confidence: float) -> float:
    """The confidence of either of two intervals that both hold with ``confidence``."""
    return 1 - (1 - confidence) / 2


def _needed(confidence: float) -> int:
    """The fewest samples whose minimum and maximum cover a median, on both sides, with ``confidence``."""
    return math.ceil(math.log2(2 / (1 - _each(confidence))))


def _of_medians(old: np.ndarray, new: np.ndarray, confidence: float) -> tuple[float, float]:
    """Of median(old) / median(new)."""
    (old_low, old_high), (new_low, new_high) = (_covering(np.log(side), _each(confidence)) for side in (old, new))
    return _exp(old_low - new_high), _exp(old_high - new_low)


def _covering(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """The narrowest pair of order statistics that covers the median with at least this confidence."""
    ordered, n = np.sort(samples), len(samples)
    k = max(intervals.rank(n, confidence), 1)
    return float(ordered[k - 1]), float(ordered[n - k])
