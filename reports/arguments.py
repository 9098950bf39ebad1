"""Kinds of arguments that the commands of reports have in common."""

from __future__ import annotations

import argparse
from pathlib import Path


def percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is a number of percent from 0 to 100")
    return value


def rate(text: str) -> float:
    value = percent(text)
    if value < 1e-6:
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is a number of percent from 1e-6 to 100")
    return value


def baseline(text: str) -> tuple[str, str]:
    suite, equals, contender = text.partition("=")
    if not (suite and equals and contender):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is SUITE=CONTENDER, such as conv=cudnn")
    return suite, contender


def path(text: str) -> Path:
    """``~`` is the home directory here too: no shell expands it in --output=~/report."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        if text.partition("/")[0] != "~":
            return Path(text)  # nobody's home: a file of that name
        raise argparse.ArgumentTypeError(f"{text!r}: {error} Accepted is a path") from None
