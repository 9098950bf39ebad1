"""What is known about a model before it is folded: which batch-norm follows which convolution, and who reads them.

Every module's own forward is traced by torch.fx, the modules it calls opaque. A trace proves something only where no
caller can take another path than it did (``forward_code``); the rest is evidence against, never for.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Set
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Tracer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from triton_dirac.forward_code import LOOKUPS, READS, Watch, doubt_of, place_of
from triton_dirac.modules import _DiracConv

PLAIN_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
Neighbours = dict[nn.Module, set[nn.Module | None]]  # None: something else, or what is not known
Pairs = dict[str, str]  # names of a convolution and of the batch-norm after it
# Ways from a module to those in it, other than their names.
CALLS = frozenset({"children", "modules", "named_children", "named_modules", "get_submodule", "_modules", *LOOKUPS})


class Forward(NamedTuple):
    """A module's own forward: its traces, and why they prove nothing, if so."""

    graphs: list[Graph]
    doubt: str | None
    strangers: list[nn.Module]  # called, and not among its submodules


class Evidence(NamedTuple):
    """Of what is here a name, ``model.named_modules`` has it."""

    proved: Pairs
    followers: dict[str, set[str | None]]  # as any trace saw them, those that prove nothing too
    sources: dict[str, set[str | None]]
    doubts: dict[str, str]  # of forwards that prove nothing: why
    reads: dict[str, str]  # of modules whose tensors others read, or may: where
    traces: dict[str, str]  # of forwards that prove something, to be compared with those of a folded model

    def allows(self, conv: str, norm: str) -> bool:
        """Whether no trace saw the two otherwise than as a pair."""
        return self.followers.get(conv, {norm}) == {norm} and self.sources.get(norm, {conv}) == {conv}


def pairs_of(followers: Neighbours, sources: Neighbours) -> dict[nn.Module, nn.Module]:
    """Convolutions of which one batch-norm is all that follows, and which are all that it follows."""
    pairs = {}
    for conv, found in followers.items():
        norm = next(iter(found))
        if len(found) == 1 and norm is not None and sources.get(norm) == {conv}:
            pairs[conv] = norm
    return pairs


def gather(model: nn.Module) -> Evidence:
    """The evidence that traces give. They run forwards, which may leave something behind: give it a copy."""
    names = {module: name for name, module in model.named_modules()}
    forwards = {module: _forward_of(module) for module in names if _has_own_forward(module)}
    certain: tuple[Neighbours, Neighbours] = ({}, {})
    seen: tuple[Neighbours, Neighbours] = ({}, {})
    reads: dict[nn.Module, str] = {}
    for owner, forward in forwards.items():
        for graph in forward.graphs:
            _note_calls(owner, graph, *seen)
            _note_calls(owner, graph, *certain)
            reads.update(_readers(owner, graph, names))
        inside = list(_reachable(owner)) if forward.doubt else []
        for module in (*inside, *forward.strangers):  # anything may be done with them
            for neighbours in certain:
                neighbours.setdefault(module, set()).add(None)
        if forward.doubt and (place := place_of(READS, type(owner).forward, owner)):
            reads.update(dict.fromkeys(inside, place))
    calls = CALLS | {part for name in names.values() for part in name.split(".")}
    for module in names:
        if place := hook_mentioning(READS, module):
            reads.update(dict.fromkeys(module.modules(), place))
        if next(module.children(), None) is not None and hook_mentioning(calls, module):
            for inner in module.modules():
                for neighbours in certain:
                    neighbours.setdefault(inner, set()).add(None)
    of_reads = {names[module]: place for module, place in reads.items() if module in names}
    proved = name_pairs(pairs_of(*certain), names)
    return Evidence(
        {conv: norm for conv, norm in proved.items() if conv not in of_reads and norm not in of_reads},
        _name_neighbours(seen[0], names),
        _name_neighbours(seen[1], names),
        {names[owner]: forward.doubt for owner, forward in forwards.items() if forward.doubt},
        of_reads,
        {names[owner]: _text(forward) for owner, forward in forwards.items() if not forward.doubt},
    )


