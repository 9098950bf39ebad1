"""The implementations that are compared, by suite. All of a suite take the same inputs to the same results.

Each builder lays out its inputs first and returns the call that is timed. The contender ``reference`` is not
the definition (``triton_dirac.reference``, written to be right) but the eager chain that DiracNets' own code
runs, delta kept in a buffer: a rival, not a straw man. ``auto`` is what a user gets from ``triton_dirac`` without
asking for a backend: on a GPU the faster kernel, on a CPU the project's torch operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import triton_dirac
from bench import peers
from bench.compiled import compiled, compiled_for_all_sizes
from bench.loaders import forced
from bench.suite import Build, Contender, Results, Work, call_of
from triton_dirac import reference

LAST, FIRST = torch.channels_last, torch.contiguous_format


def delta_of(weight_shape: tuple[int, ...]) -> Tensor:
    return torch.nn.init.dirac_(torch.empty(weight_shape))


def convolution_and_identity(x: Tensor, weight: Tensor, alpha: Tensor, beta: Tensor, **geometry: Any) -> Tensor:
    """The split form in operations of torch: rounded once more, before the identity's term is added."""
    delta = reference.dirac_delta(weight.shape, geometry.get("groups", 1), dtype=x.dtype, device=x.device)
    identity = F.conv2d(x, delta, None, **geometry) * alpha.to(x.dtype).view(1, -1, 1, 1)
    return reference.dirac_conv2d(x, weight, torch.zeros_like(alpha), beta, **geometry) + identity


