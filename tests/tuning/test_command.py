"""``python -m triton_dirac.tuning``: what it refuses, selects and says; that nothing is compiled a second time."""

import re
import subprocess
import sys

import pytest
import torch
import triton

from tests.runtime.test_compile_ahead import own_environment
from triton_dirac.tuning import __main__ as command

ONE_LAYER = ["--nets", "DiracNet-34-2", "--layers", "5x128x8x8", "--passes", "wgrad", "--batch", "5"]


@pytest.mark.slow
def test_compiles_without_a_gpu_and_not_a_second_time(tmp_path):
    arguments = ["--compile-only", "--target", "cuda:90", *ONE_LAYER, "--cache", str(tmp_path)]

    def said():
        run = [sys.executable, "-m", "triton_dirac.tuning", *arguments]
        environment = own_environment(tmp_path / "unused")
        done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    first, second = said(), said()
    (count,) = re.findall(r"^(\d+) kernels compiled into ", first, re.MULTILINE)
    assert int(count) >= 4
    assert f"compiling for cuda:90 0 of {count}, " in first
    assert f"compiling for cuda:90 {count} of {count}, " in first
    assert second.splitlines()[0] == f"0 kernels compiled into {tmp_path}"


@pytest.fixture
def compiling(monkeypatch):
    """As in a process that does not interpret."""
    monkeypatch.setattr(command, "INTERPRETED", False)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "there is no GPU to measure on; --compile-only --target cuda:90 compiles for one"),
        (["--compile-only"], "--compile-only needs --target, one or several of cuda:80, cuda:89, cuda:90"),
        (["--compile-only", "--target", "cuda:1"], "'cuda:1' is none of cuda:80, cuda:89, cuda:90"),
        (["--nets", "ResNet-50"], "'ResNet-50' is none of DiracNet-28-10"),
        (["--nets", ","], "needs one or several of DiracNet-28-10"),
        (["--dtypes", "float64"], "'float64' is none of bfloat16, float16, float32, tf32"),
        (["--batch", "0"], "must be a positive integer below 2 ** 31, got '0'"),
        (["--batch", str(2**31)], "must be a positive integer below 2 ** 31, got '2147483648'"),
        (["--jobs", "²"], "must be a positive integer below 2 ** 31, got '²'"),
        (["--layers", ","], "needs one or several parts of layers' names, got ','"),
        (
            ["--compile-only", "--target", "cuda:90", "--nets", "DiracNet-34-2", "--cache", "/dev/null"],
            "--cache must be a folder that can be written",
        ),
        (
            ["--compile-only", "--target", "cuda:90", "--layers", "7x7x7x7", "--nets", "DiracNet-34-2"],
            "nothing is selected: no layer of DiracNet-34-2 holds 7x7x7x7",
        ),
    ],
)
@pytest.mark.usefixtures("compiling")
def test_what_cannot_be_done_is_said(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with triton.knobs.cache.scope(), pytest.raises(SystemExit) as ended:  # --cache is the process's from then on
        command.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_an_interpreting_process_compiles_nothing(monkeypatch, capsys):
    monkeypatch.setattr(command, "INTERPRETED", True)
    with pytest.raises(SystemExit):
        command.main(["--compile-only", "--target", "cuda:90"])
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


def selected(*arguments):
    return command._selected(command._parser().parse_args(arguments))


def test_published_nets_are_selected_each_layer_once():
    works, others = selected("--nets", "DiracNet-18,DiracNet-34")
    assert len(works) == 7 * 3, "the Dirac layers of both are the same"
    assert {work.problem.N for work in works} == {256}
    assert all(work.identity == (work.direction != "wgrad") for work in works)
    assert sum("of all" in name for name in others) == 4, "both nets, in both layouts"


def test_plain_convolutions_are_selected_by_the_materialised_form():
    works, _ = selected(
        "--nets", "DiracNet-34-2", "--forms", "materialised", "--batch", "7", "--dtypes", "tf32,float16"
    )
    assert {work.problem.C for work in works} == {3, 32, 64, 128}
    assert not any(work.identity for work in works)
    assert not any(work.direction == "dgrad" and work.problem.C == 3 for work in works)
    assert {(work.dtype, work.storage) for work in works} == {("tf32", torch.float32), ("float16", torch.float16)}
    assert {work.problem.N for work in works} == {7}


def test_parts_of_names_select_layers():
    works, others = selected(*ONE_LAYER)
    assert [work.label for work in works] == [
        "conv_wgrad 5x128x8x8-128x3x3 s1,1 p1,1,1,1 d1,1 g1 bfloat16",
    ]
    assert others == {}
