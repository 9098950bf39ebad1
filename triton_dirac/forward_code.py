"""What a forward's code says that torch.fx's trace of it does not.

torch.fx runs a forward once, with stand-ins for its arguments. Most branches on a stand-in raise, and then there is no
trace. Those on identity or type do not (``residual is None``, ``isinstance(x, Tensor)``), nor those within a ``try``:
there the trace shows the stand-in's path, and a caller's tensors may take the other. So every function that ran is read
for branches that what it was given, or what it keeps from one call to the next, may decide. Reading is cautious: what
it cannot follow counts as such a branch.
"""

from __future__ import annotations

import ast
import builtins
import gc
import linecache
import os
import sys
import sysconfig
from collections.abc import Iterator, Set
from functools import lru_cache, partial
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.fx import Proxy

TORCH = os.path.dirname(torch.__file__) + os.sep
HERE = os.path.dirname(__file__) + os.sep
STDLIB = sysconfig.get_paths()["stdlib"] + os.sep
Ran = dict[CodeType, set[str]]  # what ran, and which of its names held stand-ins

# Ways to a module's tensors, or to all that it holds.
TENSORS = frozenset({"weight", "bias", "alpha", "beta", "delta", "effective_weight", "running_mean", "running_var"})
AROUND = frozenset(
    {"_parameters", "_buffers", "parameters", "named_parameters", "buffers", "named_buffers", "state_dict", "__dict__"}
)
LOOKUPS = frozenset({"vars", "getattr", "setattr", "get_parameter", "get_buffer", "functional_call", "attrgetter"})
# Questions that a stand-in answers as no tensor would.
SILENT = frozenset({"isinstance", "issubclass", "type", "hasattr", "getattr", "callable", "id"})
# Calls whose answer is their arguments' alone, or the same for all of a model's life in eager code.
STABLE = frozenset(dir(builtins)) - {"input", "open", "next"}
STABLE_LAST = frozenset({"is_scripting", "is_tracing", "is_compiling", "is_exporting"})
CHANGING = frozenset({"append", "extend", "insert", "add", "update", "pop", "popleft", "clear", "remove", "setdefault"})


class Watch:
    """Within it, notes the functions that run, but torch's, and the names in them that hold stand-ins.

    Nothing is collected meanwhile: callbacks of the garbage collector run anywhere, and are no part of a forward.
    """

    def __init__(self) -> None:
        self.ran: Ran = {}
        self._before: Any = None
        self._collects = False

    def __enter__(self) -> Watch:
        self._before, self._collects = sys.getprofile(), gc.isenabled()
        gc.disable()
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)
        if self._collects:
            gc.enable()

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and _is_users(frame):
            names = {name for name, value in frame.f_locals.items() if _holds_stand_in(value)}
            self.ran.setdefault(frame.f_code, set()).update(names)


def _is_users(frame: FrameType | None) -> bool:
    """Whether somebody's code runs here: not torch's, and Python's own only where somebody's called it."""
    if frame is None:
        return False
    name = frame.f_code.co_filename
    if name.startswith((TORCH, HERE, "<frozen")):
        return False
    tuples = name == "<string>" and frame.f_code.co_varnames[:1] == ("_cls",)  # a named tuple's __new__
    library = tuples or (name.startswith(STDLIB) and "-packages" not in name)
    return _is_users(frame.f_back) if library else True


def _holds_stand_in(value: Any, depth: int = 3) -> bool:
    if isinstance(value, Proxy):
        return True
    if depth and isinstance(value, (tuple, list)):
        return any(_holds_stand_in(entry, depth - 1) for entry in value)
    return bool(depth and isinstance(value, dict)) and any(_holds_stand_in(e, depth - 1) for e in value.values())


# --- branches ---------------------------------------------------------------------------------------------


def doubt_of(ran: Ran) -> str | None:
    """The first place where another path than the traced one may be taken, or tensors be read unseen; None: nowhere."""
    functions: list[tuple[CodeType, ast.AST, set[str]]] = []
    for code, given in ran.items():
        if code.co_name.startswith("<") and code.co_name != "<lambda>":
            continue  # a comprehension: part of what it stands in
        nodes = _nodes_of(code)
        if not nodes:
            return f"{code.co_filename}:{code.co_firstlineno}: {code.co_name} has no source to read"
        functions += [(code, node, given) for node in nodes]
    kept = {name for _, node, _ in functions for name in _kept_attributes(node)}
    for code, node, given in functions:
        place = _Reader(node, given, kept).first_doubt()
        if place is not None:
            line = getattr(place, "lineno", code.co_firstlineno)
            return f"{code.co_filename}:{line}: {ast.unparse(place).splitlines()[0][:80]}"
    return None


def _nodes_of(code: CodeType) -> list[ast.AST]:
    """The functions of that name that begin on the code's first line: several lambdas may."""
    by_line = _functions_in("".join(linecache.getlines(code.co_filename)))
    return [node for name, node in by_line.get(code.co_firstlineno, ()) if name == code.co_name]


@lru_cache(maxsize=256)
def _functions_in(source: str) -> dict[int, list[tuple[str, ast.AST]]]:
    by_line: dict[int, list[tuple[str, ast.AST]]] = {}
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return by_line
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            by_line.setdefault(line, []).append((node.name, node))
        elif isinstance(node, ast.Lambda):
            by_line.setdefault(node.lineno, []).append(("<lambda>", node))
    return by_line


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function's body, without those of functions within: these are read if they run."""
    body = function.body if isinstance(function.body, list) else [function.body]  # type: ignore[attr-defined]
    pending = list(body)
    while pending:
        node = pending.pop(0)
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            pending += ast.iter_child_nodes(node)


