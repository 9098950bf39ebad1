"""Nets by name, as commands take them: diracnet-28-10, wide-resnet-28-10, resnet-18, vgg-16."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from torch import nn

from triton_dirac.models.diracnet import diracnet, diracnet18, diracnet34
from triton_dirac.models.plain import plain
from triton_dirac.models.resnet import resnet, resnet18, resnet34, wide_resnet
from triton_dirac.models.version1 import diracnet18_v1, diracnet34_v1, diracnet_v1
from triton_dirac.models.vgg import vgg16

# CIFAR nets by family, from (depth, width, num_classes); those of Dirac layers take ``backend`` too.
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "diracnet": diracnet,
    "diracnet-v1": diracnet_v1,
    "plain": plain,
    "plain-delta-orthogonal": partial(plain, start="delta-orthogonal"),
    "resnet": resnet,
    "resnet-bottleneck": partial(resnet, bottleneck=True),
    "wide-resnet": wide_resnet,
}
SINGLE: dict[str, Callable[..., nn.Module]] = {
    "diracnet-18": diracnet18,
    "diracnet-34": diracnet34,
    "diracnet-v1-18": diracnet18_v1,
    "diracnet-v1-34": diracnet34_v1,
    "resnet-18": resnet18,
    "resnet-34": resnet34,
    "vgg-16": vgg16,
}
ACCEPTED = f"{', '.join(f'{family}-DEPTH-WIDTH' for family in FAMILIES)}, {', '.join(SINGLE)}"


def net_named(name: str, num_classes: int, *, backend: str = "auto") -> nn.Module:
    """The net of that name with ``num_classes`` outputs; ``backend``: of its Dirac convolutions, if it has any.

    >>> sum(p.numel() for p in net_named("diracnet-34-2", 100).parameters())
    1865988

    Raises:
        ValueError: no net has the name, or its depth is none of its family's.
    """
    options = {"backend": backend} if name.startswith("diracnet") else {}
    if name in SINGLE:
        return SINGLE[name](num_classes, **options)
    found = re.fullmatch(r"([a-z][a-z0-9-]*?)-(\d+)-(\d+)", name)
    if found is None or found[1] not in FAMILIES:
        raise ValueError(f"net must be one of {ACCEPTED}, got {name!r}")
    return FAMILIES[found[1]](int(found[2]), int(found[3]), num_classes, **options)
