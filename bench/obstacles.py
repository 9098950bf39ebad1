"""Why a contender is not timed on this machine: every such row of a report gives one of these reasons."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

import torch

from bench import peers
from bench.layers import Layer, dirac_layers
from bench.suite import Contender, Row, Subject
from triton_dirac.runtime.launch import INTERPRETED


class Obstacle(NamedTuple):
    """``executable``: it can be run all the same, so that its numbers can be checked."""

    reason: str
    executable: bool


NO_DGRAD = Obstacle("no dgrad: the layer's input is the image, which needs no gradient", False)
NO_GRAPH = Obstacle("no GPU: a CUDA graph needs one", False)
NO_CUDNN = Obstacle("needs an NVIDIA GPU: torch's own convolution stands in for cuDNN", False)
NO_PEER = Obstacle("no GPU: other projects' Triton kernels are not interpreted", False)
NO_TF32 = Obstacle("TF32 needs a GPU", False)
NO_GPU = Obstacle("no GPU: Triton's interpreter checks the kernels, but its time means nothing", INTERPRETED)
TRUNCATED = Obstacle(
    "no GPU: Triton's interpreter cuts float32 off to bfloat16 instead of rounding it, so it cannot check "
    "these kernels fairly either (float16 stands in)",
    False,
)
EMULATED = Obstacle("no GPU: 16-bit arithmetic is emulated on a CPU, so it is checked but not timed", True)
NO_COMPILER = Obstacle("torch.compile needs a C++ compiler on a CPU", False)
FLOAT32_ONLY = Obstacle("no GPU: compiled for float32 only, since a graph takes 10 to 20 s to compile", False)
TOO_LONG = Obstacle(
    "no GPU: compiled for the most frequent layer only of each net, or of nets with the same layers, since a graph "
    "takes 10 to 20 s to compile (--layers compiles all that it names)",
    False,
)


def has_cudnn(device: torch.device) -> bool:
    """Whether torch's convolution on ``device`` is cuDNN's; on an AMD GPU it is MIOpen's."""
    return device.type == "cuda" and torch.version.hip is None and torch.backends.cudnn.is_available()


def obstacle(device: torch.device, row: Row, contender: Contender, compile_all: bool) -> Obstacle | None:
    """Why ``contender`` is not timed on ``row``; None if it is."""
    if row.direction == "dgrad" and not row.subject.needs_input_grad:
        return NO_DGRAD
    if lacking := contender.lacks(row.subject.problem, row.dtype, row.direction, device):
        return Obstacle(lacking, False)
    if contender.engine == "cudnn" and not has_cudnn(device):
        return NO_CUDNN
    if device.type == "cuda":
        return None
    if contender.graph:
        return NO_GRAPH
    if row.dtype == "tf32":
        return NO_TF32
    if contender.engine in peers.ENGINES:
        return NO_PEER
    if contender.engine == "triton":
        return TRUNCATED if row.dtype == "bfloat16" else NO_GPU
    if contender.engine == "compile":
        return _compile_obstacle(row, compile_all)
    return None if row.dtype == "float32" else EMULATED


def has_cpp_compiler() -> bool:
    """Whether torch.compile can build for a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def _compile_obstacle(row: Row, compile_all: bool) -> Obstacle | None:
    if not has_cpp_compiler():
        return NO_COMPILER
    if row.dtype != "float32":
        return FLOAT32_ONLY
    # Weight preparation is compiled once for all sizes; a convolution's graph is fixed to its filters' sizes.
    if row.suite.name == "dirac_block" and not compile_all and row.subject != _most_frequent(row.subject):
        return TOO_LONG
    return None


def _most_frequent(layer: Subject) -> Layer:
    return max(dirac_layers(layer.counts, layer.problem.N), key=lambda other: other.count)
