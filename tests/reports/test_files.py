"""A report's files: all of the new ones or all of the old ones, and one line where they cannot be written."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reports import files, render
from reports.__main__ import main
from tests.reports.reports_data import benchmark, compile_table

ROOT = Path(__file__).parents[2]
PLACE = ("conv", "fprop", "Net", "layer", "float16")


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "table.json"
    file.write_text(json.dumps(compile_table()))
    return file


def test_an_interrupted_write_leaves_the_old_files(tmp_path, monkeypatch):
    page = tmp_path / "index.html"
    files.write({page: "old"})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write({tmp_path / "a.csv": "new", page: "new"})
    assert names(tmp_path) == ["index.html"]
    assert page.read_text() == "old"


def test_a_full_disk_leaves_the_old_report_whole(tmp_path, monkeypatch):
    old = {tmp_path / name: "old" for name in ("a.csv", "b.csv", "index.html")}
    files.write(old)
    write_part, written = files._write_part, []

    def full_after_one(path, content):
        written.append(path)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_part(path, content)

    monkeypatch.setattr(files, "_write_part", full_after_one)
    with pytest.raises(OSError, match="No space left"):
        files.write(dict.fromkeys(old, "new"))
    assert names(tmp_path) == ["a.csv", "b.csv", "index.html"]
    assert {path.read_text() for path in old} == {"old"}


def test_parts_of_a_killed_writer_are_removed_by_the_next(tmp_path):
    page = tmp_path / "index.html"
    kill = "import os; os.replace = lambda *_: os.kill(os.getpid(), 9)"
    code = f"{kill}\nfrom pathlib import Path\nfrom reports import files\nfiles.write({{Path({str(page)!r}): 'new'}})"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    files.write({page: "by a neighbour"})
    assert left.exists(), "a part as young as this may be being written"
    os.utime(left, (0, 0))
    files.write({page: "later"})
    assert names(tmp_path) == ["index.html"]


def test_writers_that_are_killed_leave_every_file_whole(tmp_path):
    def write_many(letter):
        while True:
            files.write({tmp_path / name: letter * 100_000 for name in ("a.csv", "index.html")})

    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(letter,)) for letter in "abcdefgh"]
    for writer in writers:
        writer.start()
    for writer in writers:
        time.sleep(0.05)
        writer.kill()
        writer.join()
    for name in ("a.csv", "index.html"):
        text = (tmp_path / name).read_text()
        assert text == text[0] * 100_000
    for left in tmp_path.glob(".*"):
        os.utime(left, (0, 0))
    files.write({tmp_path / name: "last" for name in ("a.csv", "index.html")})
    assert names(tmp_path) == ["a.csv", "index.html"]


def test_a_link_is_followed(tmp_path):
    target, link = tmp_path / "elsewhere" / "page", tmp_path / "index.html"
    link.symlink_to(target)
    files.write({link: "new"})
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_the_page_takes_its_place_last(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr("os.replace", lambda part, path: taken.append(Path(path).name))
    render.write({"index.html": "", "summary.md": "", "tables/a.csv": ""}, tmp_path)
    assert taken == ["summary.md", "a.csv", "index.html"]


def test_pictures_of_the_last_report_do_not_stay(tmp_path):
    """They would be taken for today's."""
    timed = {"benchmarks": [benchmark(*PLACE, name, [1.0] * 7) for name in ("cudnn", "triton")]}
    first, second, out = tmp_path / "timed.json", tmp_path / "compiled.json", tmp_path / "out"
    first.write_text(json.dumps(timed))
    second.write_text(json.dumps(compile_table()))
    assert main([str(first), "--output", str(out)]) == 0
    (out / "figures" / "mine.svg").write_text("not a report's")
    assert names(out / "figures") == ["mine.svg", "overview.svg", "speed-1-conv.svg"]
    assert main([str(second), "--output", str(out)]) == 0
    assert names(out / "figures") == ["compiled.svg", "mine.svg", "overview.svg"]


@pytest.mark.parametrize("what", ["a file", "below a file", "a folder in a file's place", "too long a name"])
def test_an_output_that_cannot_be_written_is_one_line_and_exit_code_2(tmp_path, table, capsys, what):
    out = tmp_path / "out"
    if what == "a folder in a file's place":
        (out / "index.html" / "x").mkdir(parents=True)
    elif what == "too long a name":
        out = tmp_path / ("n" * 300)
    else:
        out.touch()
        out = out / "deep" / "er" if what == "below a file" else out
    assert main([str(table), "--output", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"reports: --output {out}: cannot be written (")
    assert "accepted is a folder" in line


def test_an_overview_that_cannot_be_written(tmp_path, table, capsys):
    (tmp_path / "file").touch()
    picture = tmp_path / "file" / "overview.svg"
    assert main([str(table), "--output", str(tmp_path / "out"), "--overview", str(picture)]) == 2
    assert capsys.readouterr().err.startswith(f"reports: --overview {picture}: cannot be written (")


def test_a_message_is_one_line_whatever_it_quotes(tmp_path, capsys):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"benchmarks": [{"name": "two\nlines"}]}))
    assert main([str(file)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_whose_name_is_no_text(tmp_path, table):
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json"))
    table.rename(file)
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe"))
    assert main([str(file), "--output", str(out)]) == 0
    assert "?.json" in (out / "index.html").read_text(encoding="utf-8")


def test_a_tilde_is_the_home_directory(tmp_path, table, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main([f"~/{table.name}", "--output=~/report", "--overview=~/report/overview.svg"]) == 0
    assert not (tmp_path / "~").exists()
    assert (tmp_path / "report" / "overview.svg").exists()


def test_a_reader_of_the_output_may_leave(tmp_path, table):
    """python -m reports ... | true"""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "reports", str(table), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
