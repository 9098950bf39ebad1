"""Other projects' Triton convolutions: Inductor's templates and FlagGems. Both get channels-last images.

They need a GPU. What breaks in them is a reason in the report and no failure of ours.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.compiled import compiled
from bench.suite import Results, Work
from triton_dirac.conv.problem import ConvProblem

ENGINES = ("inductor", "flag_gems")

# Which backends Inductor chooses from, by pass: those of the backward came with torch 2.13, and are off for CUDA.
TEMPLATES = {
    "fprop": "max_autotune_conv_backends",
    "dgrad": "max_autotune_conv_bwd_input_backends",
    "wgrad": "max_autotune_conv_bwd_weight_backends",
}
GENERATED = "@triton_heuristics.template"  # what stands above a kernel made from a template


def inductor_lacks(problem: ConvProblem, dtype: str, direction: str, device: torch.device) -> str | None:
    from torch._inductor import config

    has_template = hasattr(config, TEMPLATES[direction])
    return None if has_template else f"Inductor of torch {torch.__version__} has no Triton template for {direction}"


def inductor(work: Work) -> Callable[[], Results]:
    """torch.compile of one pass with Inductor's Triton template as its only choice, tuned over its own configs.

    Raises RuntimeError if Inductor takes something else all the same, and what torch.compile raises.
    """
    from torch._inductor.utils import run_and_get_code

    x, w, dy = (work.inputs[name] for name in ("x", "w", "dy"))
    stride, padding, dilation, groups = work.geometry.values()
    geometry = stride, padding, dilation, False, (0, 0), groups

    def fprop(x: Tensor, w: Tensor) -> Tensor:
        return torch.ops.aten.convolution(x, w, None, *geometry)

    def dgrad(dy: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return torch.ops.aten.convolution_backward(dy, x, w, None, *geometry, (True, False, False))[0]

    def wgrad(dy: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return torch.ops.aten.convolution_backward(dy, x, w, None, *geometry, (False, True, False))[1]

    passes: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "fprop": (fprop, (x, w)), "dgrad": (dgrad, (dy, x, w)), "wgrad": (wgrad, (dy, x, w)),
    }  # fmt: skip
    function, tensors = passes[work.direction]
    # The cache of graphs does not tell float32 from TF32 convolutions (torch 2.13).
    options: dict[str, Any] = {"max_autotune": True, TEMPLATES[work.direction]: "TRITON", "fx_graph_cache": False}
    call = compiled(function, dynamic=False, options=options)
    _, codes = run_and_get_code(call, *tensors)
    if not codes:
        raise RuntimeError("Inductor generated no code, so that whether it has a template is not known")
    if not any(GENERATED in code for code in codes):
        raise RuntimeError("Inductor takes no Triton template for this convolution")
    return lambda: (call(*tensors),)


def flag_gems_lacks(problem: ConvProblem, dtype: str, direction: str, device: torch.device) -> str | None:
    if importlib.util.find_spec("flag_gems") is None:
        return "flag_gems is not installed: pip install 'triton-dirac[peers]'"
    if direction != "fprop":
        return "FlagGems computes both gradients in one call, so neither has a time of its own"
    return "FlagGems has no TF32: its convolution multiplies float32 in full" if dtype == "tf32" else None


def flag_gems(work: Work) -> Callable[[], Results]:
    """``flag_gems.conv2d``: it reads images by their strides and writes NCHW."""
    conv2d = importlib.import_module("flag_gems").conv2d
    x, w, geometry = work.inputs["x"], work.inputs["w"], work.geometry

    def call() -> Results:
        with torch.no_grad():
            return (conv2d(x, w, None, **geometry),)

    return call
