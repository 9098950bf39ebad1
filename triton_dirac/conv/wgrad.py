"""Weight gradient of a convolution as an implicit GEMM: M = K, N = R*S*C, reduction over the N*P*Q pixels.

    dw[k, r, s, c] = sum over n, p, q of dy[n, p, q, k] * x[n, p*sh - top + r*dh, q*sw - left + s*dw, c]

The reduction is split in ``split_k`` parts, each of which writes its own float32 plane of a workspace; a
second kernel adds the planes in order. No atomics: the result is bitwise the same from run to run. dw is
written in the weight's own layout, K, R, S, C.

The config's loader says in which order pixels are walked: "batch", one pixel of block_k images a step, or "gather",
block_k consecutive pixels a step (both in ``wgrad_kernels``); "tile" is batch order through tensor descriptors
(``wgrad_descriptor``).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from triton_dirac.conv import wgrad_configs as tuning
from triton_dirac.conv.config import Config
from triton_dirac.conv.direct import channels_last, direct_wgrad, empty, prefers_direct
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.conv.wgrad_descriptor import wgrad_tile_kernel
from triton_dirac.conv.wgrad_kernels import reduce_kernel, wgrad_batch_kernel, wgrad_pixel_kernel
from triton_dirac.runtime.autotune import pick
from triton_dirac.runtime.launch import INTERPRETED, Launch
from triton_dirac.runtime.plan import Plan
from triton_dirac.runtime.targets import Target, target_of

INT32_LIMIT = 2**31 - 1
REDUCE_BLOCK = 1024


def _is_linear(problem: ConvProblem) -> bool:
    """Whether x's address is linear in the pixel: the jumps at the ends of rows and images are zero."""
    sh, sw = problem.stride
    return sh * problem.W == sw * problem.Q and sh * problem.P == problem.H


def is_padded(problem: ConvProblem) -> bool:
    """Whether any tap of any output reads outside the image."""
    (sh, sw), (dh, dw), (top, _, left, _) = problem.stride, problem.dilation, problem.padding
    below = (problem.P - 1) * sh - top + (problem.R - 1) * dh >= problem.H
    right = (problem.Q - 1) * sw - left + (problem.S - 1) * dw >= problem.W
    return bool(top or left or below or right)


