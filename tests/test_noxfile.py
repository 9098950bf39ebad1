"""What the nox sessions do when a step fails, with a session that only notes its commands."""

import importlib.util
import os
import sys
import threading
import time
from pathlib import Path

import pytest

nox = pytest.importorskip("nox")
ROOT = Path(__file__).parents[1]


class Stopped(Exception):
    """session.error"""


class Session:
    """Notes commands; ``does`` maps a word of a command to what happens then: a function of the command."""

    def __init__(self, *posargs, **does):
        self.posargs, self.does = list(posargs), does
        self.commands, self.environments, self.logged = [], [], []

    def run(self, *command, env=None, stderr=None, **_):
        self.commands.append(command)
        self.environments.append(env)
        for word, action in self.does.items():
            if word in " ".join(command):
                action(command, stderr)

    def log(self, text):
        self.logged.append(text)

    warn = log

    def error(self, text):
        raise Stopped(text)


def fails(command, stderr):
    raise nox.command.CommandFailed(str(command))


def writes(text):
    """The command's last argument, or that of --benchmark-json, is a file, which is made."""

    def action(command, stderr):
        (name,) = [word.removeprefix("--benchmark-json=") for word in command if word.endswith(".json")]
        Path(name).write_text(text)

    return action


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The noxfile as a module, its folders in tmp_path."""
    spec = importlib.util.spec_from_file_location("noxfile_under_test", ROOT / "noxfile.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(nox.registry, "_REGISTRY", {}, raising=False)
    monkeypatch.chdir(ROOT)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LATEST", tmp_path / "reports" / "latest")
    monkeypatch.setattr(module, "PREVIOUS", tmp_path / "reports" / "previous")
    monkeypatch.setattr(module, "LAB", tmp_path / ".nox" / "lab")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setenv("LAB_PYTHON", sys.executable)
    return module


def rendered(session):
    """The names of the files that the report was made of."""
    (command,) = (command for command in session.commands if "reports" in command)
    return [Path(word).name for word in command if word.endswith(".json")]


def test_results_of_an_earlier_run_are_not_reported_as_todays(lab):
    lab.LATEST.mkdir(parents=True)
    (lab.LATEST / "results.json").write_text("yesterday's")
    (lab.LATEST / "index.html").write_text("yesterday's")
    session = Session(**{"benchmark-only": fails, "--json": writes("{}")})
    with pytest.raises(Stopped, match=r"results\.json, which is not there; the report has the rest"):
        lab.bench(session)
    assert rendered(session) == ["compile.json", "bytes.json"]
    assert not (lab.LATEST / "index.html").exists()
    assert (lab.PREVIOUS / "results.json").read_text() == "yesterday's", "nobody loses what took hours"


def test_what_a_killed_step_left_is_reported(lab):
    def killed(command, stderr):
        writes("{}")(command, stderr)
        fails(command, stderr)

    session = Session(**{"benchmark-only": killed, "--bytes": fails, "--json": writes("{}")})
    with pytest.raises(Stopped, match=r"not everything ran: results\.json; bytes\.json, which is not there"):
        lab.bench(session)
    assert rendered(session) == ["results.json", "compile.json"]


def test_a_step_that_ends_well_and_writes_nothing_is_said(lab):
    session = Session("--benchmark-json=elsewhere", **{" --json": writes("{}")})
    with pytest.raises(Stopped, match=r"results\.json, which is not there"):
        lab.bench(session)


def test_a_bench_waits_for_the_one_that_runs(lab):
    """It would move the other's results aside while they are measured."""
    lab.LATEST.mkdir(parents=True)
    (lab.LATEST / "results.json").write_text("the other's")
    session = Session(**{"benchmark-only": writes("{}"), " --json": writes("{}"), "--bytes": writes("{}")})
    waiting = threading.Thread(target=lab.bench, args=(session,), daemon=True)
    with lab.alone_in(lab.LATEST.parent, Session(), "the other"):
        waiting.start()
        deadline = time.monotonic() + 30
        while not session.logged and time.monotonic() < deadline:
            time.sleep(0.01)
        assert session.logged == [f"waiting for another nox: it writes into {lab.LATEST}"]
        assert (lab.LATEST / "results.json").read_text() == "the other's"
    waiting.join(timeout=30)
    assert not waiting.is_alive()
    assert (lab.PREVIOUS / "results.json").read_text() == "the other's"
    assert rendered(session)


