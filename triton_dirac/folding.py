"""Folding for inference: Dirac convolutions and batch-norms become plain torch.nn convolutions.

Per convolution, in float64 and rounded once (s = 1 without a batch-norm):

    W' = s * What      b' = (b - running_mean) * s + bn.bias      s = bn.weight / sqrt(running_var + bn.eps)

Source: DiracNets, arXiv 1706.00388, and its export notebook.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from triton_dirac.fold_evidence import Evidence, Pairs, changed_forwards, copy_of, gather, is_norm
from triton_dirac.fold_example import ROUGHLY, Check, Fold, agreeing, check_of, ordinary, pairs_seen, plainly
from triton_dirac.fold_separate import can_separate, make_separate, unit_filters
from triton_dirac.module_checks import check_choice
from triton_dirac.modules import _DiracConv

NOTHING: Any = object()
IDENTITIES = ("folded", "separate")


@plainly()
def fold(model: nn.Module, *, example: Any = NOTHING, norms: bool = True, identity: str = "folded") -> nn.Module:
    """A copy of a module or model in plain torch.nn: Dirac convolutions become ordinary, batch-norms go.

    >>> folded = fold(model.eval(), example=images)

    Every Dirac convolution becomes a ``torch.nn`` one, wherever it is. A batch-norm with running statistics
    is folded into the convolution before it, Dirac or ordinary, if the convolution's output is its only input
    and goes nowhere else, at every call; an ``nn.Identity`` keeps its place and its neighbours' names.

    With an ``example``, the model's arguments as its callers give them, fold sees what follows what while the model
    runs, and compares: the copy's output on the example is the model's, in float64, or what differs is not folded,
    and if that is a Dirac layer, refused. What other calls do that this one does not, it does not show.

    Without one only what can be proved is folded. Every module's own forward is traced by torch.fx and read: what
    depends on types, on ``is None``, on data or on what an earlier call left behind proves nothing, and
    batch-norms stay in such forwards, which a warning names. They stay, too, where a forward or a hook reads the
    weights or statistics, where a hook looks at what lies between, and where conv and norm are called by two modules.

    Args:
        model: in evaluation mode; not changed. Dtypes, devices and memory formats are kept.
        example: a tuple is taken for positional arguments, a dictionary for those by name, anything else for the
            only argument. Random images do, zeros may hide a difference.
        norms: False leaves all batch-norms where they are, in any mode: for another's fuser to find (timm's
            ``reparameterize_model``, ``torch.nn.utils.fusion``), which would take a Dirac layer's W for its filters.

        identity: "separate" keeps alpha * s * x out of the filters, of Dirac layers with odd windows padded by their
            half and without groups: such a layer becomes a ``ConvPlusIdentity``, a convolution and a scale of each
            channel, whose filters can be rounded to int8 without losing what lies beside the identity.

    Raises:
        RuntimeError: a module is in training mode, where batch-norm depends on the batch; the model cannot be copied.
        TypeError, ValueError: a Dirac convolution overrides forward, is parametrised or has tensors made by hooks
            (pruning, the older weight_norm); something else reads its tensors, which folding would change; or the
            example's output is not the same twice. The layer is named.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_choice("identity", identity, IDENTITIES)
    _check_mode(model, norms)
    folding = partial(_fold, separate=identity == "separate")
    layers = [name for name, module in model.named_modules() if isinstance(module, _DiracConv)]
    _check_layers(model, layers)
    evidence = gather(copy_of(model))
    proved = evidence.proved if norms else {}
    if example is NOTHING:
        _refuse_what_is_read(evidence, layers)
        return _fold_proved(model, proved, layers, evidence, folding, warn=norms)
    example = ordinary(example)
    seen = pairs_seen(model, example) if norms else {}
    others = {conv: norm for conv, norm in seen.items() if conv not in proved and evidence.allows(conv, norm)}
    return _fold_checked(model, proved, others, layers, check_of(model, example, folding), example)


def _check_mode(model: nn.Module, norms: bool) -> None:
    for name, module in model.named_modules():
        if norms and module.training:
            raise RuntimeError(
                f"fold needs evaluation mode: call model.eval() first ({name or type(module).__name__} is in "
                "training mode)"
            )


def _check_layers(model: nn.Module, layers: Sequence[str]) -> None:
    for name in layers:
        try:
            model.get_submodule(name)._check_foldable()  # type: ignore[operator]
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}" if name else str(error)) from None


# --- with proof, or by example ----------------------------------------------------------------------------


