"""What is much faster than cuDNN is looked at again: fewer such results are true than are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.accuracy import Error, failures
from bench.suite import Contender
from bench.timing import Call, Outcomes, Samples

TOO_GOOD = 1.1  # times as fast as cuDNN


@dataclass(frozen=True)
class SecondLook:
    """``outcome``: the slower of two times, or what is wrong; ``ratios``: times as fast as cuDNN, both times."""

    outcome: Samples | Exception | str
    errors: list[Error]  # of a second check that failed
    ratios: list[float]


def suspects(outcomes: Outcomes, contenders: Sequence[Contender]) -> tuple[str, list[Contender]]:
    """(the fastest of cuDNN's contenders, those that are TOO_GOOD times as fast by the same clock)."""
    times = {name: found for name, found in outcomes.items() if isinstance(found, Samples)}
    rivals = [one.name for one in contenders if one.engine == "cudnn" and one.name in times]
    if not rivals:
        return "", []
    rival = min(rivals, key=lambda name: times[name].median)
    return rival, [
        one
        for one in contenders
        if one.name in times
        and one.name not in rivals
        and times[one.name].clock == times[rival].clock
        and times[one.name].median * TOO_GOOD < times[rival].median
    ]


def look(
    names: Sequence[str],
    rival: str,
    outcomes: Mapping[str, Samples | Exception],
    calls: Mapping[str, Call],
    check: Callable[[Mapping[str, Call]], Mapping[str, list[Error] | Exception]],
    sample: Callable[[Mapping[str, Call]], Outcomes],
) -> dict[str, SecondLook]:
    """Check all of ``names`` again, and time those that are right again, together with ``rival``."""
    first = {name: found for name, found in outcomes.items() if isinstance(found, Samples)}
    ratios = {name: [round(first[rival].median / first[name].median, 3)] for name in names}
    found: dict[str, SecondLook] = {}
    for name, errors in check({name: calls[name] for name in names}).items():
        if isinstance(errors, Exception):
            found[name] = SecondLook(errors, [], ratios[name])
        elif wrong := failures(errors):
            said = f"{ratios[name][0]:g} times as fast as {rival}, and checked again it {wrong}"
            found[name] = SecondLook(said, errors, ratios[name])
    right = [name for name in names if name not in found]
    again = sample({name: calls[name] for name in (rival, *right)}) if right else {}
    for name in right:
        second, beside = again[name], again[rival]
        if isinstance(second, Samples) and isinstance(beside, Samples):
            ratios[name].append(round(beside.median / second.median, 3))
        if isinstance(second, Samples):
            second = max(first[name], second, key=lambda samples: samples.median)
        found[name] = SecondLook(second, [], ratios[name])
    return found
