"""A visit to a GPU: stages end within their limits and by themselves, what faults is named, all is written down."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.conftest import contender_names
from bench.gpu import check_journal, checks, summary
from bench.gpu.__main__ import main
from bench.gpu.kernel_checks import KernelCheck, kernel_checks
from bench.gpu.stages import STAGES, TESTS, Stage, limits, wrong_contenders
from bench.gpu.visit import Visit
from bench.journal import Journal
from bench.options import require_known
from bench.results import KINDS
from triton_dirac.conv.epilogue import ACTIVATIONS
from triton_dirac.runtime import files

CPU = torch.device("cpu")


def stage(name: str, code: str, share: int = 10, least: int = 0) -> Stage:
    return Stage(name, f"what {name} does", share, least, ("-c", code), ("-c", code))


def visited(tmp_path: Path, monkeypatch, *stages: Stage, seconds: float = 60, **options) -> Visit:
    monkeypatch.setattr("bench.gpu.visit.STAGES", stages)
    (tmp_path / "work").mkdir()
    visit = Visit(tmp_path, tmp_path / "work", seconds, **options)
    visit.run(lambda line: None)
    return visit


def test_a_stage_that_crashes_ends_itself_and_not_the_visit(tmp_path, monkeypatch):
    crash = "import os, signal; print('about to', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    visit = visited(tmp_path, monkeypatch, stage("bad", crash), stage("good", "print('here')"))
    assert [outcome.state for outcome in visit.outcomes] == ["failed (status -11)", "done"]
    assert visit.outcomes[0].last == ("=== bad", "about to")
    assert "=== good\nhere" in (tmp_path / "log.txt").read_text()


def test_a_stage_that_hangs_is_stopped_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.gpu.visit.SECONDS_TO_END", 0.5)
    code = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
    visit = visited(tmp_path, monkeypatch, stage("hangs", code), stage("next", "print(1)"), seconds=6)
    hung, following = visit.outcomes
    assert hung.state.startswith("stopped after ")
    assert following.state == "done"
    status = Path(f"/proc/{int(hung.last[-1])}/status")
    assert not status.exists() or "zombie" in status.read_text()


def test_a_stage_is_not_begun_where_too_little_time_is_left(tmp_path, monkeypatch):
    visit = visited(tmp_path, monkeypatch, stage("long", "", least=1000), stage("short", "print(1)"))
    assert visit.outcomes[0].state.startswith("not begun: ")
    assert visit.outcomes[1].state == "done"


def test_time_that_a_stage_leaves_goes_to_the_others():
    one, two = stage("one", "", share=10), stage("two", "", share=30)
    assert limits((one, two), 400) == 100
    assert limits((two,), 390) == 390


def test_a_stage_has_the_least_it_takes_though_its_share_is_less():
    assert limits((stage("one", "", share=10, least=50), stage("two", "", share=90)), 100) == 50
    assert limits((stage("one", "", share=10, least=50), stage("two", "", share=90)), 30) == 30


def test_stages_that_are_named_run_alone(tmp_path, monkeypatch):
    stages = stage("one", "print(1)"), stage("two", "print(2)"), stage("three", "print(3)")
    visit = visited(tmp_path, monkeypatch, *stages, only=("three", "one"))
    assert [outcome.stage for outcome in visit.outcomes] == ["one", "three"]


def test_a_stage_that_there_is_not(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--stages", "checks,konv", "--out", str(tmp_path)])
    assert "'konv': accepted are checks, tests, tune, conv, " in capsys.readouterr().err


def test_a_failing_test_is_named_though_its_stage_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.gpu.visit.SECONDS_TO_END", 0.5)
    test = tmp_path / "test_it.py"
    test.write_text("import time\n\ndef test_bad():\n    assert 1 == 2\n\ndef test_long():\n    time.sleep(60)\n")
    command = ("-m", "pytest", str(test), *TESTS)
    tests = Stage("tests", "", 10, 0, command, command)
    visit = visited(tmp_path, monkeypatch, tests, seconds=10)
    (outcome,) = visit.outcomes
    assert outcome.state.startswith("stopped after ")
    (failed,) = outcome.failing
    assert "in call of " in failed
    assert "::test_bad, 1 done: " in failed
    assert failed.endswith("test_it.py:4: assert 1 == 2")
    assert "1 tests failed, e.g. in call of " in summary.table(visit)


def test_what_an_earlier_visit_tuned_reaches_the_stages(tmp_path, monkeypatch):
    (tmp_path / "A-GPU-triton-3.6.0.json").write_text("tuned")
    code = "import os, pathlib; print(*pathlib.Path(os.environ['TRITON_DIRAC_CACHE_DIR']).iterdir())"
    visit = visited(tmp_path, monkeypatch, stage("asks", code), picks=tmp_path / "A-GPU-triton-3.6.0.json")
    assert visit.outcomes[0].last[-1].endswith("/A-GPU-triton-3.6.0.json")
    with pytest.raises(SystemExit, match="2"):
        main(["--picks", str(tmp_path / "none"), "--out", str(tmp_path)])


def test_the_commit_and_the_wheels_reach_the_stages(tmp_path, monkeypatch):
    code = "import os; print(os.environ['TRITON_DIRAC_COMMIT'], os.environ['PYTHONPATH'])"
    visit = visited(tmp_path, monkeypatch, stage("asks", code), commit="abc", wheels=Path("/some/wheels"))
    commit, path = visit.outcomes[0].last[-1].split()
    assert commit == "abc"
    assert "/some/wheels" in path.split(os.pathsep)


def test_the_visit_decides_nothing_about_the_interpreter():
    # A stage interprets kernels or compiles them: it says itself. The tuning stage refuses to be told to interpret.
    code = "import os, bench.gpu.__main__; print(os.environ.get('TRITON_INTERPRET'))"
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=own, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_wrong_families_get_no_time():
    assert "triton-tile" in wrong_contenders({"fprop tile": ["..."]})
    assert "triton" in wrong_contenders({"fprop tile": ["..."]})
    assert "triton-gather" not in wrong_contenders({"fprop tile": ["..."]})
    assert wrong_contenders({}) == []


def test_the_contenders_of_a_wrong_family_are_the_suites_own():
    wrong = wrong_contenders(dict.fromkeys(("fprop gather", "dgrad tile", "wgrad batch", "weight_prep", "layer"), ()))
    require_known("--without", wrong, contender_names())


def test_suites_run_without_contenders_that_are_wrong(tmp_path):
    entry = {"family": "wgrad batch", "name": "w", "passed": False, "error": "off"}
    check_journal.append(tmp_path / "checks.jsonl", entry)
    conv = next(stage for stage in STAGES if stage.name == "conv")
    command = Visit(tmp_path, tmp_path, 60)._command(conv, 60)
    assert "auto" in command[command.index("--without") + 1].split(",")


# --- checks -----------------------------------------------------------------------------------------------


def test_every_offered_config_is_checked_on_a_gpu(monkeypatch):
    from triton_dirac.runtime.targets import TARGETS

    monkeypatch.setattr("bench.gpu.kernel_checks.target_of", lambda device: TARGETS["cuda:90"])
    found = list(kernel_checks(torch.device("cuda")))
    families = {check.family for check in found}
    assert {f"{d} {loader}" for d in ("fprop", "dgrad") for loader in ("gather", "batch", "tile")} <= families
    assert {"wgrad batch", "wgrad gather", "fprop direct"} <= families
    assert {check.activation for check in found if check.direction == "fprop"} == set(ACTIVATIONS)
    assert {check.dtype for check in found} == {"float32", "tf32", "tf32x3", "float16", "bfloat16"}
    assert len({check.name for check in found}) == len(found)


def test_a_wrong_kernel_is_named(monkeypatch):
    check = next(check for check in kernel_checks(CPU) if check.direction == "fprop")
    right = KernelCheck._result
    monkeypatch.setattr(KernelCheck, "_result", lambda self, operands: right(self, operands) + 1)
    result = checks._result(check, CPU)
    assert not result["passed"]
    assert "output of relu off by 1.0" in result["error"]


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Ten checks of which some end their process: what becomes of all of them."""

    def run(**ends: str) -> list[dict]:
        script = tmp_path / "scripted.py"
        script.write_text(f"""
import os, sys
from bench.gpu import checks
from bench.gpu.call_checks import CallCheck
ENDS = {ends!r}
def check(i):
    def run(device):
        end = ENDS.get(f"c{{i}}")
        if end == "dies":
            os._exit(9)
        if end:
            raise RuntimeError(end)
        return []
    return CallCheck(f"family {{i % 3}}", f"c{{i}}", run)
checks.all_checks = lambda device: [check(i) for i in range(10)]
sys.exit(checks.main())
""")
        start = checks.Share._start

        def scripted_start(self, skip):
            popen = checks.subprocess.Popen
            monkeypatch.setattr(
                checks.subprocess, "Popen", lambda command: popen([sys.executable, str(script), *command[3:]])
            )
            try:
                return start(self, skip)
            finally:
                monkeypatch.setattr(checks.subprocess, "Popen", popen)

        monkeypatch.setattr(checks.Share, "_start", scripted_start)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        journal = tmp_path / "checks.jsonl"
        checks.run_all(journal, 2, 60, 10)
        return check_journal.read(journal)

    return run


