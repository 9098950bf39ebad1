"""What a suite is: inputs, passes, the definition of its results, contenders and their least cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from zlib import crc32

import torch
from torch import Tensor

from bench.accuracy import max_error
from bench.layers import Layer
from triton_dirac.conv.problem import ConvProblem

STORAGE = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Work:
    """One thing to compute: one pass over one problem, with its inputs on their device.

    Images and upstream gradients are stored in ``dtype``, channels-last; parameters in float32, as in
    mixed-precision training.
    """

    direction: str
    problem: ConvProblem
    dtype: str
    device: torch.device
    inputs: Mapping[str, Tensor]

    @property
    def storage(self) -> torch.dtype:
        return STORAGE[self.dtype]

    @property
    def geometry(self) -> dict:
        """stride, padding, dilation and groups as ``F.conv2d`` takes them."""
        top, bottom, left, right = self.problem.padding
        if (top, left) != (bottom, right):
            raise ValueError(f"torch pads both sides alike, got padding {self.problem.padding}")
        return {
            "stride": self.problem.stride,
            "padding": (top, left),
            "dilation": self.problem.dilation,
            "groups": self.problem.groups,
        }


Results = tuple[Tensor, ...]
Build = Callable[[Work], Callable[[], Results]]
Lacks = Callable[[ConvProblem, str, str, torch.device], str | None]


def nothing(problem: ConvProblem, dtype: str, direction: str, device: torch.device) -> None:
    """What most contenders lack."""


@dataclass(frozen=True)
class Contender:
    """A named implementation. ``build`` lays out its inputs; the call it returns is what is timed.

    ``engine`` says what it needs: "eager", "compile", "cpu" (torch's own CPU convolution), "cudnn", "triton", or
    a peer's ("inductor", "flag_gems"). ``lacks(problem, dtype, pass, device)`` says why it cannot compute that,
    whatever the machine; None if it can.
    """

    name: str
    engine: str
    build: Build
    lacks: Lacks = nothing


@dataclass(frozen=True)
class Suite:
    """``passes`` names the tensors that each pass yields. ``dirac_only`` leaves stems out.

    ``multiplies``: whether TF32 changes anything; a suite without products is not run in it.

    ``draw(problem, normal, storage)`` returns the inputs, ``normal(*shape)`` being standard normal float32.
    ``definition(work)`` computes the results by ``triton_dirac.reference``, in the dtype of the inputs.
    ``cost(problem, storage, pass)`` is the least (flops, bytes).
    """

    name: str
    passes: Mapping[str, tuple[str, ...]]
    draw: Callable[[ConvProblem, Callable[..., Tensor], torch.dtype], dict[str, Tensor]]
    definition: Callable[[Work], Results]
    cost: Callable[[ConvProblem, torch.dtype, str], tuple[int, int]]
    contenders: Sequence[Contender]
    dirac_only: bool = True
    multiplies: bool = True

    def work(self, problem: ConvProblem, dtype: str, direction: str, device: torch.device) -> Work:
        """The same numbers in every run on the same kind of device."""
        generator = torch.Generator(device).manual_seed(crc32(repr((self.name, problem, dtype)).encode()))

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        return Work(direction, problem, dtype, device, self.draw(problem, normal, STORAGE[dtype]))

    def named(self, direction: str, results: Results) -> dict[str, Tensor]:
        return dict(zip(self.passes[direction], results, strict=True))

    def truth(self, work: Work) -> dict[str, Tensor]:
        """What ``work`` should yield: its definition in float64."""
        wide = {name: tensor.double() for name, tensor in work.inputs.items()}
        return self.named(work.direction, self.definition(replace(work, inputs=wide)))

    def torch_errors(self, work: Work, truth: Mapping[str, Tensor]) -> dict[str, float]:
        """How far the definition in the work's own dtype is from ``truth``: the worse of two memory formats.

        Of two, since one draw of rounding errors may be lucky. Not a contender's, which would pass by itself.
        """
        errors = dict.fromkeys(truth, 0.0)
        for layout in (torch.channels_last, torch.contiguous_format):
            inputs = {
                name: tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor
                for name, tensor in work.inputs.items()
            }
            plain = self.named(work.direction, self.definition(replace(work, inputs=inputs)))
            errors = {name: max(errors[name], max_error(plain[name], truth[name])) for name in truth}
        return errors


@dataclass(frozen=True)
class Row:
    """One pass over one layer in one dtype: what the contenders of a suite are compared on."""

    suite: Suite
    layer: Layer
    dtype: str
    direction: str

    def names(self, contender: Contender) -> dict[str, str]:
        """How results files call one contender's part of it."""
        return {
            "suite": self.suite.name,
            "pass": self.direction,
            "net": self.layer.net,
            "layer": self.layer.name,
            "dtype": self.dtype,
            "contender": contender.name,
        }


@contextmanager
def float32_products(dtype: str) -> Iterator[None]:
    """TF32 for "tf32", else full float32: for torch's convolutions and for ours, which follow its switch.

    Inductor's template follows a switch above that one, which "none" leaves to each kind of operation.
    """
    switch = torch.backends.cudnn
    before, above = switch.allow_tf32, switch.fp32_precision  # type: ignore[attr-defined]
    switch.allow_tf32 = dtype == "tf32"
    switch.fp32_precision = "tf32" if dtype == "tf32" else "none"  # type: ignore[attr-defined]
    try:
        yield
    finally:
        switch.fp32_precision = above  # type: ignore[attr-defined]
        switch.allow_tf32 = before


def call_of(
    function: Callable[..., Tensor], leaves: Sequence[Tensor], upstream: Tensor, direction: str
) -> Callable[[], Results]:
    """A call of ``function(*leaves)`` that yields (output,), or with its backward (output, *gradients)."""
    if direction == "forward":

        def forward() -> Results:
            with torch.no_grad():
                return (function(*leaves),)

        return forward
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]

    def forward_backward() -> Results:
        output = function(*leaves)
        return (output, *torch.autograd.grad(output, leaves, upstream))

    return forward_backward
