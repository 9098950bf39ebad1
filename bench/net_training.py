"""Training steps of whole nets: the nets, what one step computes, and the implementations that are compared.

A step is forward, cross-entropy, backward and SGD with momentum, in mixed precision where the dtype has 16 bits. All
contenders train the same net from the same parameters: they differ in what its Dirac layers are, and in what runs it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import triton_dirac
from bench.contenders import convolution_and_identity, delta_of, eager_weight, weight_norm_weight
from bench.net_contenders import graphed
from bench.nets import NETS, convolutions, structure
from bench.peak_memory import peak_bytes
from bench.suite import Build, Contender, Results, Work
from bench.timing import Call, Outcomes, Samples, interleaved
from triton_dirac import reference
from triton_dirac.models import DIRACNETS
from triton_dirac.modules import DiracConv2d

PARTS = ("filters", "alpha", "beta", "rest")
STEPS_PER_SAMPLE = 4
LEAST_SAMPLES = 5  # of steps that take seconds: of fewer no interval is known, and so no verdict
LAST = torch.channels_last
WHOLE_STEPS = "wall clock of whole steps"


@dataclass(frozen=True)
class Training:
    """What a step is of. ``name`` stands for a layer's in results."""

    net: str
    batch: int
    published_batch: int
    name: str = "training step"
    count: int = 1
    has_identity: bool = True
    needs_input_grad: bool = False

    @property
    def problem(self) -> Training:
        return self

    @property
    def counts(self) -> Mapping[str, int]:
        return {self.net: self.count}

    @property
    def sizes(self) -> dict[str, Any]:
        return {"net": self.net, "batch": self.batch}

    @property
    def classes(self) -> int:
        return structure(self.net).fc.out_features  # type: ignore[union-attr, return-value]

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        size = NETS[self.net].image_size
        return self.batch, 3, size, size

    def shrunk(self) -> Training:
        return replace(self, batch=1)


def trainings(nets: Iterable[str], batch: int | None = None) -> list[Training]:
    """One subject for each of ``nets`` that is a published DiracNet."""
    return [Training(net, batch or NETS[net].batch, NETS[net].batch) for net in nets if net in DIRACNETS]


def parameters_like(net: str, normal: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    """Parameters as at the start of a training, drawn anew: alpha 1, beta 0.1, filters of kaiming_normal_'s size."""
    drawn = []
    for name, parameter in structure(net).named_parameters():
        shape = parameter.shape
        if len(shape) > 1:
            drawn.append(normal(*shape) * (2 / shape[1:].numel()) ** 0.5)
        else:
            start = {"alpha": 1.0, "beta": 0.1}.get(name.rpartition(".")[2], float("bn.weight" in name))
            drawn.append(torch.full_like(normal(*shape), start))
    return tuple(drawn)


def part_of(name: str) -> str:
    """Which of PARTS the parameter ``name`` belongs to."""
    last = name.rpartition(".")[2]
    if last in ("alpha", "beta"):
        return last
    return "filters" if ".conv.weight" in name and not name.startswith("stem") else "rest"


def cost(training: Training, storage: torch.dtype, direction: str) -> tuple[int, int]:
    """(flops of all convolutions, three passes but for the stem's dgrad; the bytes of the images): no least is known
    of the bytes, since fusion decides what need not move."""
    found = convolutions(training.net, training.batch)
    flops = sum(problem.flops * (3 if kind == "dirac" else 2) for _, kind, problem in found)
    return flops, torch.Size(training.image_shape).numel() * storage.itemsize


# --- one step ----------------------------------------------------------------------------------------------


class ChainLayer(nn.Module):
    """A Dirac layer whose filters torch prepares: ``prepare(weight, alpha, beta, delta, dtype)``."""

    def __init__(self, layer: DiracConv2d, prepare: Callable[..., Tensor]) -> None:
        super().__init__()
        self.weight, self.alpha, self.beta = layer.weight, layer.alpha, layer.beta
        self.padding, self.prepare = layer.padding, prepare
        self.register_buffer("delta", delta_of(tuple(layer.weight.shape)).to(layer.weight))

    def forward(self, x: Tensor) -> Tensor:
        filters = self.prepare(self.weight, self.alpha, self.beta, self.delta, x.dtype)
        return F.conv2d(x, filters, None, 1, self.padding)


def official(weight: Tensor, alpha: Tensor, beta: Tensor, delta: Tensor, dtype: torch.dtype) -> Tensor:
    """The official code's chain of operations."""
    return eager_weight(weight, alpha, beta, delta, weight.dtype, LAST).to(dtype)


def weight_norm(weight: Tensor, alpha: Tensor, beta: Tensor, delta: Tensor, dtype: torch.dtype) -> Tensor:
    return weight_norm_weight(weight, alpha, beta, weight.dtype, LAST).to(dtype)


def by_definition(weight: Tensor, alpha: Tensor, beta: Tensor, delta: Tensor, dtype: torch.dtype) -> Tensor:
    return reference.dirac_weight(weight, alpha, beta).to(dtype)


def build_net(work: Work, prepare: Callable[..., Tensor] | None, layer: type[ChainLayer] = ChainLayer) -> nn.Module:
    """The net with the work's parameters; its Dirac layers are ours, or each a ``layer`` with ``prepare``."""
    net = NETS[work.problem.net].build().to(work.device)
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), work.inputs["parameters"], strict=True):
            parameter.data = value.detach().clone()
    net.to(work.inputs["parameters"][0].dtype)  # batch-norm's statistics too
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DiracConv2d) and prepare is not None:
                setattr(parent, name, layer(child, prepare))
    return net.to(memory_format=LAST)  # type: ignore[call-overload]


