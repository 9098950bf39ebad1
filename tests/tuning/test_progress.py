"""How far it is, on a terminal and in a log."""

import io

from triton_dirac.tuning.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_one_line_that_grows():
    now, stream = [0.0], Terminal()
    progress = Progress("compiling", stream, lambda: now[0])
    for done in range(4):
        progress(done, 3)
        now[0] += 30.0
    lines = [line.rstrip() for line in stream.getvalue().split("\r")]
    assert lines == [
        "",
        f"compiling [{'.' * 30}] 0 of 3, 0:00",
        f"compiling [{'#' * 10}{'.' * 20}] 1 of 3, 0:30, about 1:00 left",
        f"compiling [{'#' * 20}{'.' * 10}] 2 of 3, 1:00, about 0:30 left",
        f"compiling [{'#' * 30}] 3 of 3, 1:30",
    ]
    assert stream.getvalue().endswith("\n")


def test_a_log_has_a_line_now_and_then():
    now, stream = [0.0], io.StringIO()
    progress = Progress("compiling", stream, lambda: now[0])
    for done in range(101):
        progress(done, 100)
        now[0] += 0.25
    lines = stream.getvalue().splitlines()
    assert lines[0] == "compiling 0 of 100, 0:00"
    assert lines[-1] == "compiling 100 of 100, 0:25"
    assert len(lines) == 4


def test_threads_that_overtake_each_other_do_not_turn_it_back():
    stream = io.StringIO()
    progress = Progress("compiling", stream, lambda: 0.0)
    for done in (0, 2, 1, 3):
        progress(done, 3)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["0", "3"]
