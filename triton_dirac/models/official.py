"""The official DiracNets interface, under its names: for code that was written to ``diracnet.py``.

    f, params = define_diracnet(28, 10, "CIFAR10")      logits = f(images, params, mode)
    net = diracnet18(pretrained=True)                   the released nets: Dirac and batch-norm folded in

The Dirac convolutions are this package's. ``DiracNet`` is built of nested modules where the official one names its
modules with dots, which current PyTorch refuses; state dicts are the same. Source: szagoruyko/diracnets, diracnet.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triton_dirac.functional import dirac_conv2d
from triton_dirac.models.checkpoints import identity_name
from triton_dirac.models.diracnet import IMAGENET_BLOCKS, groups_of
from triton_dirac.reference import dirac_delta

CIFAR_CLASSES = {"CIFAR10": 10, "CIFAR100": 100}
CIFAR_WIDTHS: tuple[int, ...] = (16, 32, 64)
IMAGENET_WIDTHS: tuple[int, ...] = (64, 128, 256, 512)
RELEASED = "https://s3.amazonaws.com/modelzoo-networks/"
FILES = {18: "diracnet18v2folded-a2174e15.pth", 34: "diracnet34v2folded-dfb15d34.pth"}
Params = dict[str, Tensor]


def define_diracnet(depth: int, width: float, dataset: str) -> tuple[Callable[[Tensor, Params, bool], Tensor], Params]:
    """(f, params): a DiracNet as a function of its images and its flat parameters.

    ``f(x, params, mode)`` gives logits, mode True for training: then batch-norm takes the batch's statistics and
    updates the running ones in place. Keys: conv; bn.*; groupG.blockB.{conv, alpha, beta, bn.*}; fc.{weight, bias};
    eyeK_C_3_3, the identity filter banks, which are there for code that expects them and are not read. All but
    running statistics and identities require gradients. Convolutions and classifier start from ``kaiming_normal_``,
    alpha at 1, beta at 0.1, batch-norm's weights uniform in 0..1.

    Args:
        depth: 6n + 4 for CIFAR, 18 or 34 for ImageNet.
        width: factor of the channels, (16, 32, 64) or (64, 128, 256, 512).
        dataset: "CIFAR10", "CIFAR100" or "ImageNet".

    >>> f, params = define_diracnet(10, 1, "CIFAR10")
    >>> tuple(f(torch.randn(2, 3, 32, 32), params, False).shape)
    (2, 10)

    Raises:
        ValueError: dataset, depth or width is not as above.
    """
    if dataset in CIFAR_CLASSES:
        blocks, base, classes = [2 * groups_of(depth)] * 3, CIFAR_WIDTHS, CIFAR_CLASSES[dataset]
    elif dataset == "ImageNet":
        if depth not in IMAGENET_BLOCKS:
            raise ValueError(f"depth must be 18 or 34 for ImageNet, got {depth!r}")
        blocks, base, classes = IMAGENET_BLOCKS[depth], IMAGENET_WIDTHS, 1000
    else:
        raise ValueError(f"dataset must be 'CIFAR10', 'CIFAR100' or 'ImageNet', got {dataset!r}")
    widths = [int(channels * width) for channels in base]
    if min(widths) < 1:
        raise ValueError(f"width must leave at least one channel, got {width!r}")
    cifar = dataset in CIFAR_CLASSES

    def f(inputs: Tensor, params: Params, mode: bool) -> Tensor:
        if cifar:
            features = _batch_norm(F.conv2d(inputs, params["conv"], padding=1), params, "bn", mode).relu()
        else:
            features = _batch_norm(F.conv2d(inputs, params["conv"], stride=2, padding=3), params, "bn", mode)
            features = F.max_pool2d(features, 3, 2, 1)
        for group, count in enumerate(blocks):
            features = F.max_pool2d(features, 2) if group else features
            for block in range(count):
                features = _block(features, params, f"group{group}.block{block}", mode)
        return F.linear(features.relu().mean((2, 3)), params["fc.weight"], params["fc.bias"])

    return f, _parameters(widths, blocks, classes, 3 if cifar else 7)


def _block(features: Tensor, params: Params, base: str, mode: bool) -> Tensor:
    weight = params[f"{base}.conv"]
    alpha, beta = (params[f"{base}.{name}"].expand(weight.shape[0]) for name in ("alpha", "beta"))
    output = dirac_conv2d(features.relu(), weight, alpha, beta, padding=1)
    return _batch_norm(output, params, f"{base}.bn", mode)


def _batch_norm(features: Tensor, params: Params, base: str, mode: bool) -> Tensor:
    mean, variance = params[f"{base}.running_mean"], params[f"{base}.running_var"]
    return F.batch_norm(features, mean, variance, params[f"{base}.weight"], params[f"{base}.bias"], training=mode)


def _parameters(widths: list[int], blocks: list[int], classes: int, stem: int) -> Params:
    params: Params = {"conv": nn.init.kaiming_normal_(torch.empty(widths[0], 3, stem, stem))}

    def add_norm(base: str, channels: int) -> None:
        params[f"{base}.weight"], params[f"{base}.bias"] = torch.rand(channels), torch.zeros(channels)
        params[f"{base}.running_mean"], params[f"{base}.running_var"] = torch.zeros(channels), torch.ones(channels)

    add_norm("bn", widths[0])
    channels = widths[0]
    for group, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for block in range(count):
            base = f"group{group}.block{block}"
            params[f"{base}.conv"] = nn.init.kaiming_normal_(torch.empty(width, channels, 3, 3))
            params[f"{base}.alpha"], params[f"{base}.beta"] = torch.full((width,), 1.0), torch.full((width,), 0.1)
            add_norm(f"{base}.bn", width)
            channels = width
    params["fc.weight"] = nn.init.kaiming_normal_(torch.empty(classes, channels))
    params["fc.bias"] = torch.zeros(classes)
    for name, tensor in params.items():
        tensor.requires_grad_(not name.endswith(("running_mean", "running_var")))
    filters = [tensor for name, tensor in params.items() if name.endswith(".conv")]
    return params | {identity_name(bank): dirac_delta(tuple(bank.shape), device=bank.device) for bank in filters}


class DiracNet(nn.Module):
    """The ImageNet DiracNet of that depth, 18 or 34, as released for inference: plain convolutions with biases.

    Keys: features.conv.{weight, bias}, features.groupG.blockB.conv.{weight, bias}, fc.{weight, bias}.
    Input (N, 3, H, W), as a rule 224 x 224; output (N, 1000).
    """

    def __init__(self, depth: int = 18) -> None:
        super().__init__()
        if depth not in IMAGENET_BLOCKS:
            raise ValueError(f"depth must be 18 or 34, got {depth!r}")
        channels = IMAGENET_WIDTHS[0]
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(3, channels, 7, stride=2, padding=3))
        layers["max_pool0"] = nn.MaxPool2d(3, 2, 1)
        for group, (width, count) in enumerate(zip(IMAGENET_WIDTHS, IMAGENET_BLOCKS[depth], strict=True)):
            if group:
                layers[f"max_pool{group}"] = nn.MaxPool2d(2)
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for block in range(count):
                conv = nn.Conv2d(channels, width, 3, padding=1)
                blocks[f"block{block}"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=conv))
                channels = width
            layers[f"group{group}"] = nn.Sequential(blocks)
        layers["last_relu"], layers["avg_pool"] = nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.features = nn.Sequential(layers)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(images).flatten(1))
        return logits


def _folded(depth: int, pretrained: bool) -> DiracNet:
    net = DiracNet(depth)
    if pretrained:
        url = RELEASED + FILES[depth]
        try:
            state = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
        except (URLError, OSError, RuntimeError) as error:
            raise RuntimeError(
                f"pretrained=True could not fetch {url} ({error}); if you have the file, build the net without and "
                f"call net.load_state_dict(torch.load({FILES[depth]!r}, weights_only=True))"
            ) from error
        net.load_state_dict(state)
    return net


def diracnet18(pretrained: bool = False) -> DiracNet:
    """DiracNet-18 as released for inference; ``pretrained``: with the released weights, which are downloaded.

    Raises:
        RuntimeError: they cannot be, or are not the released file.
    """
    return _folded(18, pretrained)


def diracnet34(pretrained: bool = False) -> DiracNet:
    """DiracNet-34 as released for inference; ``pretrained``: as ``diracnet18``'s."""
    return _folded(34, pretrained)
