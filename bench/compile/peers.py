"""Other people's convolution kernels, read when asked for from their installed packages; none is kept here.

Their tile is the job's config, else our fprop's default. A package that is absent raises NotInstalled, which
the table shows as a row.
"""

from __future__ import annotations

import ast
import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton

from triton_dirac.conv import fprop_configs as fprop_tuning
from triton_dirac.conv.config import Config
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.targets import TARGETS

from .jobs import Job

_FOLDER = tempfile.TemporaryDirectory(prefix="triton-dirac-peers-")  # the JIT reads its source from a file


class NotInstalled(Exception):
    """The peer's package is not installed."""


def plan_inductor(job: Job) -> tuple[str, list[Launch]]:
    """torch.compile's template for channels-last tensors, its sizes constants as Inductor has them."""
    try:
        from torch._inductor.kernel.conv import conv2d_template
    except ImportError as error:
        raise NotInstalled(f"torch {torch.__version__} has no convolution template") from error
    p, config = job.problem, _config(job)
    x, w, y = _tensors(job)
    shapes, tensors = {"X": x.shape, "W": w.shape, None: y.shape}, {"X": x, "W": w}
    constants = {
        "KERNEL_H": p.R, "KERNEL_W": p.S, "STRIDE_H": p.stride[0], "STRIDE_W": p.stride[1],
        "PADDING_H": p.padding[0], "PADDING_W": p.padding[2], "GROUPS": p.groups, "UNROLL": False,
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k,
    }  # fmt: skip
    declared = "".join(f"    {name}: tl.constexpr = {value}\n" for name, value in constants.items())
    flags = "    ALLOW_TF32: tl.constexpr = True\n    INDEX_DTYPE: tl.constexpr = tl.int32\n"
    n, k, h, q = y.stride()
    text = conv2d_template.template.render(
        def_kernel=lambda *names: f"@triton.jit\ndef convolution2d(X, W, OUT):\n{declared}{flags}",
        size=lambda name, dim: shapes[name][dim],
        stride=lambda name, dim: tensors[name].stride(dim),
        store_output=lambda index, value, mask, **_: (
            f"tl.store(OUT + idx_n * {n} + idx_c * {k} + idx_h * {h} + idx_w * {q}, "
            f"{value}.to(OUT.dtype.element_ty), mask={mask})"
        ),
        **constants,
    )
    kernel = _load(f"inductor_{abs(hash(text))}", text).convolution2d
    grid = _grid(p, config)
    return config.name, [Launch(kernel, grid, {"X": x, "W": w, "OUT": y}, {}, _options(config))]


def plan_flag_gems(job: Job) -> tuple[str, list[Launch]]:
    """FlagGems' forward kernel; argument "layout" is "NHWC" (channels-last strides) or "NCHW" (its own)."""
    p, config = job.problem, _config(job)
    x, w, y = _tensors(job, channels_last=job.arguments["layout"] == "NHWC")
    bias = torch.empty(p.K, dtype=x.dtype, device="meta")
    kernel = _flag_gems("conv2d.py", "conv2d_forward_kernel")
    args: dict[str, Any] = {
        "input_pointer": x, "weight_pointer": w, "output_pointer": y, "bias_pointer": bias,
        "in_n": p.N, "input_height": p.H, "input_width": p.W,
        "out_c": p.K, "out_height": p.P, "out_width": p.Q,
    }  # fmt: skip
    for name, tensor in (("input", x), ("weight", w), ("output", y)):
        parts = ("n", "c", "height", "width")
        args |= {f"{name}_{part}_stride": step for part, step in zip(parts, tensor.stride(), strict=True)}
    constants = {
        "weight_c": p.C // p.groups, "weight_height": p.R, "weight_width": p.S,
        "stride_height": p.stride[0], "stride_width": p.stride[1],
        "padding_height": p.padding[0], "padding_width": p.padding[2],
        "dilation_height": p.dilation[0], "dilation_width": p.dilation[1], "groups": p.groups,
        "BLOCK_NI_HO_WO": config.block_m, "BLOCK_CI": config.block_k, "BLOCK_CO": config.block_n,
    }  # fmt: skip
    grid = _grid(p, config)
    return config.name, [Launch(kernel, grid, args, constants, _options(config))]


def _flag_gems(file: str, function: str) -> Any:
    """One kernel of FlagGems without its tuning decorators; importing the package would want a GPU."""
    spec = importlib.util.find_spec("flag_gems")
    if spec is None or not spec.submodule_search_locations:
        raise NotInstalled('flag_gems is not installed (pip install "triton-dirac[peers]")')
    text = (Path(spec.submodule_search_locations[0]) / "ops" / file).read_text(encoding="utf-8")
    functions = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    node = next(node for node in functions if node.name == function)
    source = ast.get_source_segment(text, node)
    return getattr(_load(f"flag_gems_{function}", f"@triton.jit\n{source}\n"), function)


def _tensors(job: Job, channels_last: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    p: ConvProblem = job.problem
    dtype = getattr(torch, job.dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shapes = (p.input_shape, p.weight_shape, p.output_shape)
    x, w, y = (torch.empty(s, dtype=dtype, device="meta", memory_format=layout) for s in shapes)
    return x, w, y


def _config(job: Job) -> Config:
    if "config" in job.arguments:
        return Config(**job.arguments["config"])
    return fprop_tuning.default(job.problem, getattr(torch, job.dtype), TARGETS[job.target])


def _grid(p: ConvProblem, config: Config) -> tuple[int, int, int]:
    rows, columns = p.N * p.P * p.Q, p.K // p.groups
    return triton.cdiv(rows, config.block_m), triton.cdiv(columns, config.block_n), p.groups


def _options(config: Config) -> dict[str, int]:
    return {"num_warps": config.num_warps, "num_stages": config.num_stages}


def _load(name: str, text: str) -> ModuleType:
    path = Path(_FOLDER.name) / f"{name}.py"
    path.write_text(f"import triton\nimport triton.language as tl\n\n\n{text}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