def split_steps(problem: ConvProblem, config: Config, split_k: int) -> tuple[int, int]:
    """(splits, most steps of one): no split is empty, and none is longer than int32 offsets hold.

    Raises ValueError for ``split_k`` below 1, and for a "batch" config whose tile int32 offsets cannot span.
    """
    if split_k < 1:
        raise ValueError(f"split_k must be at least 1, got {split_k}")
    image_x, image_dy = problem.H * problem.W * problem.C, problem.P * problem.Q * problem.K
    outputs = problem.P * problem.Q
    if config.loader == "tile":
        steps, most = -(-problem.N // config.block_k) * outputs, INT32_LIMIT
    elif config.loader == "batch":
        if (config.block_k + 1) * max(image_x, image_dy) > INT32_LIMIT:
            raise ValueError(f"config {config.name}: {config.block_k} images exceed int32 offsets; use gather")
        steps, most = -(-problem.N // config.block_k) * outputs, INT32_LIMIT
    else:
        steps = -(-problem.N * outputs // config.block_k)
        # A split's rows of x start in one image and may end in one more than they fill.
        images = INT32_LIMIT // image_x - 2
        most = min(images * outputs, INT32_LIMIT - config.block_k) // config.block_k
    steps = max(1, steps)
    per_split = min(-(-steps // split_k), max(1, most))
    return -(-steps // per_split), per_split


def plan_wgrad(
    dy: Tensor,
    x: Tensor,
    dw: Tensor,
    workspace: Tensor | None,
    problem: ConvProblem,
    *,
    precision: str = "ieee",
    config: Config,
    split_k: int,
) -> list[Launch]:
    """The launches of wgrad: one when the reduction is not split, else two.

    dy: (N, K, P, Q), x: (N, C, H, W), dw: (K, C/groups, R, S), all channels-last dense. workspace: float32 of
    ``workspace_shape``, or None where that is None.
    """
    K, Kg = problem.K, problem.K // problem.groups
    C, Cg = problem.C, problem.C // problem.groups
    columns = problem.R * problem.S * Cg
    splits, steps = split_steps(problem, config, split_k)
    out = dw if workspace is None else workspace
    if config.loader == "tile":
        main = _plan_tile(dy, x, out, problem, precision=precision, config=config, splits=splits)
        return [main] if workspace is None else [main, _plan_reduce(workspace, dw, splits)]
    tiles_m, tiles_n = triton.cdiv(Kg, config.block_m), triton.cdiv(columns, config.block_n)
    width = 16 // dy.element_size()
    vector_k, vector_c = math.gcd(width, Kg), math.gcd(width, Cg)
    image, pixels = problem.P * problem.Q, problem.N * problem.P * problem.Q
    args = {
        "dy": dy, "x": x, "out": out,
        "vectors_K": K // vector_k, "Kg": Kg, "vectors_C": C // vector_c, "Cg": Cg, "columns": columns,
        "H": problem.H, "W": problem.W, "P": problem.P, "Q": problem.Q, "S": problem.S,
        "stride_h": problem.stride[0], "stride_w": problem.stride[1],
        "pad_top": problem.padding[0], "pad_left": problem.padding[2],
        "dilation_h": problem.dilation[0], "dilation_w": problem.dilation[1],
        "tiles_m": tiles_m, "tiles_n": tiles_n, "groups": problem.groups,
    }  # fmt: skip
    constexprs = {
        "PADDED": is_padded(problem), "VECTOR_K": vector_k, "VECTOR_C": vector_c, "PRECISION": precision,
        "WIDEN": _widen(dy),
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k,
        "GROUP_M": config.group_m,
    }  # fmt: skip
    if config.loader == "batch":
        kernel = wgrad_batch_kernel
        args |= {"N": problem.N, "splits": splits}
        constexprs |= {"ONE_TAP": Cg % config.block_n == 0, "EVEN": problem.N % config.block_k == 0}
    else:
        kernel = wgrad_pixel_kernel
        args |= {
            "pixels": pixels, "steps_per_split": steps,
            "step_n": config.block_k // image, "step_p": config.block_k % image // problem.Q,
            "step_q": config.block_k % problem.Q, "step_image": config.block_k % image,
        }  # fmt: skip
        constexprs |= {
            "LINEAR": _is_linear(problem), "EVEN": pixels % config.block_k == 0,
            "Q_MOVES": config.block_k % problem.Q != 0, "P_MOVES": config.block_k % image != 0,
        }  # fmt: skip
    main = Launch(
        kernel=kernel,
        grid=(tiles_m * tiles_n * problem.groups * splits,),
        args=args,
        constexprs=constexprs,
        options=config.options,
    )
    return [main] if workspace is None else [main, _plan_reduce(workspace, dw, splits)]


def _plan_tile(
    dy: Tensor, x: Tensor, out: Tensor, problem: ConvProblem, *, precision: str, config: Config, splits: int
) -> Launch:
    """The tile loader's launch, for a problem that ``tile_applies`` to."""
    N, K, P, Q = problem.output_shape
    _, C, H, W = problem.input_shape
    tiles_m, tiles_row = triton.cdiv(K, config.block_m), triton.cdiv(problem.S * C, config.columns)

    def x_tiles(block_n: int) -> TensorDescriptor:
        return TensorDescriptor(x, [H, N, W * C], [W * C, H * W * C, 1], [1, config.block_k, block_n])

    args = {
        "dy_tiles": TensorDescriptor(dy, [P * Q, N, K], [K, P * Q * K, 1], [1, config.block_k, config.block_m]),
        "x_tiles": x_tiles(config.block_n), "extra_tiles": x_tiles(config.extra_n) if config.extra_n else None,
        "out": out, "N": N, "C": C, "K": K, "columns": problem.R * problem.S * C,
        "H": H, "W": W, "P": P, "Q": Q, "S": problem.S,
        "stride_h": problem.stride[0], "stride_w": problem.stride[1],
        "pad_top": problem.padding[0], "pad_left": problem.padding[2], "dilation_h": problem.dilation[0],
        "tiles_m": tiles_m, "tiles_n": problem.R * tiles_row, "tiles_row": tiles_row, "splits": splits,
    }  # fmt: skip
    constexprs = {
        "PRECISION": precision, "WIDEN": _widen(dy),
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "EXTRA_N": config.extra_n, "BLOCK_K": config.block_k,
        "GROUP_M": config.group_m,
    }  # fmt: skip
    grid = (tiles_m * problem.R * tiles_row * splits,)
    return Launch(wgrad_tile_kernel, grid, args, constexprs, config.options)


def _plan_reduce(workspace: Tensor, dw: Tensor, splits: int) -> Launch:
    elements = dw.numel()
    args = {"workspace": workspace, "dw": dw, "elements": elements, "splits": splits}
    grid = (triton.cdiv(elements, REDUCE_BLOCK),)
    return Launch(reduce_kernel, grid, args, {"BLOCK": REDUCE_BLOCK}, {"num_warps": 4, "num_stages": 4})


def _widen(dy: Tensor) -> bool:
    """The interpreter's dot reads bfloat16's bits as integers (Triton 3.6 to 3.9)."""
    return INTERPRETED and dy.dtype == torch.bfloat16


def readable(config: Config, dy: Tensor, x: Tensor, problem: ConvProblem) -> Config:
    """The config, or where descriptors cannot read these tensors, the same tile of another loader."""
    aligned = not (dy.data_ptr() | x.data_ptr()) % 16
    if config.loader != "tile" or (aligned and problem.N and tuning.tile_applies(problem, dy.dtype)):
        return config
    loader = "batch" if tuning.fits_batch(problem, config.block_k) else "gather"
    return replace(config, loader=loader, extra_n=0)


def workspace_shape(problem: ConvProblem, config: Config, split_k: int) -> tuple[int, ...] | None:
    """(splits, K, R, S, C/groups) of the float32 workspace, None where the reduction is not split."""
    splits, _ = split_steps(problem, config, split_k)
    K, Cg, R, S = problem.weight_shape
    return (splits, K, R, S, Cg) if splits > 1 else None


def wgrad(
    dy: Tensor,
    x: Tensor,
    problem: ConvProblem,
    *,
    dtype: torch.dtype,
    precision: str = "ieee",
    config: Config | None = None,
    split_k: int | None = None,
    steps: Plan | None = None,
) -> Tensor:
    """dw = the weight's gradient, (K, C/groups, R, S) channels_last of ``dtype``; zeros for an empty batch.

    dy: (N, K, P, Q) and x: (N, C, H, W), of one dtype and any memory format (channels_last is not copied).
    Sums are float32. precision, for float32 operands: "ieee", "tf32" or "tf32x3". The workspace of a split
    reduction is at most ``wgrad_configs.SPLIT_K_BYTES`` unless ``split_k`` is forced higher or int32
    offsets ask for more splits.
    """
    steps = steps or Plan()
    dy, x = steps.do(channels_last, dy), steps.do(channels_last, x)
    target = target_of(x.device)
    if config is None and split_k is None and prefers_direct(problem):
        return direct_wgrad(dy, x, problem, dtype=dtype, steps=steps)
    ready = partial(prepare_wgrad, dy, x, problem, dtype=dtype, precision=precision, target=target)
    if config is None:
        config = pick(
            "conv_wgrad",
            problem,
            x.dtype,
            x.device,
            precision,
            promising=partial(tuning.promising, precision=precision),
            default=partial(tuning.default, precision=precision),
            plan=lambda config: ready(config=config)[1],
        )
    dw, launches = ready(config=config, split_k=split_k, steps=steps)
    for launch in launches:
        steps.launch(launch)
    return dw


def prepare_wgrad(
    dy: Tensor,
    x: Tensor,
    problem: ConvProblem,
    *,
    dtype: torch.dtype,
    precision: str = "ieee",
    config: Config,
    split_k: int | None = None,
    target: Target,
    steps: Plan | None = None,
) -> tuple[Tensor, list[Launch]]:
    """dw, still empty, and the launches of :func:`wgrad` that fill it; ``dy`` and ``x`` are channels-last."""
    steps = steps or Plan()
    config = readable(config, dy, x, problem)
    if split_k is None:
        split_k = tuning.split_k(problem, config, target)
    dw = steps.new(empty(problem.weight_shape, x, dtype))
    shape = workspace_shape(problem, config, split_k)
    workspace = None if shape is None else steps.new(torch.empty(shape, dtype=torch.float32, device=x.device))
    return dw, plan_wgrad(dy, x, dw, workspace, problem, precision=precision, config=config, split_k=split_k)