def name_pairs(pairs: dict[nn.Module, nn.Module], names: dict[nn.Module, str]) -> Pairs:
    return {names[conv]: names[norm] for conv, norm in pairs.items() if conv in names and norm in names}


def _name_neighbours(neighbours: Neighbours, names: dict[nn.Module, str]) -> dict[str, set[str | None]]:
    return {
        names[module]: {None if other is None else names.get(other) for other in found}
        for module, found in neighbours.items()
        if module in names
    }


def changed_forwards(folded: nn.Module, evidence: Evidence, changed: Iterable[str]) -> list[str]:
    """Names of the forwards that do another thing since the modules of these names ``changed``: they ask what class
    their layers are, or what is in them. ``folded`` is a copy, as in ``gather``."""
    parents = {"", *(name.rsplit(".", n)[0] for name in changed for n in range(1, name.count(".") + 1))}
    owners = {name: folded.get_submodule(name) for name in evidence.traces if name in parents}
    return [name for name, owner in owners.items() if _text(_forward_of(owner)) != evidence.traces[name]]


def _text(forward: Forward) -> str:
    nodes = [node for graph in forward.graphs for node in graph.nodes]
    return "\n".join(f"{node.op} {node.target} {node.args} {node.kwargs}" for node in nodes)


# --- forwards ---------------------------------------------------------------------------------------------


class _ShallowTracer(Tracer):
    """Traces one module's own forward; the modules it calls stay single nodes, what it reads of them others."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.strangers: list[nn.Module] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def path_of_module(self, mod: nn.Module) -> str:
        try:
            return super().path_of_module(mod)
        except NameError:
            self.strangers.append(mod)
            raise


def _has_own_forward(module: nn.Module) -> bool:
    """Whether a module's forward may do something with layers that are folded, other than to call a module that it
    wraps. It has such layers in it, or holds them: what its code knows from elsewhere is no part of a copied model."""
    known = (nn.ModuleList, nn.ModuleDict, _DiracConv, *PLAIN_CONVS)
    if isinstance(module, known) or parametrize.is_parametrized(module):
        return False
    if type(module).__module__.startswith(("torch._dynamo.", "torch.nn.parallel.")):  # torch.compile's, DataParallel
        return False
    return any(isinstance(inner, _DiracConv) or is_conv(inner) or is_norm(inner) for inner in _reachable(module))


def _forward_of(module: nn.Module) -> Forward:
    name = type(module).__name__
    own_call = type(module).__call__ is not nn.Module.__call__ and not isinstance(module, GraphModule)
    if "forward" in vars(module) or own_call:
        return Forward([], f"{name} is not called as its class's forward says", [])
    tracer, watch = _ShallowTracer(), Watch()
    try:
        with watch:
            graphs = [tracer.trace(module)]
    except Exception as error:  # anything at all may happen when somebody's forward meets a proxy
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        return Forward(_with_defaults(module), f"{name}.forward cannot be traced ({reason})", tracer.strangers)
    doubt = doubt_of(watch.ran)
    if doubt is None and any(str(node.target).startswith("_tensor_constant") for node in graphs[0].nodes):
        doubt = f"{name}.forward computes with tensors that a trace does not follow"
    return Forward(graphs + _with_defaults(module) if doubt else graphs, doubt, tracer.strangers)


def _with_defaults(module: nn.Module) -> list[Graph]:
    """The forward traced as it runs when nothing is passed that may be left out, and when one such thing is."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty and p.kind == p.POSITIONAL_OR_KEYWORD}
    if not defaults:
        return []
    options = [defaults, *(defaults | {name: not value} for name, value in defaults.items() if isinstance(value, bool))]
    options += [{k: v for k, v in defaults.items() if k != name} for name, value in defaults.items() if value is None]
    return [graph for values in options for graph in _traced(module, values)]


def _traced(module: nn.Module, values: dict[str, Any]) -> list[Graph]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a default cannot be asserted
        try:
            return [_ShallowTracer().trace(module, values)]
        except Exception:
            return []


