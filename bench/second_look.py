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
    errors: list[Error]  # of the second check
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
    name: str,
    rival: str,
    outcomes: Mapping[str, Samples | Exception],
    calls: Mapping[str, Call],
    errors_of: Callable[[Call], list[Error]],
    sample: Callable[[Mapping[str, Call]], Outcomes],
) -> SecondLook:
    """Check ``name`` again, and time it again beside ``rival``."""
    first, other = outcomes[name], outcomes[rival]
    assert isinstance(first, Samples)
    assert isinstance(other, Samples)
    ratios = [round(other.median / first.median, 3)]
    try:
        errors = errors_of(calls[name])
    except Exception as error:
        return SecondLook(error, [], ratios)
    if wrong := failures(errors):
        return SecondLook(f"{ratios[0]:g} times as fast as {rival}, and checked again it {wrong}", errors, ratios)
    again = sample({known: calls[known] for known in (name, rival)})
    second, beside = again[name], again[rival]
    if not isinstance(second, Samples):
        return SecondLook(second, errors, ratios)
    if isinstance(beside, Samples):
        ratios.append(round(beside.median / second.median, 3))
    return SecondLook(max(first, second, key=lambda samples: samples.median), errors, ratios)
