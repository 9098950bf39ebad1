"""Inference of whole nets: the nets of ``net_training`` in evaluation mode, and what they are folded into.

The official formulation makes every layer's filters anew at each forward pass, for inference too; a folded net has none
to make, and no batch-norms. All contenders have the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

import triton_dirac
from bench.net_contenders import graphed
from bench.net_training import LAST, Training, build_net, by_definition, mixed, official, weight_norm
from bench.nets import convolutions
from bench.suite import Build, Contender, Results, Work


def cost(training: Training, storage: torch.dtype, direction: str) -> tuple[int, int]:
    """(flops of all convolutions, the bytes of the images): no least is known of the bytes, as in training."""
    flops = sum(found.problem.flops for found in convolutions(training.net, training.batch))
    return flops, torch.Size(training.image_shape).numel() * storage.itemsize


def definition(work: Work) -> Results:
    """The logits by the definition: plain torch, eager."""
    net = build_net(work, by_definition).eval()
    with torch.no_grad(), mixed(work):
        logits: Tensor = net(work.inputs["images"])
    return (logits,)


def _inference(
    prepare: Callable[..., Tensor] | None, *, one_launch: bool = False, compiled: bool = False, folded: bool = False
) -> Build:
    def build(work: Work) -> Callable[[], Results]:
        net = build_net(work, prepare).eval()
        images = work.inputs["images"].contiguous(memory_format=LAST)
        if folded:
            net = triton_dirac.fold(net).to(memory_format=LAST)  # type: ignore[call-overload]
        run = torch.compile(net) if compiled else net

        def infer() -> Results:
            with torch.no_grad(), triton_dirac.prepared(net) if one_launch else nullcontext(), mixed(work):
                return (run(images),)

        return infer

    return build


def _on_a_cpu(problem: Training, dtype: str, direction: str, device: torch.device) -> str | None:
    return "no GPU: torch.compile takes a CPU minutes for a whole net" if device.type == "cpu" else None


EAGER = (
    Contender("reference", "eager", _inference(official)),
    Contender("weight_norm", "eager", _inference(weight_norm)),
    Contender("DiracConv2d", "eager", _inference(None)),
    Contender("prepared", "eager", _inference(None, one_launch=True)),
    Contender("folded", "eager", _inference(None, folded=True)),
)
NET_INFERENCE = (
    *EAGER,
    *(graphed(known) for known in EAGER if known.name in ("reference", "prepared", "folded")),
    Contender("reference-compile", "compile", _inference(official, compiled=True), _on_a_cpu),
    Contender("DiracConv2d-compile", "compile", _inference(None, compiled=True), _on_a_cpu),
    Contender("folded-compile", "compile", _inference(None, compiled=True, folded=True), _on_a_cpu),
)