def _reachable(module: nn.Module) -> Iterator[nn.Module]:
    """A module's submodules, and those that it holds in containers, objects, methods and partial functions, out of
    torch's sight: all that is copied with it."""
    pending: list[Any] = [module]
    seen: dict[int, Any] = {}  # which keeps what is made on the way, so that no address comes twice
    while pending:
        value = pending.pop()
        if id(value) in seen or isinstance(value, (type, ModuleType, FunctionType, Tensor, str, int, float)):
            continue
        seen[id(value)] = value
        if isinstance(value, nn.Module):
            if value is not module:
                yield value
            pending += value.children()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            pending += value
        elif isinstance(value, MethodType):
            pending.append(value.__self__)
        elif isinstance(value, partial):
            pending += [value.func, value.args, value.keywords]
        elif hasattr(value, "__dict__"):
            pending.append(vars(value))


def _note_calls(owner: nn.Module, graph: Graph, followers: Neighbours, sources: Neighbours) -> None:
    called = {node: owner.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    for node, module in called.items():
        if is_conv(module):
            user = next(iter(node.users), None)
            only = user is not None and len(node.users) == 1 and user.args == (node,) and not user.kwargs
            followers.setdefault(module, set()).add(called.get(user) if only else None)  # type: ignore[arg-type]
        elif is_norm(module):
            source = node.args[0] if node.args else None
            sources.setdefault(module, set()).add(called.get(source))  # type: ignore[arg-type]


def _readers(owner: nn.Module, graph: Graph, names: dict[nn.Module, str]) -> Iterator[tuple[nn.Module, str]]:
    """Modules of which the forward reads a tensor: any that holds it, since shared ones have one name in a trace."""
    read = set()
    for node in graph.nodes:
        if node.op == "get_attr" and not str(node.target).startswith("_tensor_constant"):
            tensor: Any = owner
            for part in str(node.target).split("."):
                tensor = getattr(tensor, part, None)
            read.add(id(tensor))
    if not read:
        return
    place = f"the forward of {names[owner] or 'the model'} ({type(owner).__name__}) reads its tensors"
    for module in names:
        own = (*module._parameters.values(), *module._buffers.values())
        if module is not owner and any(id(tensor) in read for tensor in own if tensor is not None):
            yield module, place


# --- layers that may be folded ----------------------------------------------------------------------------


def is_conv(module: nn.Module) -> bool:
    if not (type(module) in PLAIN_CONVS or isinstance(module, _DiracConv)) or module._forward_hooks:
        return False
    return _is_as_its_class(module) and isinstance(module, _ConvNd) and module.weight.is_floating_point()


def is_norm(module: nn.Module) -> bool:
    if type(module) not in BATCH_NORMS or not isinstance(module, _BatchNorm) or module.running_mean is None:
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and _is_as_its_class(module)


def _is_as_its_class(module: nn.Module) -> bool:
    """Whether nothing but its class makes a layer's function: no method replaced, no tensor made by a hook."""
    replaced = {"forward", "_conv_forward"} & vars(module).keys()
    held = all(name in module._parameters for name in ("weight", "bias"))
    return not replaced and held and hook_mentioning(READS, module) is None


def hook_mentioning(words: Set[str], module: nn.Module) -> str | None:
    """Where a hook of the module's mentions one of the words."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for hook in hooks.values():
            if place := place_of(words, hook):
                return f"a hook: {place}"
    return None


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model that holds results of a graph, which torch refuses to copy: weights that hooks make
    anew at each call, outputs kept from the last. The copy has their values.

    RuntimeError for what cannot be copied: a model that FSDP has sharded, one that holds a lock or a module of Python.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            held = value.values() if isinstance(value, dict) else value
            held = held if isinstance(value, (dict, list, tuple)) else [value]
            results = (entry for entry in held if isinstance(entry, Tensor) and not entry.is_leaf)
            memo.update((id(result), result.detach().clone()) for result in results)
    try:
        return copy.deepcopy(model, memo)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model's own __deepcopy__, __reduce__ or __getstate__ raises
        raise RuntimeError(
            f"fold folds a copy of the model, and this {type(model).__name__} cannot be copied ({error}). If it "
            "is wrapped for training, as by FSDP, load the full state dict into the model alone, and fold that"
        ) from error
