"""What a layer and a net's training step cost the host: the calls, and how they are timed.

What Python and the dispatcher do depends on how many layers there are and not on their sizes, so every layer has a few
channels of a few pixels: what torch computes on a CPU there takes about 3 us a convolution, and a GPU is never waited
for. On a CPU the driver is a stub (``stub_driver``): kernels are compiled for a GPU and launched all the way to the
driver, which does nothing. What they would have written is then whatever memory holds; no number depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contenders import eager_weight, weight_norm_weight
from bench.layers import layers
from bench.net_training import ChainLayer, official, weight_norm
from bench.nets import FIRST_NETS
from bench.timing import Call, Outcomes, Samples, interleaved
from triton_dirac import DiracConv2d, conv2d, dirac_conv2d, prepared
from triton_dirac.conv.problem import ConvProblem

HOST_PASSES = ("forward", "forward_backward")
LAYER = ConvProblem(1, 8, 2, 2, 8, 3, 3, padding=(1, 1, 1, 1))
ONE_LAYER = "one layer"
OF_LAYER = ("torch", "reference", "weight_norm", "conv2d", "dirac_conv2d", "DiracConv2d", "prepared")
OF_NET = ("torch", "reference", "weight_norm", "DiracConv2d", "prepared")
COMPILED = ("torch-compile", "reference-compile", "weight_norm-compile", "DiracConv2d-compile")
ROUNDS = 25
SAMPLE = 0.02  # seconds that a sample takes at least


class Subject(NamedTuple):
    """One layer, or the training step of a net with as many Dirac layers as a published one has."""

    net: str
    layers: int

    @property
    def name(self) -> str:
        return "8x2x2-8 3x3" if self.net == ONE_LAYER else f"{self.layers} layers of 8x2x2-8 3x3"

    @property
    def contenders(self) -> tuple[str, ...]:
        return OF_LAYER + COMPILED if self.net == ONE_LAYER else OF_NET


def subjects() -> list[Subject]:
    return [Subject(ONE_LAYER, 1), *(Subject(net, dirac_layers(net)) for net in FIRST_NETS)]


def dirac_layers(net: str) -> int:
    return sum(layer.counts[net] for layer in layers(net) if layer.has_identity)


# --- calls -------------------------------------------------------------------------------------------------


def calls_of(subject: Subject, direction: str, device: torch.device) -> dict[str, Callable[[], Call]]:
    """What makes each contender's call; each has parameters of its own, all of which want gradients."""
    if subject.net == ONE_LAYER:
        return {name: partial(_of_layer, name, direction, device) for name in subject.contenders}
    return {name: partial(_of_net, name, subject.layers, direction, device) for name in subject.contenders}


def _layer(device: torch.device) -> DiracConv2d:
    layer = DiracConv2d(8, 8, 3, padding=1, bias=False, backend="triton", device=device)
    return layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _image(device: torch.device) -> Tensor:
    image = torch.randn(LAYER.input_shape, device=device)
    return image.to(memory_format=torch.channels_last).requires_grad_()


def _of_layer(contender: str, direction: str, device: torch.device) -> Call:
    name, _, compiled = contender.partition("-")
    layer, image = _layer(device), _image(device)
    weight, alpha, beta = layer.weight, layer.alpha, layer.beta
    delta = torch.nn.init.dirac_(torch.empty_like(weight))
    like, last = image.dtype, torch.channels_last

    def ours_in_one_launch() -> Tensor:
        with prepared(layer):
            return layer(image)

    forward: Callable[[], Tensor] = {
        "torch": lambda: F.conv2d(image, weight, None, 1, 1),
        "reference": lambda: F.conv2d(image, eager_weight(weight, alpha, beta, delta, like, last), None, 1, 1),
        "weight_norm": lambda: F.conv2d(image, weight_norm_weight(weight, alpha, beta, like, last), None, 1, 1),
        "conv2d": lambda: conv2d(image, weight, None, 1, 1, backend="triton"),
        "dirac_conv2d": lambda: dirac_conv2d(image, weight, alpha, beta, None, 1, 1, backend="triton"),
        "DiracConv2d": lambda: layer(image),
        "prepared": ours_in_one_launch,
    }[name]
    if compiled:
        forward = torch.compile(forward, dynamic=False)
    if direction == "forward":
        return forward
    leaves = [image, weight] if name in ("torch", "conv2d") else [image, weight, alpha, beta]
    upstream = torch.randn(LAYER.output_shape, device=device).to(memory_format=torch.channels_last)
    return lambda: torch.autograd.grad(forward(), leaves, upstream)


def _of_net(contender: str, layers: int, direction: str, device: torch.device) -> Call:
    """ReLU, convolution and batch-norm of every layer, mean, classifier; and cross-entropy and all gradients."""
    make: dict[str, Callable[[], nn.Module]] = {
        "torch": lambda: nn.Conv2d(8, 8, 3, padding=1, bias=False, device=device),
        "reference": lambda: ChainLayer(_layer(device), official),
        "weight_norm": lambda: ChainLayer(_layer(device), weight_norm),
        "DiracConv2d": lambda: _layer(device),
        "prepared": lambda: _layer(device),
    }
    body = [nn.Sequential(nn.ReLU(), make[contender](), nn.BatchNorm2d(8, device=device)) for _ in range(layers)]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10, device=device))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image, labels = _image(device), torch.zeros(1, dtype=torch.int64, device=device)
    parameters = list(net.parameters())

    def forward() -> Tensor:
        with prepared(net) if contender == "prepared" else nullcontext():
            return net(image)

    def step() -> None:
        with prepared(net) if contender == "prepared" else nullcontext():
            loss = F.cross_entropy(net(image), labels)
            torch.autograd.grad(loss, parameters)

    return forward if direction == "forward" else step


# --- timing ------------------------------------------------------------------------------------------------


class HostTimer:
    """Seconds per call on the host; a GPU's queue is drained between samples."""

    estimate = 0.0  # as many samples as there are rounds, however long they take

    def __init__(self, call: Call, device: torch.device) -> None:
        self._call, self._device, self._seconds = call, device, list[float]()
        for _ in range(3):  # compiles, plans, launches directly
            self._call()
        self._calls = 1
        self._calls = max(1, min(200, round(SAMPLE / self._elapsed())))

    def sample(self) -> None:
        self._seconds.append(self._elapsed())

    def samples(self) -> Samples:
        return Samples(self._seconds, self._calls)

    def _elapsed(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        for _ in range(self._calls):
            self._call()
        return (time.perf_counter() - start) / self._calls


def host_samples(subject: Subject, direction: str, device: torch.device, asked: Callable[[str], bool]) -> Outcomes:
    """Samples of the contenders that are ``asked`` for, taken in turn, or what a contender raised."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waking others for a few pixels would be torch's convolution's loss
    ready: dict[str, Call] = {}
    outcomes: Outcomes = {}
    try:
        for name, make in calls_of(subject, direction, device).items():
            if asked(name):
                try:
                    ready[name] = make()
                    ready[name]()
                except Exception as error:
                    ready.pop(name, None)
                    outcomes[name] = error
        found: Mapping[str, Samples | Exception] = interleaved(
            ready, lambda call: HostTimer(call, device), 0.0, ROUNDS, ROUNDS
        )
        return {**outcomes, **found}
    finally:
        torch.set_num_threads(threads)
