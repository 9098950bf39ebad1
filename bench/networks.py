"""Weight preparation of whole nets: the nets, what is computed, the implementations that are compared.

A call prepares every Dirac layer of a net, and in the pass ``forward_backward`` also computes all gradients.
Prepared weights have the layout that convolutions want: channels-last on a GPU, torch's own on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor

import triton_dirac
from bench import counting
from bench.accuracy import Error, check, max_error
from bench.contenders import delta_of, eager_weight, weight_norm_weight
from bench.layers import NETS
from bench.suite import STORAGE, Results
from triton_dirac import models, reference
from triton_dirac.runtime.launch import Launch
from triton_dirac.weight_prep import single as weight_prep

# The widest, the narrowest and the deepest: a net takes a CPU half a minute, and the other two lie between these.
NETWORKS = {name: NETS[name] for name in ("DiracNet-28-10", "DiracNet-34-2", "DiracNet-34")}
SUITE = "weight_prep_nets"
LAYER = "all Dirac layers"  # what stands for a layer's name in results
PASSES = {"forward": ("output",), "forward_backward": ("output", "weight", "alpha", "beta")}
CROPPED_CHANNELS = 8  # of the largest layer in a cropped net: the interpreter takes a millisecond a row

Shape = tuple[int, ...]
Layer = tuple[Tensor, Tensor, Tensor]
Prepare = Callable[[Sequence[Layer]], list[Tensor]]


@cache
def shapes(net: str) -> tuple[Shape, ...]:
    """The weights' shapes (K, C, R, S) of all Dirac layers of ``net``, in the order they run."""
    with torch.device("meta"):
        model = NETWORKS[net].build()
    found = models.conv_problems(model, NETWORKS[net].image_size, 1)
    return tuple(problem.weight_shape for _, kind, problem in found if kind == "dirac")