def eager_weight(
    weight: Tensor,
    alpha: Tensor,
    beta: Tensor,
    delta: Tensor,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> Tensor:
    """alpha * I + beta * W / ||W||, as torch operations one by one."""
    rows = (-1, 1, 1, 1)
    normalised = F.normalize(weight.flatten(1)).view_as(weight)
    return (alpha.view(rows) * delta + beta.view(rows) * normalised).to(dtype, memory_format=layout)


def weight_norm_weight(
    weight: Tensor, alpha: Tensor, beta: Tensor, dtype: torch.dtype, layout: torch.memory_format
) -> Tensor:
    """beta * W / ||W|| in one fused operation of torch, then alpha added to the diagonal alone."""
    prepared = torch._weight_norm(weight, beta.view(-1, 1, 1, 1), 0)
    _, _, height, width = weight.shape
    diagonal = prepared[:, :, height // 2, width // 2].diagonal()
    diagonal.add_(alpha[: diagonal.shape[0]])
    return prepared.to(dtype, memory_format=layout)


# --- weight preparation -----------------------------------------------------------------------------------


def _prep(prepare: Callable[[Work], Callable[..., Tensor]]) -> Build:
    def build(work: Work) -> Callable[[], Results]:
        leaves = [work.inputs[name] for name in ("weight", "alpha", "beta")]
        return call_of(prepare(work), leaves, work.inputs["grad"], work.direction)

    return build


def _delta(work: Work) -> Tensor:
    return delta_of(work.problem.weight_shape).to(work.device)


def _prep_eager(work: Work) -> Callable[..., Tensor]:
    delta, dtype = _delta(work), work.storage
    return lambda weight, alpha, beta: eager_weight(weight, alpha, beta, delta, dtype, LAST)


def _prep_compile(work: Work) -> Callable[..., Tensor]:
    delta, dtype = _delta(work), work.storage
    if work.device.type == "cuda":
        chain = compiled(eager_weight, dynamic=False)
    else:
        chain = compiled_for_all_sizes(eager_weight, dtype, LAST, work.device)
    return lambda weight, alpha, beta: chain(weight, alpha, beta, delta, dtype, LAST)


def _prep_weight_norm(work: Work) -> Callable[..., Tensor]:
    dtype = work.storage
    return lambda weight, alpha, beta: weight_norm_weight(weight, alpha, beta, dtype, LAST)


def _prep_ours(backend: str) -> Callable[[Work], Callable[..., Tensor]]:
    def prepare(work: Work) -> Callable[..., Tensor]:
        return partial(triton_dirac.dirac_weight, dtype=work.storage, memory_format=LAST, backend=backend)

    return prepare


WEIGHT_PREP = (
    Contender("reference", "eager", _prep(_prep_eager)),
    Contender("weight_norm", "eager", _prep(_prep_weight_norm)),
    Contender("compile", "compile", _prep(_prep_compile)),
    Contender("triton", "triton", _prep(_prep_ours("triton"))),
    Contender("auto", "eager", _prep(_prep_ours("auto"))),
)


# --- convolution ------------------------------------------------------------------------------------------


def _conv(convolve: Callable[..., Tensor], layout: torch.memory_format = LAST) -> Build:
    """dgrad and wgrad are autograd's, each alone: only one of x and w asks for its gradient."""

    def build(work: Work) -> Callable[[], Results]:
        x, w, dy = (work.inputs[name].contiguous(memory_format=layout) for name in ("x", "w", "dy"))
        run = partial(convolve, bias=None, **work.geometry)
        if work.direction == "fprop":
            return call_of(run, (x, w), dy, "forward")
        leaf = (x if work.direction == "dgrad" else w).detach().requires_grad_()
        y = run(leaf, w) if work.direction == "dgrad" else run(x, leaf)
        return lambda: torch.autograd.grad(y, leaf, dy, retain_graph=True)

    return build


def _conv_forced(loader: str) -> Contender:
    lacks, build = forced(loader)
    return Contender(f"triton-{loader}", "triton", build, lacks)


CONV = (
    Contender("torch", "cpu", _conv(F.conv2d)),
    Contender("torch-nchw", "cpu", _conv(F.conv2d, FIRST)),
    Contender("cudnn", "cudnn", _conv(F.conv2d)),
    Contender("cudnn-nchw", "cudnn", _conv(F.conv2d, FIRST)),
    Contender("inductor", "inductor", peers.inductor, peers.inductor_lacks),
    Contender("flag_gems", "flag_gems", peers.flag_gems, peers.flag_gems_lacks),
    Contender("triton", "triton", _conv(partial(triton_dirac.conv2d, backend="triton"))),
    *(_conv_forced(loader) for loader in ("gather", "tile")),
    Contender("auto", "eager", _conv(partial(triton_dirac.conv2d, backend="auto"))),
)


# --- Dirac block: ReLU, Dirac convolution, batch-norm in training mode ------------------------------------

Convolve = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _block(
    convolve: Callable[[Work], Convolve], layout: torch.memory_format = LAST, is_compiled: bool = False
) -> Build:
    def build(work: Work) -> Callable[[], Results]:
        run = convolve(work)
        gamma, shift = work.inputs["gamma"], work.inputs["shift"]

        def block(x: Tensor, weight: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
            y = run(F.relu(x), weight, alpha, beta)
            return F.batch_norm(y, None, None, gamma, shift, training=True)

        x, dy = (work.inputs[name].contiguous(memory_format=layout) for name in ("x", "dy"))
        leaves = [x, *(work.inputs[name] for name in ("weight", "alpha", "beta"))]
        return call_of(compiled(block, dynamic=False) if is_compiled else block, leaves, dy, work.direction)

    return build


def _block_eager(layout: torch.memory_format) -> Callable[[Work], Convolve]:
    def convolve(work: Work) -> Convolve:
        delta, dtype, geometry = _delta(work), work.storage, work.geometry
        return lambda x, weight, alpha, beta: F.conv2d(
            x, eager_weight(weight, alpha, beta, delta, dtype, layout), None, **geometry
        )

    return convolve


def _block_weight_norm(work: Work) -> Convolve:
    dtype, geometry = work.storage, work.geometry
    return lambda x, weight, alpha, beta: F.conv2d(
        x, weight_norm_weight(weight, alpha, beta, dtype, LAST), None, **geometry
    )


def _block_ours(form: str, backend: str) -> Callable[[Work], Convolve]:
    def convolve(work: Work) -> Convolve:
        return partial(triton_dirac.dirac_conv2d, **work.geometry, form=form, backend=backend)

    return convolve


def _block_prep_and_torch(work: Work) -> Convolve:
    prepare, geometry = _prep_ours("triton")(work), work.geometry
    return lambda x, weight, alpha, beta: F.conv2d(x, prepare(weight, alpha, beta), None, **geometry)


DIRAC_BLOCK = (
    Contender("reference", "eager", _block(_block_eager(LAST))),
    Contender("reference-nchw", "eager", _block(_block_eager(FIRST), FIRST)),
    Contender("weight_norm", "eager", _block(_block_weight_norm)),
    Contender("compile", "compile", _block(_block_eager(LAST), is_compiled=True)),
    Contender("triton-split", "triton", _block(_block_ours("split", "triton"))),
    Contender("triton-materialised", "triton", _block(_block_ours("materialised", "triton"))),
    Contender("triton-prep+cudnn", "triton", _block(_block_prep_and_torch)),
    Contender("auto", "eager", _block(_block_ours("split", "auto"))),
)