def _refuse_what_is_read(evidence: Evidence, layers: Sequence[str]) -> None:
    for name in layers:
        if place := evidence.reads.get(name):
            raise ValueError(
                f"{name or 'the model'} cannot be folded: {place}, or may, and they would not be a Dirac layer's any "
                "more. fold(model, example=x) looks at what comes of it"
            )


def _fold_proved(
    model: nn.Module, pairs: Pairs, layers: Sequence[str], evidence: Evidence, folding: Fold, *, warn: bool
) -> nn.Module:
    folded = folding(copy_of(model), pairs, layers)
    changed = changed_forwards(copy_of(folded), evidence, [*layers, *pairs, *pairs.values()])
    if changed:  # forwards that ask what class a layer is, or a batch-norm for its eps: leave them their batch-norms
        pairs = {conv: norm for conv, norm in pairs.items() if not any(_is_in(conv, owner) for owner in changed)}
        folded = folding(copy_of(model), pairs, layers)
        for owner in changed_forwards(copy_of(folded), evidence, [*layers, *pairs, *pairs.values()]):
            raise ValueError(
                f"the forward of {owner or 'the model'} ({type(model.get_submodule(owner)).__name__}) asks its Dirac "
                "layers for what they are, and computes another thing once they are folded"
            )
    if warn:
        _warn_of_doubts(folded, evidence)
    return folded


def _is_in(name: str, owner: str) -> bool:
    return not owner or name.startswith(f"{owner}.")


def _warn_of_doubts(folded: nn.Module, evidence: Evidence) -> None:
    """One warning for all batch-norms that may have stayed for want of a proof."""
    left = [name for name, module in folded.named_modules() if is_norm(module)]
    found = [(name, owner) for owner in evidence.doubts for name in left if _is_in(name, owner)]
    if found:
        name, owner = found[0]
        warnings.warn(
            f"fold cannot prove what follows what in all of this model, and left batch-norms in it, {name} among them: "
            f"{evidence.doubts[owner]}. fold(model, example=x) looks at what happens on x, and checks the output",
            stacklevel=5,
        )


def _fold_checked(
    model: nn.Module, proved: Pairs, others: Pairs, layers: Sequence[str], check: Check, example: Any
) -> nn.Module:
    pairs = proved | others
    if not check.agrees(pairs, layers):
        _refuse_what_disagrees(check, layers)
        pairs = agreeing(check, layers, {}, pairs)
    if check.dtype is not None and not Check(model, example, check.fold, None, ROUGHLY).agrees(pairs, layers):
        raise ValueError(
            "the folded model agrees with this one on the example in float64, and in its own dtype it does not: its "
            "forward depends on the dtype, or its values exceed it"
        )
    return check.fold(copy_of(model), pairs, layers)


def _refuse_what_disagrees(check: Check, layers: Sequence[str]) -> None:
    """Errors for what no batch-norm is to blame for."""
    if not check.is_steady():
        raise ValueError(
            "example must give the same output twice, and this model's differs from one call to the next: what "
            "folding does to it cannot be told"
        )
    if not check.agrees({}, layers):
        wrong = [name for name in layers if not check.agrees({}, [name])] or list(layers)
        raise ValueError(
            f"{wrong[0] or 'the model'} cannot be folded: on the example the model's output is another then. Something "
            "reads the layer's tensors, or asks what it is"
        )


# --- folding ----------------------------------------------------------------------------------------------


def _fold(model: nn.Module, pairs: Pairs, layers: Sequence[str], *, separate: bool) -> nn.Module:
    """Fold Dirac layers and pairs in place; a layer that is the model itself as well."""
    for name in {**dict.fromkeys(layers), **pairs}:
        conv = model.get_submodule(name)
        norm = model.get_submodule(pairs[name]) if name in pairs else None
        _fold_conv(conv, norm, separate and can_separate(conv))  # type: ignore[arg-type]
    return model


def _fold_conv(conv: _ConvNd, norm: _BatchNorm | None, separate: bool) -> None:
    """Make ``conv`` plain and ``norm`` an identity, both in place: whoever else holds them sees the same."""
    dtype, trained = conv.weight.dtype, conv.weight.requires_grad
    term = None
    if isinstance(conv, _DiracConv):
        weight = unit_filters(conv) if separate else conv._float64_weight()
        term = conv.alpha.detach().double().expand(conv.out_channels) if separate else None
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
        term = None if term is None else term * scale
        conv.bias = nn.Parameter(bias.to(dtype), requires_grad=trained)
        norm.__dict__ = nn.Identity().eval().__dict__
        norm.__class__ = nn.Identity  # type: ignore[assignment]
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=trained)
    if term is not None:
        make_separate(conv, term)
