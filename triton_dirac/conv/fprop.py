"""fprop: the convolution forward, with its epilogue.

GEMM view: M = N*P*Q rows, N = K / groups columns, summed over (C / groups) * R * S; see ``taps``.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from triton_dirac.conv import fprop_configs as tuning
from triton_dirac.conv.config import Config
from triton_dirac.conv.direct import channels_last, direct_fprop, empty, prefers_direct, ready
from triton_dirac.conv.epilogue import PLAIN, Epilogue
from triton_dirac.conv.launch import WINDOW, plan
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.autotune import pick
from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.plan import Plan
from triton_dirac.runtime.targets import target_of


def fprop(
    x: Tensor,
    w: Tensor,
    problem: ConvProblem,
    epilogue: Epilogue = PLAIN,
    *,
    precision: str = "ieee",
    config: Config | None = None,
    steps: Plan | None = None,
) -> Tensor:
    """y = activation(conv(x, w) + bias[k] + alpha[k] * x[n, c(k), centre]), channels-last.

    x (N, C, H, W), w (K, C / groups, R, S). For alpha filter g * K/groups + d reads channel c = g * C/groups + d at tap
    (R // 2, S // 2) for d < min(K, C) / groups; centres outside the image count as 0. Sums are float32; ``precision``
    ("ieee", "tf32", "tf32x3") is how float32 operands are multiplied.
    """
    steps = steps or Plan()
    if config is None and (prefers_direct(problem) or max(problem.R, problem.S) > WINDOW):
        return direct_fprop(x, w, problem, epilogue, steps=steps)
    x, w = steps.do(channels_last, x), steps.do(channels_last, w)
    prepare = partial(prepare_fprop, x, w, problem, ready(epilogue, steps), precision=precision)
    if config is None:
        config = pick(
            "conv_fprop",
            problem,
            x.dtype,
            x.device,
            precision,
            promising=partial(tuning.promising, precision=precision),
            default=partial(tuning.default, precision=precision),
            plan=lambda config: prepare(config=config)[1],
        )
    y, launches = prepare(config=config, steps=steps)
    for launch in launches:
        steps.launch(launch)
    return y


def prepare_fprop(
    x: Tensor,
    w: Tensor,
    problem: ConvProblem,
    epilogue: Epilogue = PLAIN,
    *,
    precision: str = "ieee",
    config: Config,
    steps: Plan | None = None,
) -> tuple[Tensor, list[Launch]]:
    """The output, still empty, and the launches of :func:`fprop` that fill it; ``x`` and ``w`` are channels-last."""
    y = (steps or Plan()).new(empty(problem.output_shape, x))
    return y, plan_fprop(x, w, y, problem, epilogue, precision=precision, config=config)


def plan_fprop(
    x: Tensor,
    w: Tensor,
    y: Tensor,
    problem: ConvProblem,
    epilogue: Epilogue = PLAIN,
    *,
    precision: str = "ieee",
    config: Config | None = None,
) -> list[Launch]:
    """The launches of :func:`fprop`, for channels-last tensors of any device, "meta" included."""
    config = config or tuning.default(problem, x.dtype, target_of(x.device), precision)
    return plan(x, w, y, problem, epilogue, dgrad=False, precision=precision, config=config)
