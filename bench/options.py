"""The suites' command-line options and what they select. Plain text in, plain data out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from bench.processes import FEWEST
from triton_dirac.exact import BEYOND

DTYPES = ("float32", "tf32", "float16", "bfloat16")
CPU_DTYPES = ("float32", "float16")  # of these only float32 is timed: 16 bits are emulated, and TF32 needs a GPU


def add_options(parser: pytest.Parser) -> None:
    """For both conftest.py files, since either may be the first, or the only one, that pytest loads."""
    group = parser.getgroup("lab", "what the suites of bench/ compare")
    if group.options:
        return
    group.addoption("--nets", metavar="A,B", help="nets whose layers are run; the five DiracNets by default")
    group.addoption(
        "--layers",
        metavar="P,Q",
        help="layers, by name or pattern, as in '160x32x32-160 3x3' or '*7x7*'; all by default",
    )
    group.addoption(
        "--dtypes",
        metavar="A,B",
        help=f"of {', '.join(DTYPES)}; all by default, {' and '.join(CPU_DTYPES)} without a GPU, where only "
        "float32 is timed",
    )
    group.addoption("--contenders", metavar="A,B", help="implementations, by name or pattern; all by default")
    group.addoption("--without", metavar="A,B", help="implementations that are left out, by name or pattern")
    group.addoption(
        "--batch",
        metavar="N",
        type=int,
        help="images; by default each net's published batch (128 or 256), 2 without a GPU",
    )
    group.addoption(
        "--budget",
        metavar="MINUTES",
        type=float,
        help="for all suites together: rows run in the order of their worth, and none starts that would not end in "
        "time; what is left out is in the results as such. Without it everything runs",
    )
    group.addoption(
        "--ceilings",
        metavar="FILE",
        type=Path,
        help="a results file or journal of this GPU, whose ceilings are taken over; by default they are measured anew, "
        "in some seconds",
    )
    group.addoption(
        "--processes",
        metavar="N",
        type=int,
        default=1,
        help="samples come from N fresh processes, one after another, and intervals go over processes; 1 by default, "
        "else 5 and more",
    )
    group.addoption(
        "--only-times",
        action="store_true",
        help="what cannot be timed on this machine is not checked either: for all processes but the first",
    )
    group.addoption(
        "--resume",
        action="store_true",
        help="go on with the journal of a run that was ended; an error if machine, versions or code are not the same",
    )
    group.addoption(
        "--journal",
        metavar="FILE",
        type=Path,
        help="where each row's results are kept as soon as they are measured; by default beside --benchmark-json, as "
        "in results.journal.jsonl",
    )


@dataclass(frozen=True)
class Selection:
    """The options as given: patterns for layers and contenders, names for nets and dtypes, None for "all"."""

    nets: tuple[str, ...] | None = None
    layers: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    contenders: tuple[str, ...] | None = None
    without: tuple[str, ...] | None = None
    batch: int | None = None
    processes: int = 1
    only_times: bool = False

    @classmethod
    def of(cls, config: pytest.Config) -> Selection:
        """Raises UsageError for an empty list, an unknown dtype or a number that is none of its kind."""
        named = ("nets", "layers", "contenders", "without")
        lists = {name: _words(name, config.getoption(name)) for name in named}
        dtypes = _words("dtypes", config.getoption("dtypes"))
        require_known("--dtypes", dtypes, DTYPES)
        batch, budget = config.getoption("batch"), config.getoption("budget")
        processes = config.getoption("processes", 1)
        if batch is not None and not 1 <= batch < BEYOND:
            raise pytest.UsageError(f"--batch must be at least 1 and below 2 ** 31, got {batch}")
        if budget is not None and not budget > 0:
            raise pytest.UsageError(f"--budget must be more than 0 minutes, got {budget}")
        if processes != 1 and processes < FEWEST:
            raise pytest.UsageError(
                f"--processes must be 1, or {FEWEST} and more for an interval over them, got {processes}"
            )
        only_times = bool(config.getoption("only_times", False))
        return cls(dtypes=dtypes, batch=batch, processes=processes, only_times=only_times, **lists)


def _words(option: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise pytest.UsageError(f"--{option} names nothing: {text!r}")
    return words


def require_known(option: str, given: Sequence[str] | None, known: Sequence[str]) -> None:
    """UsageError unless every name or pattern in ``given`` matches something in ``known``."""
    for pattern in given or ():
        if not any(fnmatchcase(name, pattern) for name in known):
            raise pytest.UsageError(f"{option}: nothing is named {pattern!r}; choose from {', '.join(known)}")


def chosen(name: str, patterns: Sequence[str] | None) -> bool:
    """Whether ``name`` matches one of ``patterns``; every name does when there are none."""
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)
