"""What the user has set for matplotlib or for the terminal changes no report. In processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reports.reports_data import benchmark, check

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PLACE = ("conv", "fprop", "Net", "layer", "bfloat16")
STYLE = b"axes.grid: True\naxes.facecolor: black\nsavefig.transparent: True\nfont.family: monospace\n"
SETTINGS = {"style": STYLE + b"text.usetex: True\n", "latin-1": b"# \xe9t\xe9\nfont.size: 11\n"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    file = tmp_path_factory.mktemp("results") / "results.json"
    timed = [benchmark(*PLACE, name, [time] * 7) for name, time in (("cudnn", 1.0), ("triton", 2.0))]
    checked = [
        check("precision", *PLACE[1:], form, error=error, beta=0.01, filters_scale=0.1)  # β in the headline
        for form, error in (("split", 1e-4), ("materialised", 1e-3))
    ]
    file.write_text(json.dumps({"benchmarks": timed, "accuracy": checked}))
    return file


def report(results, output, code="from reports.__main__ import main; sys.exit(main())", **settings):
    """All files of the report made with these environment variables, by name."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "MATPLOTLIB"))}
    command = [sys.executable, "-c", f"import sys; {code}", str(results), "--output", str(output)]
    environment |= {"HOME": str(output.parent), "PYTHONPATH": str(ROOT)} | settings
    done = subprocess.run(command, env=environment, cwd=output.parent, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*.*") if path.is_file()}


@pytest.fixture(scope="module")
def plain(results, tmp_path_factory):
    found = report(results, tmp_path_factory.mktemp("plain") / "out")
    assert {"index.html", "figures/overview.svg", "figures/precision.svg"} <= found.keys()
    return found


@pytest.mark.parametrize(
    "name, backend, encoding",
    [
        ("style", "module://matplotlib_inline.backend_inline", "ascii"),
        ("latin-1", "no such backend", "latin-1"),
    ],
)
def test_a_matplotlibrc_a_backend_and_the_terminal_s_encoding(tmp_path, results, plain, name, backend, encoding):
    """At once: a process takes its seconds, and none of them may change a byte."""
    (tmp_path / "settings").write_bytes(SETTINGS[name])
    settings = {"MATPLOTLIBRC": str(tmp_path / "settings"), "MPLBACKEND": backend, "PYTHONIOENCODING": encoding}
    assert report(results, tmp_path / "out", **settings) == plain


def test_matplotlibrc_where_the_command_runs(tmp_path, results, plain):
    (tmp_path / "matplotlibrc").write_bytes(STYLE)
    assert report(results, tmp_path / "out") == plain


def test_settings_of_a_program_that_makes_a_report(tmp_path, results, plain):
    """matplotlib is there with the program's settings, and they are the program's again afterwards."""
    change = "import matplotlib; matplotlib.rcParams.update({'axes.grid': True, 'font.size': 30})"
    again = "assert matplotlib.rcParams['axes.grid'] and matplotlib.rcParams['font.size'] == 30"
    code = f"{change}; from reports.__main__ import main; main(); {again}"
    assert report(results, tmp_path / "out", code) == plain
