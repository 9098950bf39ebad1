"""The list of mutants: it knows every kernel, and every mutant is a program."""

import ast
from pathlib import Path

import pytest

from tests.mutants import ROOT, SAME, TESTS, changes, mutants

pytestmark = pytest.mark.cpu


def test_every_file_with_a_kernel_has_tests_chosen():
    kernels = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "triton_dirac").rglob("*.py")
        if "@triton.jit" in file.read_text()
    }
    assert kernels <= set(TESTS)
    for file, arguments in TESTS.items():
        assert (ROOT / file).exists()
        assert all((ROOT / argument).exists() for argument in arguments if argument.endswith(".py"))


@pytest.mark.parametrize("file", TESTS)
def test_every_mutant_is_another_program(file):
    found = mutants(file)
    assert found
    original = ast.dump(ast.parse((ROOT / file).read_text()))
    for mutant in found[:: max(1, len(found) // 40)]:
        assert ast.dump(ast.parse(mutant.source)) != original, str(mutant)


@pytest.mark.parametrize("why", SAME)
def test_what_is_said_to_compute_the_same_is_there(why):
    files = {Path(file).stem: file for file in TESTS}
    for name, pattern in SAME[why].items():
        assert any(mutant.same == why for mutant in mutants(files[name])), f"{name}: {pattern}"


@pytest.mark.parametrize(
    "source, expected",
    [
        ("a + b", ["(a - b)"]),
        ("a < b", ["(a <= b)"]),
        ("a if c else b", ["(b if c else a)"]),
        ("tl.minimum(a, b)", ["tl.maximum"]),
        ("tl.where(c, a, b)", ["(tl.where(c, b, a))"]),
        ("tl.load(p, mask=m & n, other=0.0)", ["None", "(m)", "(n)"]),
        ("3", ["4"]),
        ("-a", ["(a)"]),
        ("True", []),
    ],
)
def test_changes(source, expected):
    assert [text for _, text in changes(ast.parse(source, mode="eval").body)] == expected


@pytest.mark.parametrize("source, expected", [("x += y", "x = y"), ("if flag:\n  pass", "not (flag)")])
def test_changes_of_statements(source, expected):
    assert [text for _, text in changes(ast.parse(source).body[0])] == [expected]
