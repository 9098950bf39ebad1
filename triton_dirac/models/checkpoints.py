"""Checkpoints of the official DiracNets code: read, loaded into the nets of this package, and written for it.

The official training code keeps a net as one flat dictionary, the released inference nets as a state dict
with batch-norm folded in:

    official                                    here
    conv, bn.*                                  stem.conv.weight, stem.bn.*
    groupG.blockB.{conv, alpha, beta}           groups.G.blockB.conv.{weight, alpha, beta}
    groupG.blockB.bn.*                          groups.G.blockB.bn.*
    fc.{weight, bias}                           the same
    eyeK_C_3_3                                  none: identities are not stored
    features.conv.{weight, bias}                stem.conv.{weight, bias}
    features.groupG.blockB.conv.{weight, bias}  groups.G.blockB.conv.{weight, bias}

Source: szagoruyko/diracnets, diracnet.py and train.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from triton_dirac.models.diracnet import DiracNet
from triton_dirac.models.version1 import DiracNetV1
from triton_dirac.modules import DiracConv2d
from triton_dirac.runtime.files import read_tensors

# The first that matches; those with a bias, or with "features.", are of folded nets.
_RULES = [
    (r"(?:features\.)?conv\.(weight|bias)", r"stem.conv.\1"),
    (r"(?:features\.)?group(\d+)\.(block\d+)\.conv\.(weight|bias)", r"groups.\1.\2.conv.\3"),
    (r"conv", "stem.conv.weight"),
    (r"bn\.(\w+)", r"stem.bn.\1"),
    (r"group(\d+)\.(block\d+)\.conv", r"groups.\1.\2.conv.weight"),
    (r"group(\d+)\.(block\d+)\.(alpha|beta)", r"groups.\1.\2.conv.\3"),
    (r"group(\d+)\.(block\d+)\.bn\.(\w+)", r"groups.\1.\2.bn.\3"),
    (r"fc\.(weight|bias)", r"fc.\1"),
]
_TO_FOLDED = [
    (r"stem\.conv\.(weight|bias)", r"features.conv.\1"),
    (r"groups\.(\d+)\.(block\d+)\.conv\.(weight|bias)", r"features.group\1.\2.conv.\3"),
    (r"fc\.(weight|bias)", r"fc.\1"),
]
_TO_FLAT = [
    (r"stem\.conv\.weight", "conv"),
    (r"stem\.bn\.(\w+)", r"bn.\1"),
    (r"groups\.(\d+)\.(block\d+)\.conv\.weight", r"group\1.\2.conv"),
    (r"groups\.(\d+)\.(block\d+)\.conv\.(alpha|beta)", r"group\1.\2.\3"),
    (r"groups\.(\d+)\.(block\d+)\.bn\.(\w+)", r"group\1.\2.bn.\3"),
    (r"fc\.(weight|bias)", r"fc.\1"),
]
SHOWN = 3  # keys of a kind in a message


def read_official(path: str | os.PathLike[str]) -> dict[str, Any]:
    """An official checkpoint from its file, onto the CPU; nothing in the file is executed.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged, truncated, or holds anything but tensors, numbers, text and containers of them.
    """
    try:
        checkpoint = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"path must be a whole checkpoint file, got {os.fspath(path)!r}: {error}") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"path must hold a dictionary, got a {type(checkpoint).__name__} in {os.fspath(path)!r}")
    return dict(checkpoint)


def load_official(model: DiracNet | DiracNetV1, checkpoint: Mapping[str, Any]) -> None:
    """Load an official checkpoint into a DiracNet of the same depth and width: all of it or nothing.

    >>> from triton_dirac import fold
    >>> from triton_dirac.models import diracnet18, diracnet34
    >>> net = diracnet34()
    >>> load_official(net, read_official("diracnet34-v2_checkpoint.pth"))  # doctest: +SKIP
    >>> inference = fold(diracnet18().eval())
    >>> load_official(inference, read_official("diracnet18v2folded-a2174e15.pth"))  # doctest: +SKIP

    Args:
        model: from ``diracnet``, ``diracnet18`` or ``diracnet34``, or of version 1; folded (``triton_dirac.fold``)
            for a folded checkpoint. Its dtype, device and memory format stay.
        checkpoint: {params, stats, optimizer, epoch}, {params with the running statistics, epoch,
            optimizer}, the flat parameters themselves, or a flat folded state dict. alpha and beta may be
            scalars.

    Raises:
        TypeError: model is not a DiracNet or checkpoint no mapping.
        ValueError: the checkpoint's tensors are not the net's: missing, unexpected and misshapen ones are named. Or
            one of the two has no data: a net made under ``torch.device("meta")`` gets memory from
            ``net.to_empty(device=...)`` first.
    """
    if not isinstance(model, (DiracNet, DiracNetV1)):
        raise TypeError(f"model must be a DiracNet, got {type(model).__name__}")
    if not isinstance(checkpoint, Mapping):
        raise TypeError(f"checkpoint must be a dictionary, as torch.load gives it, got {type(checkpoint).__name__}")
    tensors = _translate(checkpoint)
    own = _tensors_of(model)
    _check_same_kind("stem.bn.weight" in tensors, "stem.bn.weight" in own)
    _check_fit(tensors, own)
    _check_data("model", own, "model.to_empty(device=...) gives it memory")
    _check_data("the checkpoint", tensors, "load it with another map_location")
    model.load_state_dict(tensors, strict=False)  # batch-norm's num_batches_tracked is newer than they are


def to_official(model: DiracNet | DiracNetV1) -> dict[str, Tensor]:
    """The net's tensors under the official names: the flat parameters with running statistics and identities, as
    ``define_diracnet`` makes them, or of a folded net (``triton_dirac.fold``) the released nets' state dict.

    The tensors are the net's own, detached. ``load_official`` takes the result back.

    >>> from triton_dirac.models import diracnet
    >>> sorted(to_official(diracnet(10, 1)))[:3]
    ['bn.bias', 'bn.running_mean', 'bn.running_var']
    """
    if not isinstance(model, (DiracNet, DiracNetV1)):
        raise TypeError(f"model must be a DiracNet, got {type(model).__name__}")
    own = _tensors_of(model)
    rules = _TO_FLAT if "stem.bn.weight" in own else _TO_FOLDED
    official = {}
    for name, tensor in own.items():
        found = _renamed(name, rules)
        if found is None:
            raise ValueError(f"model must have the layers of a DiracNet, got {name} beside them")
        official[found] = tensor.detach()
    for module in model.modules():
        if isinstance(module, DiracConv2d):
            official[identity_name(module.weight)] = module.delta
    return official


def identity_name(filters: Tensor) -> str:
    """The official key of the identity filter bank of that shape."""
    return "eye" + "_".join(map(str, filters.shape))


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    named = chain(model.named_parameters(), model.named_buffers())
    return {name: tensor for name, tensor in named if not name.endswith("num_batches_tracked")}


def _renamed(key: str, rules: Iterable[tuple[str, str]]) -> str | None:
    matches = ((re.fullmatch(pattern, key), name) for pattern, name in rules)
    return next((match.expand(name) for match, name in matches if match), None)


def _translate(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The checkpoint's tensors under this package's names."""
    layered = isinstance(checkpoint.get("params"), Mapping)
    official = {**checkpoint["params"], **checkpoint.get("stats", {})} if layered else checkpoint
    tensors = {}
    for key, tensor in official.items():
        if re.fullmatch(r"eye\d+(_\d+)*", str(key)):
            continue
        found = _renamed(str(key), _RULES)
        if found is None or not isinstance(tensor, torch.Tensor) or tensor.is_complex():
            kind = type(tensor).__name__ if found is None or not isinstance(tensor, torch.Tensor) else tensor.dtype
            raise ValueError(f"the checkpoint has {key!r} ({kind}): it is no official DiracNet checkpoint")
        tensors[found] = tensor.detach()
    return tensors


