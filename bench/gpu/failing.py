"""A pytest plugin: says what fails the moment it does, since a stage that is stopped ends without pytest's summary."""

from __future__ import annotations

import pytest

MARK = "FAILED "  # begins a line of a failure
_done = 0


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    global _done
    _done += report.when == "call"
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = f"{crash.path}:{crash.lineno}: {crash.message}" if crash else str(report.longrepr)
        print(f"\n{MARK}in {report.when} of {report.nodeid}, {_done} done: {' '.join(why.split())[:400]}", flush=True)
