"""The house as README.md's "Architecture" tells it: which way imports point, and how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("triton_dirac", "bench", "reports")
MOST_LINES, MEDIAN_LINES = 400, 120
pytestmark = pytest.mark.cpu

# Who imports whom inside the package, the topmost first: each may import what stands below it, and never what stands
# above. Rooms of one line do not know each other.
STOREYS = (
    ("train", "tuning"),
    ("models",),
    ("modules",),
    ("functional",),
    ("dirac_op",),
    ("conv", "weight_prep"),
    ("runtime",),
)


def files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file): file for file in files(*PACKAGES)}


def imported(tree: ast.AST, everywhere: bool) -> Iterator[str]:
    """The project's modules that a file imports; ``everywhere``: inside functions as well, which is no circle."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in below if name in MODULES]
            yield from modules
            if len(modules) < len(below):
                yield node.module
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imported(node, everywhere)


@cache
def imports(everywhere: bool) -> dict[str, set[str]]:
    return {
        module: set(imported(ast.parse(file.read_text(encoding="utf-8")), everywhere)) - {module}
        for module, file in MODULES.items()
    }


def wrong_arrows(edges: dict[str, set[str]]) -> list[str]:
    """Imports that go up a storey, or from a room to the one beside it."""
    storey = {f"triton_dirac.{room}": level for level, rooms in enumerate(STOREYS) for room in rooms}

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    return [
        f"{module} imports {other}"
        for module, others in edges.items()
        for other in sorted(others)
        if room(module) in storey and room(other) in storey and room(module) != room(other)
        if storey[room(other)] <= storey[room(module)]
    ]


def circle(edges: dict[str, set[str]]) -> list[str]:
    """What is left when modules that import none of the rest are taken away, again and again."""
    rest = dict(edges)
    while free := [module for module, others in rest.items() if not others & rest.keys()]:
        for module in free:
            del rest[module]
    return sorted(rest)


def test_imports_inside_the_package_point_down():
    assert not wrong_arrows(imports(everywhere=True))


def test_imports_have_no_circle():
    assert not circle(imports(everywhere=False))


def test_the_package_imports_neither_bench_nor_reports_and_bench_no_reports():
    edges = imports(everywhere=True)
    for module, others in edges.items():
        top = module.partition(".")[0]
        above = PACKAGES[PACKAGES.index(top) + 1 :]
        if top != "reports":
            assert not [other for other in others if other.startswith(above)], module


def test_the_reference_stands_alone():
    assert not imports(everywhere=True)["triton_dirac.reference"]


def test_an_arrow_upwards_and_a_circle_are_found():
    edges = {"triton_dirac.conv.op": {"triton_dirac.weight_prep"}, "triton_dirac.runtime.a": {"triton_dirac.conv.op"}}
    assert len(wrong_arrows(edges)) == 2
    assert circle({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}) == ["a", "b", "c"]


def test_no_named_tuple_is_generic():
    """Python 3.10 cannot import it, and neither mypy nor ruff says so."""
    for module, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and len(node.bases) > 1:
                assert "NamedTuple" not in map(ast.unparse, node.bases), f"{module}.{node.name}"


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_no_file_is_too_long_to_be_read_at_once(folder):
    lines = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in files(folder)}
    assert not {file: count for file, count in lines.items() if count > MOST_LINES}
    if folder in PACKAGES:
        assert median(lines.values()) < MEDIAN_LINES
