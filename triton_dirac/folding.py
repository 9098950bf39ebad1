"""Folding for inference: Dirac convolutions and batch-norms become plain torch.nn convolutions.

Per convolution, in float64 and rounded once (s = 1 without a batch-norm):

    W' = s * What      b' = (b - running_mean) * s + bn.bias      s = bn.weight / sqrt(running_var + bn.eps)

Source: DiracNets, arXiv 1706.00388, and its export notebook.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.fx import Graph, Tracer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from triton_dirac.modules import _DiracConv

PLAIN_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy of a module or model in plain torch.nn: Dirac convolutions become ordinary, batch-norms go.

    Every Dirac convolution becomes a ``torch.nn`` one, wherever it is. A batch-norm with running statistics
    is folded into the convolution before it, Dirac or ordinary, if the convolution's output is its only input
    and goes nowhere else, at every call; an ``nn.Identity`` keeps its place and its neighbours' names.

    To see what follows what, every module's own forward is traced by torch.fx, the modules it calls opaque:
    layers in a ``Sequential`` and attributes called one after the other are recognised alike. A batch-norm
    stays, and computes what it did, where

    - it and the convolution are called by different modules,
    - the forward that calls them cannot be traced (Python that depends on data). Modules inside of that one
      are looked at all the same, and a ``Sequential`` there is taken to be called as a whole,
    - a forward hook looks at what lies between them, or the batch-norm's or convolution's class is another.

    Args:
        model: in evaluation mode; not changed. Dtypes, devices and memory formats are kept.

    Raises:
        RuntimeError: a module is in training mode, where batch-norm depends on the batch.
        TypeError, ValueError: a Dirac convolution overrides forward or is parametrised.
    """
    for name, module in model.named_modules():
        if module.training:
            raise RuntimeError(
                f"fold needs evaluation mode: call model.eval() first ({name or type(module).__name__} is in "
                "training mode)"
            )
    norms = _norms_after_convs(model)
    folded = copy.deepcopy(model)
    for name, module in list(folded.named_modules()):
        norm = folded.get_submodule(norms[name]) if name in norms else None
        if norm is not None or isinstance(module, _DiracConv):
            _fold_conv(module, norm)  # type: ignore[arg-type]
    return folded


def _fold_conv(conv: _ConvNd, norm: _BatchNorm | None) -> None:
    """Make ``conv`` plain and ``norm`` an identity, both in place: whoever else holds them sees the same."""
    dtype, trained = conv.weight.dtype, conv.weight.requires_grad
    if isinstance(conv, _DiracConv):
        weight = conv._float64_weight()
        conv.reparameterize()
    else:
        weight = conv.weight.double()
    if norm is not None:
        mean, variance = norm.running_mean.double(), norm.running_var.double()  # type: ignore[union-attr]
        scale = (variance + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.double()
        bias = (-mean if conv.bias is None else conv.bias.double() - mean) * scale
        bias = bias if norm.bias is None else bias + norm.bias.double()
        weight = weight * scale.view((-1,) + (1,) * (weight.dim() - 1))
        conv.bias = nn.Parameter(bias.to(dtype), requires_grad=trained)
        norm.__dict__ = nn.Identity().eval().__dict__
        norm.__class__ = nn.Identity  # type: ignore[assignment]
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=trained)


# --- which batch-norm follows which convolution -----------------------------------------------------------


class _ShallowTracer(Tracer):
    """Traces one module's own forward; the modules it calls stay single nodes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _trace(module: nn.Module) -> Graph | None:
    try:
        return _ShallowTracer().trace(module)
    except Exception:  # anything at all may happen when somebody's forward meets a proxy
        return None


def _norms_after_convs(model: nn.Module) -> dict[str, str]:
    """Names of the convolutions that one batch-norm directly follows, and of that batch-norm."""
    model = copy.deepcopy(model)  # tracing runs forward, which may leave something behind
    names = {module: name for name, module in model.named_modules()}
    followers: dict[nn.Module, set[nn.Module | None]] = {}
    sources: dict[nn.Module, set[nn.Module | None]] = {}
    for owner in names:
        children = list(owner.children())
        if not children or isinstance(owner, (nn.ModuleList, nn.ModuleDict)):
            continue
        graph = _trace(owner)
        if graph is None:
            for child in children:
                followers.setdefault(child, set()).add(None)
            continue
        called = {node: owner.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
        for node, module in called.items():
            if _is_conv(module):
                user = next(iter(node.users), None)
                only = user is not None and len(node.users) == 1 and user.args == (node,)
                followers.setdefault(module, set()).add(called.get(user) if only else None)  # type: ignore[arg-type]
            elif _is_norm(module):
                source = node.args[0] if node.args else None
                sources.setdefault(module, set()).add(called.get(source))  # type: ignore[arg-type]
    pairs = {}
    for conv, found in followers.items():
        norm = next(iter(found))
        if len(found) == 1 and norm is not None and sources.get(norm) == {conv}:
            pairs[names[conv]] = names[norm]
    return pairs


def _is_conv(module: nn.Module) -> bool:
    return (type(module) in PLAIN_CONVS or isinstance(module, _DiracConv)) and not module._forward_hooks


def _is_norm(module: nn.Module) -> bool:
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module) in BATCH_NORMS and module.running_mean is not None and not hooked