def mixed(work: Work) -> AbstractContextManager[Any]:
    images: Tensor = work.inputs["images"]
    return torch.autocast(images.device.type, images.dtype) if images.dtype.itemsize == 2 else nullcontext()


def gradients(net: nn.Module, loss: Tensor) -> Results:
    """The loss, and every parameter's gradient, part by part."""
    found: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for name, parameter in net.named_parameters():
        found[part_of(name)].append(parameter.grad)  # type: ignore[arg-type]
    return loss.detach(), *(tuple(found[part]) for part in PARTS)


def end_to_end(results: Results) -> Results:
    """What is compared: each part's gradients end to end, every tensor divided by nothing but brought to one scale.

    Of a hundred tensors some small one errs twice as much as torch's by chance; of a part's millions of numbers the
    largest error does not.
    """
    return tuple(
        torch.cat([tensor.detach().double().flatten() for tensor in value]) if isinstance(value, tuple) else value
        for value in results
    )


def rounded_once(weight: Tensor, alpha: Tensor, beta: Tensor, delta: Tensor, dtype: torch.dtype) -> Tensor:
    return reference.dirac_weight(weight.double(), alpha.double(), beta.double()).to(dtype)


def definition(
    work: Work, prepare: Callable[..., Tensor] = by_definition, layer: type[ChainLayer] = ChainLayer
) -> Results:
    """The step by the definition: plain torch, eager, without the optimiser, which changes no gradient."""
    net = build_net(work, prepare, layer)
    with mixed(work):
        loss = F.cross_entropy(net(work.inputs["images"]), work.inputs["labels"])
    loss.backward()
    return gradients(net, loss)


def with_filters_rounded_once(work: Work) -> Results:
    """The same from filters that differ in their last bit. Batch-norms over few images make much of it: with a batch of
    2 the gradient of DiracNet-28-10's alphas is off by 0.1 % of the largest in float32, or by fifteen times that."""
    return definition(work, rounded_once)


class IdentityApart(ChainLayer):
    """A layer in the split form, in operations of torch."""

    def forward(self, x: Tensor) -> Tensor:
        return convolution_and_identity(x, self.weight, self.alpha, self.beta, padding=self.padding)


def with_the_identity_apart(work: Work) -> Results:
    """The same where each convolution's result is rounded before its identity's term is added. From one image in
    float16 the gradient of DiracNet-18's filters is off by a quarter of the largest, or by three times that."""
    return definition(work, by_definition, IdentityApart)


# --- contenders --------------------------------------------------------------------------------------------


def _step(prepare: Callable[..., Tensor] | None, one_launch: bool = False, compiled: bool = False) -> Build:
    def build(work: Work) -> Callable[[], Results]:
        net = build_net(work, prepare)
        run = torch.compile(net) if compiled else net
        optimiser = torch.optim.SGD(triton_dirac.parameter_groups(net, 5e-4), lr=1e-3, momentum=0.9)
        images, labels = work.inputs["images"].contiguous(memory_format=LAST), work.inputs["labels"]

        def step() -> Results:
            with triton_dirac.prepared(net) if one_launch else nullcontext(), mixed(work):
                loss = F.cross_entropy(run(images), labels)
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
            return gradients(net, loss)

        return step

    return build


class StepTimer:
    """Wall clock of whole steps: on a GPU several in a row, in which the host runs ahead, and then a wait for it."""

    def __init__(self, call: Call) -> None:
        on_gpu = torch.cuda.is_available()
        self._call, self._wait = call, torch.cuda.synchronize if on_gpu else lambda: None
        self._steps = STEPS_PER_SAMPLE if on_gpu else 1
        self._seconds, self._host = list[float](), list[float]()
        for _ in range(2):  # the first compiles, allocates and captures
            self.sample()
        self.estimate = self._seconds[-1] * self._steps
        self._seconds, self._host = [], []
        self._peak = peak_bytes(call)

    def sample(self) -> None:
        self._wait()
        start = time.perf_counter()
        for _ in range(self._steps):
            self._call()
        self._host.append((time.perf_counter() - start) / self._steps)
        self._wait()
        self._seconds.append((time.perf_counter() - start) / self._steps)

    def samples(self) -> Samples:
        return Samples(self._seconds, self._steps, 1e6 * statistics.median(self._host), WHOLE_STEPS, self._peak)


def step_samples(calls: Mapping[str, Call]) -> Outcomes:
    return interleaved(calls, StepTimer, budget=3.0, least=LEAST_SAMPLES, most=20)


def _on_a_cpu(problem: Training, dtype: str, direction: str, device: torch.device) -> str | None:
    return "no GPU: torch.compile takes a CPU minutes for a whole net" if device.type == "cpu" else None


EAGER = (
    Contender("reference", "eager", _step(official)),
    Contender("weight_norm", "eager", _step(weight_norm)),
    Contender("DiracConv2d", "eager", _step(None)),
    Contender("prepared", "eager", _step(None, one_launch=True)),
)
TRAINING_STEP = (
    *EAGER,
    *(graphed(known) for known in EAGER if known.name != "DiracConv2d"),
    Contender("reference-compile", "compile", _step(official, compiled=True), _on_a_cpu),
    Contender("DiracConv2d-compile", "compile", _step(None, compiled=True), _on_a_cpu),
)
