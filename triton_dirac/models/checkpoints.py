"""Checkpoints of the official DiracNets code, onto the nets of this package.

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

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from triton_dirac.models.diracnet import DiracNet

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


def load_official(model: DiracNet, checkpoint: Mapping[str, Any]) -> None:
    """Load an official checkpoint, as ``torch.load`` gives it, into a DiracNet of the same depth and width.

    >>> from triton_dirac import fold
    >>> from triton_dirac.models import diracnet18, diracnet34
    >>> net = diracnet34()
    >>> load_official(net, torch.load("diracnet34-v2_checkpoint.pth"))  # doctest: +SKIP
    >>> inference = fold(diracnet18().eval())
    >>> load_official(inference, torch.load("diracnet18v2folded-a2174e15.pth"))  # doctest: +SKIP

    Args:
        model: from ``diracnet``, ``diracnet18`` or ``diracnet34``; folded (``triton_dirac.fold``) for a
            folded checkpoint. Its dtype, device and memory format stay.
        checkpoint: {params, stats, optimizer, epoch}, {params with the running statistics, epoch,
            optimizer}, the flat parameters themselves, or a flat folded state dict. alpha and beta may be
            scalars.

    Raises:
        TypeError: model is not a DiracNet or checkpoint no mapping.
        ValueError: the checkpoint's tensors are not the net's; nothing has been loaded then. That includes
            version 1, whose nets have twice the input channels (NCReLU). Or one of the two has no data: a net made
            under ``torch.device("meta")`` gets memory from ``net.to_empty(device=...)`` first.
    """
    if not isinstance(model, DiracNet):
        raise TypeError(f"model must be a DiracNet, got {type(model).__name__}")
    if not isinstance(checkpoint, Mapping):
        raise TypeError(f"checkpoint must be a dictionary, as torch.load gives it, got {type(checkpoint).__name__}")
    tensors = _translate(checkpoint)
    own = {
        name: tensor
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
        if not name.endswith("num_batches_tracked")
    }
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    _check_same_kind("stem.bn.weight" in tensors, "stem.bn.weight" in expected)
    for kind, keys in (
        ("lacks", expected.keys() - tensors.keys()),
        ("has, and the net has not,", tensors.keys() - expected.keys()),
    ):
        if keys:
            raise ValueError(
                f"the checkpoint {kind} {len(keys)} tensors, {min(keys)} among them: was it another depth?"
            )
    for name, tensor in tensors.items():
        shape, wanted = tuple(tensor.shape), expected[name]
        if shape == wanted or (name.endswith((".alpha", ".beta")) and shape == (1,)):
            continue
        version_1 = len(wanted) == 4 and shape == (wanted[0], 2 * wanted[1], *wanted[2:])
        raise ValueError(
            f"{name} has shape {shape} in the checkpoint, {wanted} in the net: "
            + ("it is of version 1 (NCReLU)" if version_1 else "was it another width or number of classes?")
        )
    _check_data("model", own, "model.to_empty(device=...) gives it memory")
    _check_data("the checkpoint", tensors, "load it with another map_location")
    model.load_state_dict(tensors, strict=False)  # batch-norm's num_batches_tracked is newer than they are


def _translate(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The checkpoint's tensors under this package's names."""
    layered = isinstance(checkpoint.get("params"), Mapping)
    official = {**checkpoint["params"], **checkpoint.get("stats", {})} if layered else checkpoint
    tensors = {}
    for key, tensor in official.items():
        if re.fullmatch(r"eye\d+(_\d+)*", key):
            continue
        matches = ((re.fullmatch(pattern, key), name) for pattern, name in _RULES)
        found = next((match.expand(name) for match, name in matches if match), None)
        if found is None or not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"the checkpoint has {key!r} ({type(tensor).__name__}): it is no official DiracNet checkpoint"
            )
        tensors[found] = tensor.detach()
    return tensors


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