def _kept_attributes(function: ast.AST) -> set[str]:
    """Attributes that the function writes to: what one call leaves for the next."""
    kept = set()
    for node in _own(function):
        target = node
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
            target = node.func.value
        elif not isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del)):
            continue
        while isinstance(target, ast.Subscript):
            target = target.value
        if isinstance(target, ast.Attribute):
            kept.add(target.attr)
    return kept


class _Reader:
    """One function's source: which names what it was given has reached, and what they decide."""

    def __init__(self, function: ast.AST, given: set[str], kept: set[str]) -> None:
        self.nodes = list(_own(function))
        self.kept = kept
        self.reached = set(given)
        self.locals = {n.id for n in self.nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        parameters = ast.walk(function.args)  # type: ignore[attr-defined]
        self.locals |= {parameter.arg for parameter in parameters if isinstance(parameter, ast.arg)}
        self._follow()

    def first_doubt(self) -> ast.AST | None:
        return next((node for node in self.nodes if self._is_doubtful(node)), None)

    def _follow(self) -> None:
        """Let ``reached`` grow through assignments until nothing is added."""
        flows = [flow for node in self.nodes for flow in _flows(node)]
        before = -1
        while before != len(self.reached):
            before = len(self.reached)
            for target, value in flows:
                if self._depends(value):
                    names = (node for node in ast.walk(target) if isinstance(node, ast.Name) and node.id != "self")
                    self.reached |= {name.id for name in names if name.id in self.locals}

    def _depends(self, expression: ast.AST) -> bool:
        """Whether its value may be another in another call."""
        for node in ast.walk(expression):
            if isinstance(node, ast.Name) and node.id in self.reached:
                return True
            if isinstance(node, ast.Attribute) and node.attr in self.kept:
                return True
            if isinstance(node, ast.Call) and not self._is_stable(node.func):
                return True
        return False

    def _is_stable(self, function: ast.AST) -> bool:
        """Whether a call gives the same for the same arguments: a builtin, a method of the module or of a local."""
        root = function
        while isinstance(root, (ast.Attribute, ast.Subscript, ast.Call)):
            root = root.func if isinstance(root, ast.Call) else root.value
        if not isinstance(root, ast.Name) or root.id in self.locals:
            return True
        if isinstance(function, ast.Attribute):
            return function.attr in STABLE_LAST or root.id == "math"
        return root.id in STABLE

    def _is_doubtful(self, node: ast.AST) -> bool:
        decided: list[ast.AST] = []
        if isinstance(node, (ast.If, ast.IfExp, ast.While)):
            decided = [node.test]
        elif isinstance(node, ast.comprehension):
            decided = list(node.ifs)
        elif isinstance(node, ast.BoolOp):
            decided = list(node.values[:-1])
        elif isinstance(node, ast.Match):
            decided = [node.subject]
        elif isinstance(node, ast.Compare):
            by_identity = any(isinstance(op, (ast.Is, ast.IsNot, ast.In, ast.NotIn)) for op in node.ops)
            decided = [node] if by_identity else []
        elif isinstance(node, ast.Call):
            silent = isinstance(node.func, ast.Name) and node.func.id in SILENT
            decided = [*node.args] if silent else []
            if isinstance(node.func, ast.Name) and node.func.id in ("vars", "functional_call"):
                return True
        elif isinstance(node, ast.Attribute):
            decided = [node.value] if node.attr == "__class__" else []
            if node.attr in AROUND:
                return True
        elif isinstance(node, (ast.Try, ast.Global, ast.Nonlocal)):
            return not isinstance(node, ast.Try) or bool(node.handlers)
        return any(self._depends(expression) for expression in decided)


def _flows(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """(what is written, what it is made of), for every kind of assignment."""
    if isinstance(node, ast.Assign):
        yield from ((target, node.value) for target in node.targets)
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)) and node.value is not None:
        yield node.target, node.value
    elif isinstance(node, (ast.For, ast.comprehension)):
        yield node.target, node.iter
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        yield node.optional_vars, node.context_expr
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
        yield from ((node.func.value, argument) for argument in node.args)


# --- what code mentions, where nothing was traced -----------------------------------------------------------


READS = TENSORS | AROUND | LOOKUPS


def place_of(words: Set[str], function: Any, owner: nn.Module | None = None) -> str | None:
    """Where a function, or what it calls by name, mentions one of the words; None: nowhere.

    From names in the compiled code; torch's own is passed over. ``owner``: whose methods and attributes names mean.
    """
    pending, seen = list(_functions(function)), set()
    while pending:
        current = pending.pop()
        code = current.__code__
        if code in seen or code.co_filename.startswith((TORCH, HERE)):
            continue
        seen.add(code)
        names = _names(code)
        if found := names & words:
            return f"{code.co_filename}:{code.co_firstlineno}: {code.co_name} mentions {min(found)}"
        values = [_contents(cell) for cell in current.__closure__ or ()]
        values += [current.__globals__.get(name) for name in names]
        if owner is not None:
            values += [vars(owner).get(name, getattr(type(owner), name, None)) for name in names]
        pending += [function for value in values for function in _functions(value)]
    return None


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _names(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return {*code.co_names, *code.co_freevars}.union(*map(_names, inner))


def _functions(value: Any) -> Iterator[FunctionType]:
    """The Python functions that a call of ``value`` begins with, as far as that can be told."""
    value = getattr(value, "__func__", value)
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, FunctionType):
        yield value
        if hasattr(value, "__wrapped__"):
            yield from _functions(value.__wrapped__)
    elif isinstance(value, partial):
        yield from _functions(value.func)
    elif not isinstance(value, (type, nn.Module)) and callable(value):
        yield from (own for own in [type(value).__call__] if isinstance(own, FunctionType))
