"""What a suite is: its subjects, inputs, passes, the definition of its results, contenders and their least cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol
from zlib import crc32

import torch
from torch import Tensor

from bench.accuracy import Value, max_error, parts
from bench.layers import dirac_layers
from triton_dirac.runtime.launch import Launch
from triton_dirac.tuning.work import STORAGE


class Subject(Protocol):
    """What a suite runs on: a layer, or all layers of a net together. ``problem`` is what its functions take."""

    @property
    def net(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def counts(self) -> Mapping[str, int]: ...
    @property
    def count(self) -> int: ...
    @property
    def has_identity(self) -> bool: ...
    @property
    def needs_input_grad(self) -> bool: ...
    @property
    def published_batch(self) -> int | None: ...
    @property
    def problem(self) -> Any: ...
    @property
    def sizes(self) -> dict[str, Any]: ...
    def shrunk(self) -> Subject: ...


@dataclass(frozen=True)
class Work:
    """One thing to compute: one pass over one problem, with its inputs on their device.

    Images and upstream gradients are stored in ``dtype``, channels-last; parameters in float32, as in
    mixed-precision training. Of a net each input is one tensor for each layer.
    """

    direction: str
    problem: Any
    dtype: str
    device: torch.device
    inputs: Mapping[str, Any]

    @property
    def storage(self) -> torch.dtype:
        return STORAGE[self.dtype]

    @property
    def geometry(self) -> dict[str, Any]:
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

    def with_inputs(self, change: Callable[[Tensor], Tensor]) -> Work:
        """The same work on changed inputs."""
        changed = {
            name: change(value) if isinstance(value, Tensor) else tuple(map(change, value))
            for name, value in self.inputs.items()
        }
        return replace(self, inputs=changed)


GRAPH = "-graph"  # ends the names of what replays a CUDA graph: compared with the baseline's own graph
Results = tuple[Value, ...]
Build = Callable[[Work], Callable[[], Results]]
Lacks = Callable[[Any, str, str, torch.device], str | None]


def nothing(problem: Any, dtype: str, direction: str, device: torch.device) -> None:
    """What most contenders lack."""


def as_they_are(results: Results) -> Results:
    return results


@dataclass(frozen=True)
class Contender:
    """A named implementation. ``build`` lays out its inputs; the call it returns is what is timed.

    ``engine`` says what it needs: "eager", "compile", "cpu" (torch's own CPU convolution), "cudnn", "triton", or
    a peer's ("inductor", "flag_gems"). ``lacks(problem, dtype, pass, device)`` says why it cannot compute that,
    whatever the machine; None if it can. ``graph``: the call replays a CUDA graph.
    """

    name: str
    engine: str
    build: Build
    lacks: Lacks = nothing
    graph: bool = False


@dataclass(frozen=True)
class Suite:
    """``passes`` names the tensors that each pass yields; ``subjects(nets, batch)`` is what the suite runs on.

    ``multiplies``: whether TF32 changes anything; a suite without products is not run in it.

    ``draw(problem, normal, storage)`` returns the inputs, ``normal(*shape)`` being standard normal float32.
    ``definition(work)`` computes the results by ``triton_dirac.reference``, in the dtype of the inputs;
    each of ``rewritten`` the same by other operations, where what is rounded in between decides how far they are off.
    ``compared(results)``: what of a call's results is compared, where that takes work that must not be timed.
    ``sampler`` takes the samples, where a suite wants another clock than the machine's (``bench.timing``).
    ``cost(problem, storage, pass)`` is the least (flops, bytes). ``launch_bytes(launch, work)`` are the bytes that
    one of our launches moves; where a suite has it, its launches and bytes are counted too.
    """

    name: str
    passes: Mapping[str, tuple[str, ...]]
    draw: Callable[[Any, Callable[..., Tensor], torch.dtype], dict[str, Any]]
    definition: Callable[[Work], Results]
    cost: Callable[[Any, torch.dtype, str], tuple[int, int]]
    contenders: Sequence[Contender]
    subjects: Callable[[Iterable[str], int | None], Sequence[Subject]] = dirac_layers
    multiplies: bool = True
    launch_bytes: Callable[[Launch, Work], int] | None = None
    rewritten: Sequence[Callable[[Work], Results]] = ()
    compared: Callable[[Results], Results] = as_they_are
    sampler: Callable[[Mapping[str, Callable[[], Any]]], dict[str, Any]] | None = None

    def work(self, problem: Any, dtype: str, direction: str, device: torch.device) -> Work:
        """The same numbers in every run on the same kind of device; none on "meta"."""
        seed = crc32(repr((self.name, problem, dtype)).encode())
        generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        return Work(direction, problem, dtype, device, self.draw(problem, normal, STORAGE[dtype]))

    def named(self, direction: str, results: Results) -> dict[str, Value]:
        return dict(zip(self.passes[direction], self.compared(results), strict=True))

    def truth(self, work: Work) -> dict[str, Value]:
        """What ``work`` should yield: its definition in float64."""
        return self.named(work.direction, self.definition(work.with_inputs(Tensor.double)))

    def torch_errors(self, work: Work, truth: Mapping[str, Value]) -> dict[str, list[float]]:
        """How far the definition in the work's own dtype is from ``truth``: the worst of two memory formats and of the
        definition rewritten.

        Of several, since one draw of rounding errors may be lucky. Not a contender's, which would pass by itself.
        A number for each part of each result.
        """
        errors = {name: [0.0] * len(parts(true)) for name, true in truth.items()}
        layouts = (torch.channels_last, torch.contiguous_format)
        draws = [(self.definition, layout) for layout in layouts]
        draws += [(rewritten, torch.channels_last) for rewritten in self.rewritten]
        for definition, layout in draws:
            laid_out = work.with_inputs(partial(_laid_out, layout=layout))
            plain = self.named(work.direction, definition(laid_out))
            for name, true in truth.items():
                pairs = zip(parts(plain[name]), parts(true), strict=True)
                errors[name] = [max(worst, max_error(*pair)) for worst, pair in zip(errors[name], pairs, strict=True)]
        return errors


def _laid_out(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    return tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor


@dataclass(frozen=True)
class Row:
    """One pass over one subject in one dtype: what the contenders of a suite are compared on."""

    suite: Suite
    subject: Subject
    dtype: str
    direction: str

    @property
    def key(self) -> tuple[str, ...]:
        """(suite, pass, net, layer, dtype): what tells rows apart in results."""
        return (self.suite.name, self.direction, self.subject.net, self.subject.name, self.dtype)

    def names(self, contender: str) -> dict[str, str]:
        """How results files call one contender's part of it."""
        return names(self.key, contender)

    def work(self, device: torch.device) -> Work:
        return self.suite.work(self.subject.problem, self.dtype, self.direction, device)


def names(key: Sequence[str], contender: str) -> dict[str, str]:
    return dict(zip(("suite", "pass", "net", "layer", "dtype", "contender"), (*key, contender), strict=True))


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
) -> Callable[[], tuple[Tensor, ...]]:
    """A call of ``function(*leaves)`` that yields (output,), or with its backward (output, *gradients)."""
    if direction == "forward":

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (function(*leaves),)

        return forward
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]

    def forward_backward() -> tuple[Tensor, ...]:
        output = function(*leaves)
        return (output, *torch.autograd.grad(output, leaves, upstream))

    return forward_backward