def _check_fit(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """That names and shapes are the net's, but for scalar alpha and beta where the net has one for every filter."""
    shapes = {name: (tuple(tensors[name].shape), tuple(own[name].shape)) for name in tensors.keys() & own.keys()}
    misshapen = {
        name: both
        for name, both in shapes.items()
        if both[0] != both[1] and not (name.endswith((".alpha", ".beta")) and both[0] == (1,))
    }
    missing, unexpected = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    if not (missing or unexpected or misshapen):
        return
    doubled = [
        name for name, (theirs, mine) in misshapen.items() if len(mine) == len(theirs) == 4 and theirs[1] == 2 * mine[1]
    ]
    hints = ["depth"] if missing or unexpected else ["width", "number of classes"]
    hint = (
        "is it of version 1 (NCReLU), which diracnet_v1 builds?" if doubled else f"was it another {' or '.join(hints)}?"
    )
    faults = [
        _listed("missing", missing),
        _listed("unexpected", unexpected),
        _listed(
            "misshapen", [f"{name} {misshapen[name][0]} where the net has {misshapen[name][1]}" for name in misshapen]
        ),
    ]
    raise ValueError(
        f"the checkpoint is not of this net: {'; '.join(filter(None, faults))}. Nothing was loaded; {hint}"
    )


def _listed(kind: str, names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{len(found)} {kind}: {', '.join(found[:SHOWN])}{more}" if found else ""


def _check_data(name: str, tensors: Mapping[str, Tensor], remedy: str) -> None:
    """torch copies nothing into tensors on the meta device, and says no more than a warning."""
    empty = [key for key, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise ValueError(
            f"{name} must have data, got {len(empty)} of {len(tensors)} tensors on the meta device, {empty[0]} among "
            f"them: {remedy}"
        )


def _check_same_kind(checkpoint_has_norms: bool, model_has_norms: bool) -> None:
    if model_has_norms and not checkpoint_has_norms:
        raise ValueError("the checkpoint is folded: load it into a folded net, triton_dirac.fold(net.eval())")
    if checkpoint_has_norms and not model_has_norms:
        raise ValueError("the checkpoint is not folded, the net is: load it into the unfolded net, then fold that")
