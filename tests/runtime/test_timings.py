"""Timings on disk: several writers, kills, full disks, foreign files, no home. Picks may not be kept; nothing fails."""

import errno
import json
import multiprocessing
import os
import pwd
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime import autotune, files, timings

CPU = torch.device("cpu")
HEAD = '{"format": 1, "gpu": "gpu", "triton": "3.7", "timings": '


def store(path):
    return timings.Store(path, "gpu", "3.7")


def names(directory):
    return sorted(path.name for path in directory.iterdir())


# --- where ------------------------------------------------------------------------------------------------


@pytest.fixture
def no_home(monkeypatch):
    """A container run as a user that its system does not know."""
    monkeypatch.delenv("HOME")
    monkeypatch.delenv(timings.CACHE_DIR, raising=False)

    def unknown(*_):
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_choice_is_made_without_a_home(no_home, monkeypatch):
    monkeypatch.delenv(autotune.AUTOTUNE, raising=False)
    autotune.forget()
    problem = ConvProblem(1, 8, 8, 8, 8, 3, 3)
    with pytest.warns(UserWarning, match=r"timings are not kept: no home directory.*TRITON_DIRAC_CACHE_DIR is not set"):
        picked = autotune.choose(
            "conv2d forward", problem, torch.float32, CPU,
            candidates=lambda: {"triton": lambda: None, "torch": lambda: None}, default="triton",
            measure=lambda runs, what: dict.fromkeys(runs, 1.0),
        )  # fmt: skip
    autotune.forget()
    assert picked == "triton"


