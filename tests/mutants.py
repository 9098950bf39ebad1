"""Do the tests notice a kernel that is wrong by one operator? nox -s mutants [-- OPTIONS]

A mutant is one kernel file, or the tolerance rule, with one change: an operator, a comparison, a constant, a mask, the
branches of a choice, a branch left out. It is killed if a test fails. Each file has a selection of tests that launch
it, less than all. What lives through it asks for a test, unless the changed program computes the same: ``SAME`` says
of which and why. Those are told apart, and the share of the others that are killed decides.

mutmut and cosmic-ray put all mutants of a function behind a switch, or mutate what is imported; Triton reads a kernel's
source from its file, so the file itself has to change. Here that is done in a copy of the project, and each mutant runs
in a fork of a process that has imported torch and Triton already, which is most of what a short run costs.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import gc
import os
import py_compile
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
FPROP, DGRAD, WGRAD = (f"tests/conv/test_{name}.py" for name in ("fprop", "dgrad", "wgrad"))
SINGLE, MULTI = (f"tests/weight_prep/test_{name}.py" for name in ("single", "multi"))
TESTS = {
    "triton_dirac/conv/gather.py": (FPROP, DGRAD, "-k", "not every_config and not tile"),
    "triton_dirac/conv/epilogue.py": (FPROP, "-k", "activation"),
    "triton_dirac/conv/taps.py": (FPROP, DGRAD, "-k", "not every_config"),
    "triton_dirac/conv/descriptor.py": (FPROP, DGRAD, "-k", "tile or half or infinities"),
    "triton_dirac/conv/persistent.py": (FPROP, DGRAD, "-k", "tile or persistent or half or infinities"),
    "triton_dirac/conv/wgrad_descriptor.py": (WGRAD, "-k", "tile or half or beyond"),
    "triton_dirac/conv/wgrad_kernels.py": (WGRAD, "-k", "not every_config"),
    "triton_dirac/conv/direct.py": ("tests/conv/test_direct.py",),
    "triton_dirac/weight_prep/rows.py": (SINGLE,),
    "triton_dirac/weight_prep/single.py": (SINGLE,),
    "triton_dirac/weight_prep/multi.py": (MULTI,),
    "triton_dirac/weight_prep/layers.py": (MULTI,),
    "tests/tolerance.py": ("tests/test_tolerance.py",),
}
GOAL = 0.95
TEST_SECONDS = 60  # of one test; what takes longer has a loop without end

# Why a mutant that lives computes the same, by its file's name and a pattern of the changed line.
SAME = {
    "a hint to the compiler, of which the interpreter knows nothing": {
        "multi": r"multiple_of\(|if not \(ALIGNED\)",
        "wgrad_kernels": r"max_constancy\(",
    },
    "what a mask leaves out is not stored, or is multiplied by zero": {
        "epilogue": r"exists, other=1.0",
        "taps": r"has_identity, other=1.0",
        "persistent": r"min\(C, K\), other=1.0",
        "gather": r"((channel < C|index < TOTAL)\).*|known), other=1.0",
        "wgrad_kernels": r"((images|rows_left)\).*|pointer, mask=mask), other=1.0",
        "direct": r"(is_[kc].*|mask), other=1.0",
        "rows": r"\b(alpha|beta) = .*other=1.0|norm = .*other=2.0|(unit|grad|w|scaled|partial) \+?= .*=mask, other=1.0",
    },
    "is replaced before anything reads it": {
        "descriptor": r"extra = 1$",
        "wgrad_descriptor": r"EXTRA_N else 2\)",
        "persistent": r"(image|next_row), .* = .*\b1\b",
        "layers": r"\[1\] \* len|other_last\), 1$|extend\(.*\b1, ",
    },
    "another way to the same numbers, of which one is faster": {
        "gather": r"EVERY_I \* EVERY_J >= 1|\(EVERY_I \+ EVERY_J\) > 1",
        "wgrad_descriptor": r"last_tap = .*\(S \+ 1\)",  # more pixels, at which all taps read zeros
    },
    "a pixel or tap that is read as zeros, wherever it lies": {
        "persistent": r"nothing, -2|w, -2\)|nothing, 1, filter_tap",
    },
    "of bounds and scales that are safe, the next one": {"rows": r"2\.0\*\*-?(801|1001|601|81|121|101)\b|3\.0\*\*120"},
    "channels come in eights": {"wgrad_descriptor": r"last_tap = .*COLUMNS - 2"},
    "no zero is negative: sums begin with one that is not": {"epilogue": r"z <= 0"},
    "nothing has no error, whatever is allowed": {"tolerance": r"numel\(\) else 1.0"},
}

OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
FUNCTIONS = {"minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min"}


class Mutant(NamedTuple):
    file: str
    line: int
    before: str
    after: str
    source: str  # of the whole file

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before} -> {self.after}"

    @property
    def same(self) -> str:
        """Why it computes what the original computes; "" if it is not known to."""
        changed, name = self.source.splitlines()[self.line - 1], Path(self.file).stem
        return next((why for why, lines in SAME.items() if name in lines and re.search(lines[name], changed)), "")


def mutants(file: str, root: Path = ROOT) -> list[Mutant]:
    """All of a file: of the functions that Triton compiles, elsewhere of every function."""
    source = (root / file).read_text()
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    compiled = [f for f in functions if any("triton" in ast.unparse(d) for d in f.decorator_list)]
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    raw, found = source.encode(), []
    for function in compiled or functions:
        for statement in function.body:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                continue  # the docstring
            for node in ast.walk(statement):
                for place, text in changes(node):
                    begin = starts[place.lineno - 1] + place.col_offset
                    end = starts[place.end_lineno - 1] + place.end_col_offset
                    before = raw[begin:end].decode()
                    mutated = (raw[:begin] + text.encode() + raw[end:]).decode()
                    found.append(Mutant(file, place.lineno, before, text, mutated))
    return list(dict.fromkeys(found))


def changes(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """(what is replaced, by which text) for each change of one node."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield node, _text(ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right))
    elif isinstance(node, ast.BoolOp):
        yield node, _text(ast.BoolOp(OPERATORS[type(node.op)](), node.values))
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
        yield node, _text(ast.Compare(node.left, [OPERATORS[type(node.ops[0])](), *node.ops[1:]], node.comparators))
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield node, _text(node.operand)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield node, repr(node.value + 1)
    elif isinstance(node, ast.IfExp):
        yield node, _text(ast.IfExp(node.test, node.orelse, node.body))
    elif isinstance(node, ast.If):
        yield node.test, f"not ({ast.unparse(node.test)})"
    elif isinstance(node, ast.AugAssign):
        yield node, ast.unparse(ast.Assign([node.target], node.value, lineno=node.lineno))  # type: ignore[misc]
    elif isinstance(node, ast.Call):
        yield from _call_changes(node)


