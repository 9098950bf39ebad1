"""``nox -s versions``: which environments are chosen, and that none runs under another's name."""

from __future__ import annotations

import platform
import sys

import pytest

pytest.importorskip("nox")
from tests import versions

pytestmark = pytest.mark.cpu
OLDEST = "py310-torch2.11.0-triton3.6.0"


def test_all_are_chosen_by_default_and_the_rest_is_pytest_s():
    every, rest = versions.chosen(["-k", "py311-*"])
    assert every == versions.environments()
    assert rest == ["-k", "py311-*"]


def test_names_wildcards_and_interpreters():
    found, rest = versions.chosen([f"{OLDEST}=/usr/bin/python3", "py314-*", "tests/test_versions.py", "-x"])
    assert [environment.name for environment in found[:1]] == [OLDEST]
    assert found[0].given == "/usr/bin/python3"
    assert found[0].named
    assert [environment.python for environment in found[1:]] == ["3.14"] * len(versions.PAIRS)
    assert not any(environment.named or environment.given for environment in found[1:])
    assert rest == ["tests/test_versions.py", "-x"]


def test_a_name_that_is_none(capsys):
    assert versions.main(["py27-torch1.0.0-triton2.0.0"]) == 2
    assert f"'py27-torch1.0.0-triton2.0.0' names no environment; there are {OLDEST}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "found, accepted",
    [
        ("3.10.13, 2.11.0, 3.6.0, 2.2.6", True),
        ("3.10.0, 2.11.0+cpu, 3.6.0, 2.2.6", True),
        ("3.11.7, 2.11.0, 3.6.0, 2.2.6", False),
        ("3.1.10, 2.11.0, 3.6.0, 2.2.6", False),
        ("3.10.13, 2.11.1, 3.6.0, 2.2.6", False),
        ("3.10.13, 2.11.0, 3.7.1, 2.2.6", False),
    ],
)
def test_what_runs_is_what_the_name_says(found, accepted):
    assert versions.is_of(versions.chosen([OLDEST])[0][0], found) is accepted


def test_another_environment_has_no_row_under_the_name(capsys):
    """pip may put other versions in; the tests that pass then are of those."""
    other = next(e.name for e in versions.environments() if not platform.python_version().startswith(f"{e.python}."))
    assert versions.main([f"{other}={sys.executable}", "--collect-only"]) == 1
    assert "failed: that is another environment than its name says" in capsys.readouterr().out


def test_nothing_that_ran_is_no_success(monkeypatch, capsys):
    monkeypatch.setattr(versions, "interpreter_of", lambda version: None)
    monkeypatch.setattr(versions, "ENVIRONMENTS", versions.ENVIRONMENTS / "none")
    assert versions.main([OLDEST]) == 1
    assert "not run: no Python 3.10 here" in capsys.readouterr().out