def crop(of: Sequence[Shape]) -> tuple[Shape, ...]:
    """As many layers with fewer channels, all divided by one power of two."""
    divisor = 1
    while max(max(shape[:2]) for shape in of) // divisor > CROPPED_CHANNELS:
        divisor *= 2
    return tuple((max(1, k // divisor), max(1, c // divisor), *window) for k, c, *window in of)


@dataclass(frozen=True)
class NetWork:
    """One pass over one net. Parameters are float32, as in mixed precision; prepared weights are ``dtype``."""

    direction: str
    dtype: str
    device: torch.device
    layers: Sequence[Layer]
    grads: Sequence[Tensor]

    @property
    def storage(self) -> torch.dtype:
        return STORAGE[self.dtype]

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.device.type == "cuda" else torch.contiguous_format


def draw(of: Sequence[Shape], direction: str, dtype: str, device: torch.device) -> NetWork:
    """The same numbers in every run on the same kind of device: alpha about 1, beta about 0.1. None on "meta"."""
    is_meta = device.type == "meta"
    generator = None if is_meta else torch.Generator(device).manual_seed(crc32(repr((SUITE, of, dtype)).encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    work = NetWork(direction, dtype, device, [], [])
    layers = [
        (normal(*s) * (2 / s[1:].numel()) ** 0.5, 1 + 0.1 * normal(s[0]), 0.1 + 0.02 * normal(s[0]))
        for s in map(torch.Size, of)
    ]
    grads = [normal(*shape).to(work.storage, memory_format=work.layout) for shape in of]
    return replace(work, layers=layers, grads=grads)


def call_of(prepare: Prepare, work: NetWork) -> Callable[[], Results]:
    """A call that yields the prepared weights, and with a backward every layer's three gradients after them."""
    if work.direction == "forward":

        def forward() -> Results:
            with torch.no_grad():
                return tuple(prepare(work.layers))

        return forward
    layers = [tuple(tensor.detach().requires_grad_() for tensor in layer) for layer in work.layers]
    leaves = [tensor for layer in layers for tensor in layer]

    def forward_backward() -> Results:
        outputs = prepare(layers)  # type: ignore[arg-type]
        return (*outputs, *torch.autograd.grad(outputs, leaves, work.grads))

    return forward_backward


class Checker:
    """The true results of both passes, layer by layer, and how far plain torch in the same dtype is from them."""

    def __init__(self, work: NetWork) -> None:
        self._dtype = work.dtype
        pairs = list(zip(work.layers, work.grads, strict=True))
        self._truth = [_by_definition(*pair, torch.float64, torch.float64) for pair in pairs]
        self._torch_errors = [
            {
                name: max_error(plain, true[name])
                for name, plain in _by_definition(*pair, torch.float32, work.storage).items()
            }
            for pair, true in zip(pairs, self._truth, strict=True)
        ]

    def errors(self, results: Results, direction: str) -> list[Error]:
        """Of each tensor the layer that comes nearest to what is allowed, or goes furthest beyond it."""
        count, found = len(self._truth), []
        for i, (truth, torch_errors) in enumerate(zip(self._truth, self._torch_errors, strict=True)):
            tensors = (results[i], *results[count + 3 * i : count + 3 * i + 3])
            named = dict(zip(PASSES[direction], tensors, strict=True))
            found.append(check(named, {name: truth[name] for name in named}, torch_errors, self._dtype))
        return [max(of, key=_beside_torch) for of in zip(*found, strict=True)]


def _by_definition(layer: Layer, grad: Tensor, dtype: torch.dtype, storage: torch.dtype) -> dict[str, Tensor]:
    """What ``layer`` yields in both passes, computed in ``dtype`` and stored in ``storage``."""
    leaves = [tensor.to(dtype).requires_grad_() for tensor in layer]
    output = reference.dirac_weight(*leaves).to(storage)
    results = (output.detach(), *torch.autograd.grad(output, leaves, grad.to(storage)))
    return dict(zip(PASSES["forward_backward"], results, strict=True))


def _beside_torch(error: Error) -> tuple[bool, float]:
    """Failures first, NaN among them; then by error over torch's own."""
    ratio = error.error / error.torch_error if error.torch_error else error.error
    return not error.passed, ratio


def cost(of: Sequence[Shape], storage: torch.dtype, direction: str) -> tuple[int, int]:
    """The least (flops, bytes): W read once and What written once; backward G and W read, dW written."""
    flops = sum(weight_prep.prep_flops(shape) for shape in of)
    moved = sum(weight_prep.prep_bytes(shape, torch.float32, storage) for shape in of)
    if direction == "forward_backward":
        flops += sum(weight_prep.prep_backward_flops(shape) for shape in of)
        moved += sum(weight_prep.prep_backward_bytes(shape, torch.float32, storage) for shape in of)
    return flops, moved


def launch_bytes(launch: Launch, work: NetWork) -> int:
    """Bytes of all that a launch of ours reads and writes, each once: no row here is too long for that.

    The launch for a whole net finds parameters and gradients through addresses in its table.
    """
    moved = counting.tensor_bytes(launch.args.values())
    if "table_ptr" in launch.args:
        moved += counting.tensor_bytes(work.layers)
        if "dweight_ptr" in launch.args:
            moved += counting.tensor_bytes(work.grads) - counting.tensor_bytes(alpha for _, alpha, _ in work.layers)
    return moved


# --- contenders -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NetContender:
    """A named implementation. ``engine``: "eager", "compile", "triton"; ``graph``: replayed as a CUDA graph."""

    name: str
    engine: str
    prepare: Callable[[NetWork], Prepare]
    graph: bool = False

    def build(self, work: NetWork) -> Callable[[], Results]:
        call = call_of(self.prepare(work), work)
        return _replayed(call) if self.graph else call


def _replayed(call: Callable[[], Results]) -> Callable[[], Results]:
    """``call`` captured in a CUDA graph: what remains of it when launches cost nothing."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # whatever is compiled or allocated at first use must be so before capture
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> Results:
        graph.replay()
        return results

    return replay


def normalize_weight(
    weight: Tensor, alpha: Tensor, beta: Tensor, dtype: torch.dtype, layout: torch.memory_format
) -> Tensor:
    """beta * F.normalize(W), then alpha added to the diagonal alone."""
    prepared = F.normalize(weight.flatten(1)).view_as(weight) * beta.view(-1, 1, 1, 1)
    _, _, height, width = weight.shape
    diagonal = prepared[:, :, height // 2, width // 2].diagonal()
    diagonal.add_(alpha[: diagonal.shape[0]])
    return prepared.to(dtype, memory_format=layout)


def _chain(work: NetWork, chain: Callable[..., Tensor]) -> Prepare:
    deltas = [delta_of(tuple(weight.shape)).to(work.device) for weight, _, _ in work.layers]
    return lambda layers: [
        chain(*layer, delta, work.storage, work.layout) for layer, delta in zip(layers, deltas, strict=True)
    ]


def _reference(work: NetWork) -> Prepare:
    return _chain(work, eager_weight)


def _normalize(work: NetWork) -> Prepare:
    return lambda layers: [normalize_weight(*layer, work.storage, work.layout) for layer in layers]


def _weight_norm(work: NetWork) -> Prepare:
    return lambda layers: [weight_norm_weight(*layer, work.storage, work.layout) for layer in layers]


@cache
def _compiled(dtype: torch.dtype, layout: torch.memory_format, device: torch.device) -> Callable[..., Tensor]:
    """``eager_weight`` compiled once, for sizes of any value: a net has up to 32 layers."""
    torch.compiler.reset()
    compiled = torch.compile(eager_weight, dynamic=True)
    # Sizes that are equal in its first call, torch.compile takes to be equal always: K, C, R, S differ here.
    shape = (24, 16, 3, 5)
    for direction in PASSES:
        work = draw([shape], direction, _name(dtype), device)
        call_of(_chain(work, compiled), work)()
    return compiled


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compile(work: NetWork) -> Prepare:
    return _chain(work, _compiled(work.storage, work.layout, work.device))


def _per_layer(work: NetWork) -> Prepare:
    options: dict[str, Any] = {"dtype": work.storage, "memory_format": work.layout, "backend": "triton"}
    return lambda layers: [triton_dirac.dirac_weight(*layer, **options) for layer in layers]


def _one_launch(backend: str) -> Callable[[NetWork], Prepare]:
    def prepare(work: NetWork) -> Prepare:
        options: dict[str, Any] = {"dtype": work.storage, "memory_format": work.layout, "backend": backend}
        return lambda layers: triton_dirac.dirac_weights(layers, **options)

    return prepare


PLAIN = (
    NetContender("reference", "eager", _reference),
    NetContender("normalize", "eager", _normalize),
    NetContender("weight_norm", "eager", _weight_norm),
    NetContender("compile", "compile", _compile),
    NetContender("triton", "triton", _per_layer),
    NetContender("triton-one-launch", "triton", _one_launch("triton")),
    NetContender("auto", "eager", _one_launch("auto")),
)
GRAPHED = tuple(
    replace(contender, name=f"{contender.name}-graph", graph=True) for contender in PLAIN if contender.name != "auto"
)
CONTENDERS = (*PLAIN, *GRAPHED)