def _call_changes(call: ast.Call) -> Iterator[tuple[ast.expr, str]]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in FUNCTIONS:
        yield call.func, ast.unparse(call.func).replace(name, FUNCTIONS[name])
    if name == "where":
        condition, yes, no = call.args
        yield call, _text(ast.Call(call.func, [condition, no, yes], call.keywords))
    for keyword in call.keywords:
        if keyword.arg == "mask":
            yield keyword.value, "None"
            if isinstance(keyword.value, ast.BinOp):
                yield keyword.value, _text(keyword.value.left)
                yield keyword.value, _text(keyword.value.right)


def _text(node: ast.expr) -> str:
    return f"({ast.unparse(node)})"


class Quick:
    """A plugin of pytest: among the first tests are some of each kind, and a loop without end ends the process."""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        random.Random(0).shuffle(items)

    def pytest_runtest_setup(self) -> None:
        signal.alarm(TEST_SECONDS)


class Runner:
    """A copy of the project, and forks of this process that run tests in it."""

    def __init__(self, folder: Path) -> None:
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]  # a new kernel's file as well
        files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in files.split():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
        self.folder = folder
        # By the source's hash: a mutant is never taken for the original, whose time and size it may have.
        compileall.compile_dir(folder, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
        os.environ |= {"TRITON_INTERPRET": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        sys.dont_write_bytecode = True
        import pytest  # noqa: F401 -- what every fork needs
        import torch  # noqa: F401
        import triton.language  # noqa: F401

        gc.freeze()  # forks need not search what they share for garbage

    def run(self, tests: tuple[str, ...]) -> tuple[str, float]:
        """("passed", "killed" or "hangs", seconds)"""
        begin = time.monotonic()
        child = os.fork()
        if child == 0:
            self._be_child(tests)
        _, status = os.waitpid(child, 0)
        hangs = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
        return "hangs" if hangs else "killed" if status else "passed", time.monotonic() - begin

    def _be_child(self, tests: tuple[str, ...]) -> None:
        code = 3
        try:
            import pytest

            with (self.folder / "log").open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                os.chdir(self.folder)
                for name in [name for name in sys.modules if name.split(".")[0] in ("triton_dirac", "tests", "bench")]:
                    del sys.modules[name]
                sys.path[:] = [str(self.folder), *(p for p in sys.path if p not in ("", str(ROOT)))]
                code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], plugins=[Quick()])
        finally:
            os._exit(int(code))

    def try_mutant(self, mutant: Mutant, tests: tuple[str, ...]) -> tuple[str, float]:
        target = self.folder / mutant.file
        original = target.read_text()
        target.write_text(mutant.source)
        try:
            return self.run(tests)
        finally:
            target.write_text(original)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("mutants", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every mutant: hours")
    parser.add_argument("--sample", type=int, default=8, help="mutants of each file (8)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    parser.add_argument("--files", nargs="+", metavar="NAME", default=[""], help="only files whose path holds a NAME")
    options = parser.parse_args(arguments)
    chosen = [file for file in TESTS if any(name in file for name in options.files)]
    if not chosen:
        parser.error(f"--files {' '.join(options.files)} names none of {', '.join(TESTS)}")
    counts: dict[str, list[int]] = {}
    sound: set[tuple[str, ...]] = set()  # tests that pass without a change
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(Path(folder))
        for file in chosen:
            every = mutants(file, Path(folder))
            size = len(every) if options.all else min(options.sample, len(every))
            tests = TESTS[file]
            if tests not in sound and runner.run(tests)[0] != "passed":
                print((Path(folder) / "log").read_text()[-3000:])
                parser.exit(2, f"{file}: the tests fail without a change\n")
            sound.add(tests)
            killed = same = 0
            for mutant in random.Random(f"{options.seed} {file}").sample(every, size):
                outcome, took = runner.try_mutant(mutant, tests)
                lives = outcome == "passed"
                why = mutant.same if lives else ""
                killed, same = killed + (not lives), same + bool(why)
                said = "same" if why else "LIVES" if lives else outcome
                print(f"{said:6} {took:5.1f} s  {mutant}{f': {why}' if why else ''}", flush=True)
            counts[file] = [len(every), size, killed, same]
    print("| file | mutants | tried | killed | the same |\n|---|---|---|---|---|")
    for file, numbers in counts.items():
        print(f"| {file} | {' | '.join(map(str, numbers))} |")
    tried, killed, same = (sum(numbers[i] for numbers in counts.values()) for i in (1, 2, 3))
    print(f"{killed} of {tried} killed: {killed / tried:.1%}; {same} compute the same")
    return int(killed < GOAL * (tried - same))


if __name__ == "__main__":
    sys.exit(main())
