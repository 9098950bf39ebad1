"""pytest runs the tests, pytest --benchmark-only the suites; what the suites write. In subprocesses."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import test_conv
from bench.conftest import contender_names, lab_of, pytest_itemcollected
from bench.results import compact
from bench.timing import REPLAY
from tests.conftest import pytest_configure

ROOT = Path(__file__).parents[2]
SMALL = (
    "--nets",
    "DiracNet-34-2",
    "--layers",
    "32x32x32-32 3x3",
    "--contenders",
    "reference,triton,weight_norm",
)
# Importing every test takes a while, and one stands for all; what is in bench/ is not touched by this.
ONE_TEST_FILE = ("--ignore-glob=tests/test_*", "--ignore-glob=tests/*/test_[!t]*", "--ignore-glob=tests/runtime/*")


def pytest_here(*arguments: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def collected_folders(*arguments: str) -> set[str]:
    result = pytest_here("--collect-only", "-q", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return {line.split("/")[0] for line in result.stdout.splitlines() if "::" in line}


@pytest.mark.parametrize(
    "source, benchmark_only, runs",
    [("TESTPATHS", False, "tests"), ("TESTPATHS", True, str(ROOT / "bench")), ("ARGS", True, "tests")],
)
def test_a_bare_pytest_runs_the_tests_and_with_benchmark_only_the_suites(source, benchmark_only, runs):
    config = SimpleNamespace(
        args_source=pytest.Config.ArgsSource[source],
        args=["tests"],
        getoption=lambda name, default: {"benchmark_only": benchmark_only}.get(name, default),
    )
    pytest_configure(config)
    assert config.args == [runs]


@pytest.mark.parametrize(
    "option, known",
    [("nets", "DiracNet-28-10"), ("layers", "3x32x32-160 3x3"), ("contenders", "weight_norm")],
)
def test_unknown_names_are_refused_with_what_there_is(option, known):
    config = SimpleNamespace(
        stash={},
        pluginmanager=SimpleNamespace(hasplugin=lambda name: True),
        getoption={"nets": None, "layers": None, "contenders": None, option: f"{known},other", "processes": 1}.get,
    )
    with pytest.raises(pytest.UsageError, match=f"--{option}: nothing is named 'other'; choose from .*{known}"):
        lab_of(config)


def test_a_new_suite_s_contenders_are_known_without_a_list_of_suites(monkeypatch):
    made = replace(test_conv.SUITE.contenders[0], name="made")
    monkeypatch.setattr(test_conv, "SUITE", replace(test_conv.SUITE, contenders=(made,)))
    assert "made" in contender_names()


def config_with(path, **more) -> SimpleNamespace:
    options = {"nets": None, "layers": None, "contenders": None, "dtypes": None, "batch": None, "processes": 1}
    options |= {"benchmark_json": path, **more}
    plugins = SimpleNamespace(hasplugin=lambda name: True)
    called = SimpleNamespace(args=("--benchmark-only",))
    return SimpleNamespace(stash={}, pluginmanager=plugins, getoption=options.get, invocation_params=called)


@pytest.mark.parametrize("place", ["file/below/results.json", "folder", "~/results.json"])
def test_a_results_file_that_cannot_be_written_is_known_before_anything_is_measured(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    with pytest.raises(pytest.UsageError, match=f"--benchmark-json {place}: cannot be written .*accepted is a file"):
        lab_of(config_with(Path(place)))
    assert sorted(os.listdir()) == ["file", "folder"]


def test_a_results_file_s_folder_is_made_and_an_old_file_stays_until_there_are_results(tmp_path):
    old = tmp_path / "old.json"
    old.write_text("yesterday's")
    for path in (tmp_path / "new" / "results.json", old):
        lab_of(config_with(path))
    assert os.listdir(tmp_path / "new") == []
    assert old.read_text() == "yesterday's"


@pytest.mark.slow
def test_benchmark_only_runs_the_suites_and_not_the_tests_also_of_a_net_without_dirac_layers_with_a_budget():
    result = pytest_here("--collect-only", "-q", "--benchmark-only", "--nets", "RepVGG-A0", "--budget", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    tests = [line for line in result.stdout.splitlines() if "::" in line]
    assert {line.split("/")[0] for line in tests} == {"bench"}
    of_the_net = {line.split("::")[0] for line in tests if "RepVGG-A0" in line}
    assert "bench/test_conv.py" in of_the_net
    assert of_the_net.isdisjoint({"bench/test_weight_prep.py", "bench/test_dirac_block.py"})


@pytest.mark.benchmark(group="own")
def test_the_clock_of_the_suites_stands_before_a_mark_of_the_test_s_own(request):
    """pytest-benchmark reads the first mark alone; with its own clock it would keep the time of a call of nothing."""
    request.node.fixturenames.append("lab")
    pytest_itemcollected(request.node)
    assert request.node.get_closest_marker("benchmark").kwargs == {"timer": REPLAY}


@pytest.mark.slow
def test_options_that_select_nothing_together_are_an_error():
    """Weights are prepared without products, so nothing is run in TF32; each option by itself is a good one."""
    result = pytest_here("bench/test_weight_prep.py", "--dtypes", "tf32", *SMALL)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "the options together select no measurement" in result.stderr


@pytest.mark.slow
def test_without_pytest_benchmark_the_tests_run_and_the_suites_say_what_is_missing():
    assert collected_folders("-p", "no:benchmark", *ONE_TEST_FILE) == {"tests"}
    result = pytest_here("-p", "no:benchmark", "bench/test_weight_prep.py")
    assert "the suites need pytest-benchmark: pip install 'triton-dirac[bench]'" in result.stdout + result.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("bench") / "results.json"
    # a folder that is named is run with or without --benchmark-only
    result = pytest_here("bench/test_weight_prep.py", f"--benchmark-json={path}", *SMALL)
    assert result.returncode == 0, result.stdout + result.stderr
    text = path.read_text()
    assert max(map(len, text.splitlines())) < 5000
    return json.loads(text)


@pytest.mark.slow
def test_results_hold_raw_samples_and_their_description(results):
    for benchmark in results["benchmarks"]:
        stats, info = benchmark["stats"], benchmark["extra_info"]
        assert len(stats["data"]) == stats["rounds"] >= 7
        assert all(0 < seconds < 10 for seconds in stats["data"])
        assert info["net"] == "DiracNet-34-2"
        assert info["layer"] == "32x32x32-32 3x3"
        assert info["suite"] == "weight_prep"
        assert info["label"] == "measured"
        assert info["count"] == 10
        assert info["problem"]["K"] == 32
    assert {b["extra_info"]["pass"] for b in results["benchmarks"]} == {"forward", "forward_backward"}


@pytest.mark.slow
def test_results_hold_environment_accuracy_and_what_was_not_run(results):
    assert " bench/test_weight_prep.py " in results["environment"]["command"]
    checked = {(entry["contender"], entry["tensor"], entry["dtype"]) for entry in results["accuracy"]}
    assert {("triton", "alpha", "float16"), ("reference", "output", "float32")} <= checked
    assert all(entry["passed"] for entry in results["accuracy"])
    timed = {b["extra_info"]["contender"] for b in results["benchmarks"]}
    assert timed >= {"reference", "weight_norm"}
    if results["environment"]["gpu"] is None:
        reasons = {(entry["contender"], entry["dtype"]): entry["reason"] for entry in results["not_run"]}
        assert "no GPU" in reasons["triton", "float32"]
        assert "checked but not timed" in reasons["reference", "float16"]


def test_compacting_changes_the_spelling_and_nothing_else(tmp_path):
    document = {"a": [{"x": [1.5, None]}, "two"], "empty": [], "nested": {"b": 1}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document, indent=4))
    compact(path)
    assert json.loads(path.read_text()) == document
    assert '\n{"x":[1.5,null]},\n' in path.read_text()


def test_results_on_a_full_disk_stay_as_they_are(tmp_path, monkeypatch):
    """They took hours, and the disk may be full just when they are there."""
    path = tmp_path / "results.json"
    path.write_text('{"a": 1}')
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.warns(UserWarning, match="is not written"):
        compact(path)
    assert path.read_text() == '{"a": 1}'
    assert os.listdir(tmp_path) == ["results.json"]
