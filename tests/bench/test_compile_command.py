"""python -m bench.compile: what it selects, when it fails, and what it leaves when it is stopped."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.compile import __main__ as command
from bench.compile import run
from bench.compile.pool import Pool
from bench.compile.run import Keeper
from tests.bench.test_compile import probe
from triton_dirac.runtime import files

ROOT = Path(__file__).parents[2]
SMALL = ("--targets", "cuda:80", "--nets", "DiracNet-34-2", "--kernels", "weight_prep", "--dtypes", "float16")


@pytest.mark.parametrize(
    "options, message",
    [
        ("--kernels typo", "--kernels: nothing is named 'typo'; accepted are parts of conv_fprop, conv_fprop gather"),
        ("--kernels fprop,typo", "--kernels: nothing is named 'typo'"),
        ("--configs --kernels weight_prep", "--kernels: nothing is named 'weight_prep'; accepted are parts of"),
        ("--loops --kernels typo", "nothing is named 'typo'; accepted are parts of Inductor template"),
        ("--layers typo --nets DiracNet-34-2", "--layers: nothing is named 'typo'; accepted are parts of 3x32x32-32"),
        ("--layers 7x7 --nets DiracNet-34-2", "--layers: nothing is named '7x7'"),
        ("--dtypes float31", "--dtypes: nothing is named 'float31'; accepted are float16, bfloat16"),
        ("--loops --dtypes tf32", "--dtypes: nothing is named 'tf32'; accepted are float16, bfloat16, float32"),
        ("--bytes --dtypes tf32", "--dtypes: nothing is named 'tf32'"),
        ("--targets cuda:9", "--targets: nothing is named 'cuda:9'; accepted are cuda:80"),
        ("--nets DiracNet", "--nets: nothing is named 'DiracNet'; accepted are DiracNet-28-10"),
        ("--bytes --nets DiracNet-18", "--nets: nothing is named 'DiracNet-18'"),
        ("--kernels ,", "--kernels ',' names nothing; accepted are conv_fprop"),
        ("--configs --layers stem", "--layers selects nothing of --configs; accepted there are --targets, --kernels"),
        ("--bytes --kernels weight_prep", "--kernels selects nothing of --bytes"),
        ("--loops --peers", "--peers selects nothing of --loops"),
        ("--configs --all", "--all selects nothing of --configs"),
        ("--loops --configs", "not allowed with argument"),
        ("--kernels weight_prep --dtypes tf32", "nothing is selected by --kernels weight_prep, --dtypes tf32"),
        ("--kernels dgrad --layers 3x32x32", "nothing is selected by --kernels dgrad, --layers 3x32x32"),
        ("--kernels weight_prep,fprop --layers 3x32x32 --dtypes tf32", "nothing is selected by --kernels weight_prep"),
        ("--jobs 0", "'0'; accepted is a number above 0"),
        ("--timeout nan", "'nan'; accepted is a number above 0"),
    ],
)  # fmt: skip
def test_what_selects_nothing_is_refused(options, message, capsys, monkeypatch):
    monkeypatch.setattr(command, "rows_of", lambda *_, **__: pytest.fail("compiled"))
    with pytest.raises(SystemExit) as error:
        command.main(options.split())
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        "--kernels weight_prep --layers 32x32x32-32",
        "--kernels weight_prep_multi --layers 32x32x32-32",
        "--dtypes tf32x3 --kernels fprop",
        "--nets DiracNet-34-2,DiracNet-18 --layers 3x3,7x7",
        "--configs --dtypes tf32",
        "--loops --kernels FlagGems",
        "--bytes --nets DiracNet-34",
        "--peers --all",
        "",
    ],
)
def test_what_selects_something_is_not(options):
    assert command.parse(options.split()).selected


def row(job, **found):
    made = run._row(job, job.kernel, {"ok": True, "error": None, **found})
    return made | {"registers": 1, "spills": 0, "shared_bytes": 0, "mma": None, "loads": {}, "stores": {}} | found | {
        "config": "", "compile_seconds": 0.1, "loops_with_mma": 0, "tma": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "found, message",
    [({"ok": False, "error": "no"}, "none of 4 kernels compiles"), (None, "nothing is selected by --targets cuda:80")],
)
def test_where_nothing_compiles_the_command_fails(found, message, capsys, monkeypatch):
    def rows_of(jobs, **_):
        return [row(job, **found) for job in jobs] if found else []

    monkeypatch.setattr(command, "rows_of", rows_of)
    assert command.main(SMALL) == 1
    assert message in capsys.readouterr().err


def test_a_named_target_without_a_row_fails_the_command(capsys, monkeypatch):
    monkeypatch.setattr(command, "rows_of", lambda jobs, **_: [row(job) for job in jobs if job.target == "cuda:90"])
    assert command.main(["--targets", "cuda:90,cuda:80", "--kernels", "weight_prep", "--dtypes", "float16"]) == 1
    assert "nothing is selected by --targets cuda:80: no such kernel is offered" in capsys.readouterr().err


def test_the_file_is_tried_before_anything_is_compiled(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "rows_of", lambda *_, **__: pytest.fail("compiled"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as error:
        command.main([*SMALL, "--json", str(tmp_path / "file" / "rows.json")])
    assert error.value.code == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(command, "rows_of", lambda jobs, **_: [row(job) for job in jobs])
    assert command.main([*SMALL, "--json=~/new/rows.json"]) == 0
    assert json.loads((tmp_path / "new" / "rows.json").read_text())["rows"]


def test_rows_are_in_the_file_while_others_are_compiled(tmp_path, monkeypatch):
    def rows_of(jobs, keep, **_):
        keep([row(jobs[0])], 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "rows_of", rows_of)
    assert command.main([*SMALL, "--json", str(tmp_path / "rows.json")]) == 130
    document = json.loads((tmp_path / "rows.json").read_text())
    assert (document["kind"], document["planned"], len(document["rows"])) == ("compile", 2, 1)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "as it was"


def test_a_full_disk_costs_the_file_and_not_the_table(tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "replace", full)
    monkeypatch.setattr(command, "rows_of", lambda jobs, **_: [row(job) for job in jobs])
    assert command.main([*SMALL, "--json", str(tmp_path / "rows.json")]) == 2
    out, err = capsys.readouterr()
    assert "rows.json: [Errno 28] No space left on device" in err
    assert "weight_prep" in out


def test_keeping_is_tried_again_and_takes_a_small_part_of_the_time(monkeypatch):
    now, kept = [0.0], []
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])

    def keep():
        kept.append(now[0])
        now[0] += 1.0
        raise OSError(errno.ENOSPC, "full")

    keeper = Keeper(keep)
    for _ in range(60):
        now[0] += 1.0
        keeper.now_and_then()
    assert len(kept) == 3
    with pytest.raises(OSError, match="full"):
        keeper.now()


def test_a_stopped_pool_does_not_wait_for_its_kernels():
    def stop(number, answer):
        raise KeyboardInterrupt

    requests = [{"job": probe(name).to_json()} for name in ("copy", "hang", "hang")]
    with Pool(2, timeout=600) as pool:
        pool.ask_all(requests[:1])
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            pool.ask_all(requests, stop)
        folders = [worker.folder for worker in pool.workers if hasattr(worker, "folder")]
    assert time.monotonic() - start < 60
    assert folders
    assert not any(os.path.exists(folder) for folder in folders)


def test_a_killed_command_leaves_its_rows_and_nothing_else(tmp_path):
    """SIGKILL: nobody but the workers can clear up."""
    temporary, rows = tmp_path / "tmp", tmp_path / "rows.json"
    temporary.mkdir()
    arguments = [sys.executable, "-m", "bench.compile", *SMALL[:-4], "--json", str(rows), "--jobs", "2"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait(lambda: rows.exists() or process.poll() is not None)
        assert process.poll() is None, "ended before it could be killed"
    finally:
        process.kill()
        process.wait()
    document = json.loads(rows.read_text())
    assert 0 < len(document["rows"]) < document["planned"]
    assert all(row["ok"] for row in document["rows"])
    wait(lambda: not list(temporary.glob("triton-dirac-*")))
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def wait(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
