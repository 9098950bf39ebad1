"""dgrad: the gradient of the convolution's input, with the identity's gradient in its epilogue.

GEMM view: M = N*H*W rows, N = C / groups columns, summed over (K / groups) * R * S; for strides above 1, one
such problem per stride phase over the taps that reach it, without zero insertion or atomics.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from triton_dirac.conv import dgrad_configs as tuning
from triton_dirac.conv.config import Config
from triton_dirac.conv.direct import channels_last, direct_dgrad, empty, per_filter, prefers_direct
from triton_dirac.conv.epilogue import Epilogue
from triton_dirac.conv.launch import WINDOW, plan
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.autotune import pick
from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.plan import Plan
from triton_dirac.runtime.targets import Target, target_of


def dgrad(
    dy: Tensor,
    w: Tensor,
    alpha: Tensor | None,
    problem: ConvProblem,
    *,
    precision: str = "ieee",
    config: Config | None = None,
    steps: Plan | None = None,
) -> Tensor:
    """dx = conv_transpose(dy, w) + alpha[k] * dy[n, k, where the centre tap reads], channels-last.

    dy (N, K, P, Q), w (K, C / groups, R, S), alpha (K,), (1,) or None, as fprop's. Input pixels that no tap
    reads get 0. Sums are float32; ``precision`` and ``config`` as fprop's.
    """
    steps = steps or Plan()
    if config is None and (prefers_direct(problem) or max(problem.R, problem.S) > WINDOW):
        return direct_dgrad(dy, w, alpha, problem, steps=steps)
    dy, w, alpha = steps.do(channels_last, dy), steps.do(channels_last, w), per_filter(alpha, steps)
    ready = partial(prepare_dgrad, dy, w, alpha, problem, precision=precision, target=target_of(dy.device))
    if config is None:
        config = pick(
            "conv_dgrad",
            problem,
            dy.dtype,
            dy.device,
            precision,
            promising=partial(tuning.promising, precision=precision),
            default=partial(tuning.default, precision=precision),
            plan=lambda config: ready(config=config)[1],
        )
    dx, launches = ready(config=config, steps=steps)
    for launch in launches:
        steps.launch(launch)
    return dx


def prepare_dgrad(
    dy: Tensor,
    w: Tensor,
    alpha: Tensor | None,
    problem: ConvProblem,
    *,
    precision: str = "ieee",
    config: Config,
    target: Target,
    steps: Plan | None = None,
) -> tuple[Tensor, list[Launch]]:
    """The gradient, still empty, and the launches of :func:`dgrad` that fill it; ``dy`` and ``w`` are channels-last."""
    steps = steps or Plan()
    dx = steps.new(empty(problem.input_shape, dy))
    k_contiguous = tuning.wants_k_contiguous(config, target)
    filters = steps.do(partial(with_k_contiguous, groups=problem.groups), w) if k_contiguous else w
    how: dict[str, Any] = {"precision": precision, "config": config, "k_contiguous": k_contiguous}
    return dx, plan_dgrad(dy, filters, dx, alpha, problem, **how)


def with_k_contiguous(w: Tensor, groups: int) -> Tensor:
    """(K, C / groups, R, S) -> (C, R, S, K / groups), taps rotated: the filters of dgrad seen as a convolution,
    whose sum runs over K fastest."""
    return w.flip(2, 3).unflatten(0, (groups, -1)).permute(0, 2, 3, 4, 1).flatten(0, 1).contiguous()


def plan_dgrad(
    dy: Tensor,
    w: Tensor,
    dx: Tensor,
    alpha: Tensor | None,
    problem: ConvProblem,
    *,
    precision: str = "ieee",
    config: Config | None = None,
    k_contiguous: bool = False,
) -> list[Launch]:
    """The launches of :func:`dgrad`, for channels-last tensors of any device, "meta" included.

    ``k_contiguous``: ``w`` is what :func:`with_k_contiguous` makes.
    """
    config = config or tuning.default(problem, dy.dtype, target_of(dy.device), precision)
    return plan(
        *(dy, w, dx, problem, Epilogue(alpha=alpha)),
        dgrad=True,
        precision=precision,
        config=config,
        k_contiguous=k_contiguous,
    )