def test_a_process_that_dies_costs_one_check(scripted):
    entries = scripted(c3="dies", c4="CUDA error: an illegal memory access was encountered", c5="wrong shape")
    found = check_journal.summary(entries)
    assert found["done"] == 10
    assert found["passed"] == 7
    assert sorted(error for errors in found["wrong"].values() for error in errors) == [
        "c3: its process died with status 9",
        "c4: RuntimeError: CUDA error: an illegal memory access was encountered",
        "c5: RuntimeError: wrong shape",
    ]


def test_faults_are_run_again_under_the_sanitizer(tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "asked for: $*"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    journal = tmp_path / "checks.jsonl"
    check_journal.append(
        journal, {"family": "f", "name": "bad one", "passed": False, "error": "CUDA error", "sticky": True}
    )
    checks.sanitize(journal, until=float("inf"))
    (entry,) = [entry for entry in check_journal.read(journal) if "sanitizer" in entry]
    assert entry["sanitizer"] == "bad one"
    assert "--only bad one" in entry["says"]


def test_a_check_by_name(capsys):
    name = next(kernel_checks(CPU)).name
    assert checks.main(["--only", name]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    with pytest.raises(SystemExit, match="2"):
        checks.main(["--only", "no such check"])


# --- the table and the command ------------------------------------------------------------------------------


def test_the_table_has_sixty_lines_at_most(tmp_path, monkeypatch):
    visit = visited(tmp_path, monkeypatch, stage("one", "print(1)"))
    for i in range(200):
        entry = {"family": f"family {i}", "name": "n", "passed": False, "error": "off"}
        check_journal.append(tmp_path / "checks.jsonl", entry)
    lines = summary.table(visit).splitlines()
    assert len(lines) == 60
    assert lines[0] == "checks against float64: 0 of 200 passed"


def test_the_table_says_what_time_did_not_allow(tmp_path, monkeypatch):
    visit = visited(tmp_path, monkeypatch, stage("one", "print(1)"))
    check_journal.append(tmp_path / "checks.jsonl", {"planned": 5})
    check_journal.append(tmp_path / "checks.jsonl", {"family": "f", "name": "n", "passed": True, "error": None})
    assert summary.table(visit).splitlines()[0] == "checks against float64: 1 of 1 passed, 4 more not reached"


def written_by_a_suite(tmp_path: Path, name: str, seconds: list[float]) -> None:
    """A journal of a row, as a suite that was killed leaves it, and one of a suite that was killed before its first."""
    info = {"suite": name, "pass": "fprop", "net": "n", "layer": "l", "dtype": "float32"}
    journal = Journal(tmp_path / f"{name}.journal.jsonl")
    journal.begin({"gpu": "A", "ceilings": {"copy": {}}})
    if seconds:
        times = {"cudnn": [2 * s for s in seconds], "triton": seconds}
        rows = [{"extra_info": info | {"contender": c}, "stats": {"data": data}} for c, data in times.items()]
        journal.finish(tuple(info.values()), 1.0, {kind: [] for kind in KINDS} | {"benchmarks": rows})
    else:
        journal.start(tuple(info.values()))


def test_what_suites_that_were_stopped_measured_is_in_the_table(tmp_path):
    visit = Visit(tmp_path, tmp_path, 60)
    written_by_a_suite(tmp_path, "conv", [3e-6, 1e-6, 2e-6])
    written_by_a_suite(tmp_path, "training", [])
    assert visit.suites == [tmp_path / "conv.journal.jsonl"]
    assert summary.table(visit).splitlines()[-1] == "conv fprop n l float32: cudnn 4.0; triton 2.0 (x2.00)"


def test_what_is_replayed_from_a_graph_stands_beside_the_baselines_graph(tmp_path):
    times = {"reference": 36.0, "prepared": 18.0, "reference-graph": 16.0, "prepared-graph": 8.0}
    info = {"suite": "training_step", "pass": "step", "net": "n", "layer": "l", "dtype": "bfloat16"}
    rows = [{"extra_info": info | {"contender": name}, "stats": {"data": [1e-6 * t]}} for name, t in times.items()]
    (tmp_path / "training.json").write_text(json.dumps({"benchmarks": rows}))
    (line,) = summary._rows(tmp_path / "training.json")
    assert line.endswith("reference 36.0; prepared-graph 8.0 (x2.00); reference-graph 16.0; prepared 18.0 (x2.00)")


def test_suites_take_over_the_ceilings_that_the_first_one_measured(tmp_path):
    visit = Visit(tmp_path, tmp_path, 60)
    training = next(stage for stage in STAGES if stage.name == "training")
    assert "--ceilings" not in visit._command(training, 60)
    written_by_a_suite(tmp_path, "conv", [1e-6])
    command = visit._command(training, 60)
    assert command[command.index("--ceilings") + 1] == str(tmp_path / "conv.journal.jsonl")


def test_a_visit_does_not_pass_off_an_earlier_one_s_files(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.gpu.visit.STAGES", (stage("one", "print(1)"),))
    (tmp_path / "checks.jsonl").write_text('{"planned": 5}\n')
    assert main(["--out", str(tmp_path), "--budget", "0.2"]) == 0
    assert (tmp_path / "visit.txt").read_text().startswith("checks against float64: 0 of 0 passed\n")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file" / "below")]) == 2
    assert "--out must be a folder" in capsys.readouterr().err


def test_a_folder_that_another_visit_writes_into(tmp_path, capsys):
    (tmp_path / "visit.txt").write_text("the other's")
    with files.locked(tmp_path):
        assert main(["--out", str(tmp_path)]) == 2
    assert "is in use by another process" in capsys.readouterr().err
    assert (tmp_path / "visit.txt").read_text() == "the other's"


@pytest.mark.parametrize("minutes", ["0", "-1", "many", "nan"])
def test_a_budget_is_a_positive_number(minutes, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        main(["--budget", minutes, "--out", str(tmp_path)])


def test_what_an_interrupted_visit_found_is_kept_and_its_stage_ended(tmp_path, monkeypatch):
    """Stages are in groups of their own: nobody else ends them."""
    keeps = f"""
from bench.gpu import check_journal
from pathlib import Path
check_journal.append(Path({str(tmp_path)!r}) / "checks.jsonl", dict(family="f", name="n", passed=True))
"""
    ends = """
import os, signal, time
print(os.getpid(), flush=True)
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""
    stages = [stage(name, code) for name, code in (("keeps", keeps), ("ends", ends))]
    monkeypatch.setattr("bench.gpu.visit.STAGES", (*stages, stage("never", "print(1)")))
    assert main(["--out", str(tmp_path), "--budget", "1"]) == 128 + signal.SIGINT
    table = (tmp_path / "visit.txt").read_text()
    assert table.startswith("checks against float64: 1 of 1 passed")
    assert "interrupted" in table
    assert "never" not in table
    pid = int((tmp_path / "log.txt").read_text().split()[-1])
    assert not Path(f"/proc/{pid}").exists()


def test_a_visit_that_found_nothing_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.gpu.visit.STAGES", (stage("long", "", least=1000), stage("longer", "", least=2000)))
    (tmp_path / "visit.txt").write_text("an earlier visit's")
    assert main(["--out", str(tmp_path), "--budget", "0.2"]) == 1
    assert "nothing was checked or measured: --budget is too short" in capsys.readouterr().err
    assert "earlier" not in (tmp_path / "visit.txt").read_text()


@pytest.mark.parametrize("option", ["--wheels", "--commit-file", "--picks"])
def test_files_that_are_none_are_refused_before_anything_runs(tmp_path, capsys, option):
    (tmp_path / "nonsense").write_text("[1]")
    for name in ("absent", *(["nonsense"] if option != "--commit-file" else [])):
        with pytest.raises(SystemExit, match="2"):
            main([option, str(tmp_path / name), "--out", str(tmp_path / "out")])
        assert re.search(f"argument {option}: '.*{name}': accepted is a (file|folder)", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