def test_a_run_is_compared_with_itself_and_with_what_was_planted(lab):
    session = Session("--processes", "6")
    lab.alike(session)
    measured, *compared = session.commands
    out = lab.LATEST / "alike"
    assert measured[1:] == ("-m", "bench.alike", "--out", str(out), "--processes", "6")
    assert [command[6:8] for command in compared] == [
        (str(out / "a"), str(out / name)) for name in ("b", "b", "planted")
    ]
    assert {command[3:6] for command in compared} == {("compare", "--margin", "0")}
    assert ["--relative" in command for command in compared] == [False, True, True]


@pytest.mark.parametrize(
    "place, said",
    [
        ("/b --fail", "a run differs from itself; a run differs from itself, relative times"),
        ("/planted", "is not found"),
    ],
)
def test_a_false_alarm_and_a_change_that_is_missed_are_said(lab, place, said):
    with pytest.raises(Stopped, match=said):
        lab.alike(Session("--out", "elsewhere", **{place: fails}))


def test_no_results_no_report(lab):
    session = Session(**{"-m": fails})
    with pytest.raises(Stopped, match="no report"):
        lab.bench(session)
    with pytest.raises(Stopped, match="nox -s bench makes them"):
        lab.report(Session())


def test_two_failed_runs_in_a_row_keep_the_last_results(lab):
    lab.LATEST.mkdir(parents=True)
    (lab.LATEST / "results.json").write_text("good")
    for _ in range(2):
        with pytest.raises(Stopped):
            lab.bench(Session(**{"-m": fails}))
    assert (lab.PREVIOUS / "results.json").read_text() == "good"


@pytest.mark.parametrize("asked", [("--resume",), ()])
def test_a_resumed_run_finds_its_journal_and_nothing_else_of_the_last(lab, asked):
    lab.LATEST.mkdir(parents=True)
    for name in ("results.journal.jsonl", "results.json"):
        (lab.LATEST / name).write_text("rows")
    seen = []
    session = Session(*asked, **{"benchmark-only": lambda *_: seen.extend(lab.LATEST.iterdir()), "-m": fails})
    with pytest.raises(Stopped):
        lab.bench(session)
    assert [path.name for path in seen] == (["results.journal.jsonl"] if asked else [])


def test_the_report_is_made_again_of_what_is_there(lab):
    lab.LATEST.mkdir(parents=True)
    (lab.LATEST / "compile.json").touch()
    session = Session()
    lab.report(session)
    assert rendered(session) == ["compile.json"]


def test_pip_installs_into_the_environment_whatever_it_is_told_elsewhere(lab, monkeypatch):
    monkeypatch.delenv("LAB_PYTHON")
    monkeypatch.setattr(lab.venv, "create", lambda path, **_: path.mkdir(parents=True))
    session = Session()
    lab.lab(session)
    assert len(session.commands) == 2
    for environment in session.environments:
        assert environment["PIP_USER"] == "0"
        assert {name for name, value in environment.items() if value is None} >= {"PIP_TARGET", "PIP_PREFIX"}


NONE = "ERROR: No matching distribution found for torch==2.13.0+cpu"
FAILURES = {
    "user": "ERROR: Can not perform a '--user' install. User site-packages are not visible in this virtualenv.",
    "disk": "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
    "offline": f"WARNING: Retrying (Retry(total=4, ...)) after connection broken by ...\n{NONE}",
    "killed": "",
}


@pytest.mark.parametrize("name", FAILURES)
def test_only_a_missing_cpu_build_calls_for_the_large_one(lab, monkeypatch, name):
    def says(text):
        def action(command, stderr):
            stderr.write(text)
            fails(command, stderr)

        return action

    monkeypatch.setattr(lab, "has_gpu", lambda: False)
    session = Session(**{"+cpu": says(FAILURES[name])})
    with pytest.raises(Stopped, match="CPU build could not be installed"):
        lab.install_torch(session, ("pip",))
    assert len(session.commands) == 1, "no gigabytes"
    assert FAILURES[name] in session.logged
    session = Session(**{"+cpu": says(NONE)})
    lab.install_torch(session, ("pip",))
    assert [command[-1].partition("+")[2] for command in session.commands] == ["cpu", ""]


def test_lab_python(lab, monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_PYTHON", "~/no/python")
    with pytest.raises(Stopped, match="LAB_PYTHON is '~/no/python', which is no program"):
        lab.lab(Session())
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LAB_PYTHON", "~/python")
    assert lab.lab(Session()) == os.fspath(tmp_path / "python")