def test_a_tilde_without_a_home_is_named(no_home, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(timings.CACHE_DIR, "~/cache")
    with pytest.warns(UserWarning, match="TRITON_DIRAC_CACHE_DIR is '~/cache'; accepted is a directory"):
        timings.open_store(CPU).write("entry", {"a": 1.0})
    assert names(tmp_path) == []


@pytest.mark.parametrize("named", ["$NOT_SET/cache", "${NOT_SET}/cache"])
def test_a_variable_that_is_not_set_is_named_and_makes_no_folder(named, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.setenv(timings.CACHE_DIR, named)
    with pytest.warns(UserWarning, match=r"not kept: TRITON_DIRAC_CACHE_DIR is .*NOT_SET.* is not set; accepted is"):
        timings.open_store(CPU).write("entry", {"a": 1.0})
    assert names(tmp_path) == []


@pytest.mark.parametrize("named", ["~/cache", "$HOME/cache", "${HOME}/cache"])
def test_the_variable_is_expanded_as_a_shell_would(named, monkeypatch, tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv(timings.CACHE_DIR, named)
    timings.open_store(CPU).write("entry", {"a": 1.0})
    assert timings.open_store(CPU).path.parent == home / "cache"
    assert names(here) == []


@pytest.mark.parametrize("directory", ["/dev/null", "/proc/triton_dirac", "file"])
def test_a_directory_that_cannot_be_written_is_warned_of(directory, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(timings.CACHE_DIR, str(tmp_path / directory))
    found = timings.open_store(CPU)
    with pytest.warns(UserWarning, match="timings are not kept"):
        found.write("entry", {"a": 1.0})
    assert found.read("entry") == {}


# --- what is found there ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0" * 4096,
        "[" * 100_000 + "]" * 100_000,
        HEAD + '{"a": ' * 50_000 + "1" + "}" * 50_001,
        HEAD + "[]}",
        HEAD + '{"entry": [1]}}',
        HEAD + '{"entry": {"a": true}}}',
        HEAD + '{"entry": {"a": -1.0}}}',
        HEAD + '{"entry": {"a": NaN}}}',
        HEAD + '{"entry": {"a": Infinity}}}',
        HEAD + '{"entry": {"a": ' + "9" * 400 + "}}}",
        HEAD + '{"entry": {"a": ' + "9" * 5000 + "}}}",
        HEAD + '{"entry": {"a": {"b": 1}}}}',
    ],
    ids=lambda text: text[-20:] if text.isprintable() else "nul",
)
def test_a_file_that_holds_no_timings_is_ignored_and_replaced(text, tmp_path):
    own = store(tmp_path / "a.json")
    own.path.write_text(text)
    with pytest.warns(UserWarning, match="is ignored"):
        assert own.read("entry") == {}
    own.write("entry", {"a": 2.0})
    assert own.read("entry") == {"a": 2.0}


def test_a_link_is_followed(tmp_path):
    own = store(tmp_path / "a.json")
    own.path.symlink_to(tmp_path / "elsewhere.json")
    own.write("entry", {"a": 2.0})
    assert own.path.is_symlink()
    assert store(tmp_path / "elsewhere.json").read("entry") == {"a": 2.0}


def test_a_directory_in_the_files_place(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.warns(UserWarning, match="timings are not kept"):
        store(tmp_path / "a.json").write("entry", {"a": 1.0})


def test_a_directory_in_the_locks_place_serves_as_well(tmp_path):
    (tmp_path / "a.lock").mkdir()
    own = store(tmp_path / "a.json")
    own.write("entry", {"a": 1.0})
    assert own.read("entry") == {"a": 1.0}


# --- while it is written ----------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_timings(tmp_path):
    """A limit on the size of files stands for the disk: the write ends in the middle."""
    own = store(tmp_path / "a.json")
    own.write("old", {"a": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.warns(UserWarning, match="timings are not kept: .*File too large"):
            own.write("new", {f"config {number}": 1.0 for number in range(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert own.read("old") == {"a": 1.0}
    assert own.read("new") == {}
    assert names(tmp_path) == ["a.json", "a.lock"]


def write_many(path, worker):
    own = store(path)
    for number in range(10_000):
        own.write(f"{worker} {number % 50}", {"a": float(number)})


def test_writers_that_are_killed_break_nothing_and_leave_nothing(tmp_path):
    path = tmp_path / "a.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, worker)) for worker in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        time.sleep(0.1)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        if path.exists():
            json.loads(path.read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store(path).write("after", {"a": 1.0})
        assert store(path).read("after") == {"a": 1.0}
        assert store(path).read("0 0") != {}, "what was written before the kill is there"
    assert names(tmp_path) == ["a.json", "a.lock"]


def test_a_part_of_a_killed_writer_is_removed_by_the_next(tmp_path):
    for left in (".a.json.123-beef.part", ".b.json.123-beef.part"):
        (tmp_path / left).touch()
    store(tmp_path / "a.json").write("entry", {"a": 1.0})
    assert names(tmp_path) == [".b.json.123-beef.part", "a.json", "a.lock"]
    files.replace(tmp_path / "b.json", "")
    assert ".b.json.123-beef.part" in names(tmp_path), "without a lock a young part may be being written"
    os.utime(tmp_path / ".b.json.123-beef.part", (0, 0))
    files.replace(tmp_path / "b.json", "")
    assert names(tmp_path) == ["a.json", "a.lock", "b.json"]


def test_a_writer_that_was_stopped_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    own = store(tmp_path / "a.json")
    with files.locked(tmp_path / "a.lock"), pytest.warns(UserWarning, match=r"a\.lock is in use by another process"):
        own.write("entry", {"a": 1.0})
    own.write("entry", {"a": 1.0})
    assert own.read("entry") == {"a": 1.0}


def test_a_file_is_written_alone_though_it_moves_aside(tmp_path):
    file = tmp_path / "results.json"
    with files.alone(file):
        file.write_text("")
        (tmp_path / "link.json").symlink_to(file)
        with pytest.raises(TimeoutError, match=r"link\.json is being written"), files.alone(tmp_path / "link.json"):
            pass
        (tmp_path / "link.json").unlink()
        file.rename(tmp_path / "results.json.old")
        with pytest.raises(TimeoutError, match=r"results.json is being written by another process"), files.alone(file):
            pass
    with files.alone(file):
        pass
    assert [left.name for left in tmp_path.iterdir()] == ["results.json.old"]


def test_a_stream_is_anybodys():
    with files.alone(Path("/dev/null")), files.alone(Path("/dev/null")):
        pass


def test_a_machine_without_locks(tmp_path, monkeypatch):
    """No fcntl (Windows), or a file system that refuses."""
    monkeypatch.setattr(files, "fcntl", None)
    store(tmp_path / "a.json").write("entry", {"a": 1.0})
    assert names(tmp_path) == ["a.json"]
    monkeypatch.undo()

    def refuse(*_):
        raise OSError(45, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    store(tmp_path / "b.json").write("entry", {"a": 1.0})
    assert store(tmp_path / "b.json").read("entry") == {"a": 1.0}


def test_the_package_imports_without_fcntl(monkeypatch):
    import importlib

    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert importlib.reload(files).fcntl is None
    monkeypatch.undo()
    importlib.reload(files)


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """As /dev/null and /dev/stdout must not be: a file in their place would be the whole machine's."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.replace(pipe, "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_shells_pipe_has_no_folder():
    """/dev/stdout of a pipeline, and what >(command) names: a link to a pipe that lies nowhere."""
    ending, beginning = os.pipe()
    path = Path(f"/dev/fd/{beginning}")
    files.require_writable(path)
    files.replace(path, "text")
    assert os.read(ending, 10) == b"text"
    os.close(ending)
    os.close(beginning)


def test_a_link_to_a_file_that_is_not_there_yet(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "folder" / "file")
    files.require_writable(link)
    files.replace(link, "text")
    assert (tmp_path / "folder" / "file").read_text() == "text"
    assert link.is_symlink()


def test_a_mounted_file_is_written_in_its_place(tmp_path, monkeypatch):
    """One that a container is given alone: nothing can be put where it is mounted."""

    def busy(source, target):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), source, None, target)

    monkeypatch.setattr(os, "replace", busy)
    (tmp_path / "file").write_text("old and longer")
    files.replace(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_a_file_whose_folder_takes_no_part_is_refused_before(tmp_path):
    """A writable file in a folder that is not: it cannot be replaced. The name is what has no room here."""
    path = tmp_path / ("n" * 250)
    path.touch()
    with pytest.raises(OSError, match=f"too long: '{path}'"):
        files.require_writable(path)


def test_errors_name_the_file_and_not_the_part_of_it(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'file'}'"):
        files.replace(tmp_path / "file", b"bytes")
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", ["folder", "folder/file/below"])
def test_what_cannot_be_written_is_known_before(place, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    with pytest.raises(OSError, match=r"directory|exists"):
        files.require_writable(tmp_path / place)
    files.require_writable(tmp_path / "new" / "file")
    files.require_writable(tmp_path / "folder" / "file")
    assert names(tmp_path / "new") == []
    assert names(tmp_path / "folder") == ["file"]
