"""Compiling ahead: crashes cost one kernel, and what a launch then asks of Triton is in its cache. Needs no GPU."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from triton_dirac.runtime.autotune import AUTOTUNE

pytestmark = pytest.mark.slow


def own_environment(cache):
    """Of a process that compiles, with a cache of its own."""
    not_its_own = ("TRITON_INTERPRET", AUTOTUNE)
    own = {name: value for name, value in os.environ.items() if name not in not_its_own}
    return own | {"TRITON_CACHE_DIR": str(cache)}


def run(cache, case, *arguments):
    """What a case of ``compiling`` prints."""
    command = [sys.executable, "-m", "tests.runtime.compiling", case, *arguments]
    env = own_environment(cache)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run(tmp_path_factory.mktemp("cache"), "outcomes")


def test_a_crash_or_a_refusal_of_the_compiler_costs_one_config_for_good(outcomes):
    assert set(outcomes["refused"]) == {"wrong", "crash"}
    assert "no_such_name" in outcomes["refused"]["wrong"]
    assert "SIGSEGV" in outcomes["refused"]["crash"]


def test_a_hang_or_a_killed_process_costs_one_config_this_time(outcomes):
    assert outcomes["lost"]["hang"] == "no answer within 10 s"
    assert "SIGKILL" in outcomes["lost"]["killed"]
    assert set(outcomes["lost"]) == {"hang", "killed"}


def test_equal_kernels_are_compiled_once_and_never_again(outcomes):
    assert outcomes["compiled"] == 2, "good and odd; same is good"
    assert outcomes["again"] == 0
    assert outcomes["progress"] == [[done, 6] for done in range(7)]


@pytest.fixture(scope="module")
def small_cases(tmp_path_factory):
    return run(tmp_path_factory.mktemp("small"), "small_cases")


def test_where_no_process_starts_nobody_is_blamed(small_cases):
    assert small_cases["unstartable"] == {"refused": {}, "lost": {}, "compiled": 0}


def test_tensors_of_one_config_live_at_a_time(small_cases):
    assert small_cases["holding"] == {"most": 1}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache, and what a process that compiled ahead into it launched."""
    cache = tmp_path_factory.mktemp("filled")
    return cache, run(cache, "launched", "ahead")


def test_launches_compile_nothing_that_was_compiled_ahead(filled):
    """The real specialisation, of every loader, of a split reduction and of an address that 16 does not divide."""
    _, ahead = filled
    assert ahead["compiled"] == 0
    assert ahead["launched"] == ahead["ahead"] > 8


def test_launches_that_were_not_compiled_ahead_are_counted(small_cases):
    assert small_cases["not ahead"] == {"ahead": 0, "launched": 1, "compiled": 1}


def test_another_process_compiles_nothing(filled):
    cache, ahead = filled
    assert run(cache, "launched", "not ahead") == {"ahead": 0, "launched": ahead["launched"], "compiled": 0}


def test_a_training_step_compiles_nothing_from_a_copied_cache(tmp_path):
    """Compile here, measure there: all that the layers of a model launch, in another process, from another folder."""
    filled, copied = tmp_path / "filled", tmp_path / "copied"
    ahead = run(filled, "fill")
    assert ahead["compiled"] > 8
    assert ahead["failures"] == {}
    shutil.copytree(filled, copied)
    shutil.rmtree(filled)
    step = run(copied, "layers")
    assert step["groups"] == ahead["compiled"]
    assert step["launched"] > 8
    assert step["compiled"] == 0


def test_launchers_are_built_too_where_triton_compiles_them(small_cases):
    found = small_cases["launchers"]
    if not found["of C"]:
        assert found["linked"] == []
        pytest.skip("this Triton has one launcher for all kernels")
    assert found["linked"] == [True]


def test_a_first_call_compiles_in_other_processes_and_times_every_config(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_DIRAC_CACHE_DIR", str(tmp_path / "timings"))
    found = run(tmp_path / "kernels", "tuned")
    assert sorted(found["timed"]) == sorted(found["offered"])
    assert len(found["timed"]) == found["launched"] == 4
    assert found["compiled"] == 0
