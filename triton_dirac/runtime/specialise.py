"""What Triton's JIT makes of a launch before it compiles, for a GPU that is here or not; and whether it is compiled.

Arguments equal to 1 become constants, divisibility by 16 and small buffers are known: a launch that is specialised here
and the same launch through the JIT are one entry of Triton's cache.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature
from triton.tools.tensor_descriptor import TensorDescriptor

from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.targets import Target


class Specialised(NamedTuple):
    """What ``triton.compile`` takes."""

    source: ASTSource
    target: GPUTarget
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """Equal for launches that compile to the same binary on one target."""
        return hashlib.sha256(f"{self.source.hash()} {sorted(self.options.items(), key=str)}".encode()).hexdigest()[:16]

    def compile(self) -> CompiledKernel:
        """From Triton's cache or anew."""
        return triton.compile(self.source, target=self.target, options=self.options)

    def compiled(self) -> CompiledKernel | None:
        """From Triton's cache, or None."""
        try:
            return triton.compile(_CachedSource.of(self.source), target=self.target, options=self.options)
        except _NotCached:
            return None


class _NotCached(Exception):
    """Triton would have to compile."""


class _CachedSource(ASTSource):
    """A source that nobody may compile, with the key of one that may: it tells what Triton's cache holds."""

    @classmethod
    def of(cls, source: ASTSource) -> _CachedSource:
        cached = cls.__new__(cls)
        cached.__dict__.update(source.__dict__)
        return cached

    def make_ir(self, *arguments: Any, **options: Any) -> Any:
        raise _NotCached


def specialise(launch: Launch, target: Target) -> Specialised:
    """What the JIT would compile for this launch on ``target``. Not in a process that interprets kernels."""
    kernel = _jit_function(launch.kernel)
    gpu = GPUTarget(target.backend, target.arch, target.warp_size)
    backend = make_backend(gpu)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    debug = kernel.debug or triton.knobs.runtime.debug
    keywords = {**launch.args, **launch.constexprs, **launch.compiler_options, "debug": debug}
    bound, specialisation, options = bind(**keywords)
    parsed, signature, constants, attributes = kernel._pack_args(backend, keywords, bound, specialisation, options)
    return Specialised(ASTSource(kernel, signature, constants, attributes), gpu, parsed.__dict__)


def _jit_function(kernel: Any) -> JITFunction:
    while not isinstance(kernel, JITFunction):  # an autotuner's or heuristics' kernel
        kernel = kernel.fn
    return kernel


@dataclass(frozen=True)
class Pointer:
    """All that specialisation asks of a tensor."""

    dtype: torch.dtype
    odd_bytes: int  # of the address beyond a multiple of 16
    buffer_bytes: int

    @classmethod
    def of(cls, tensor: Tensor) -> Pointer:
        return cls(tensor.dtype, tensor.data_ptr() % 16, tensor.untyped_storage().nbytes())

    def data_ptr(self) -> int:
        return self.odd_bytes

    def ptr_range(self) -> int:
        """What AMD's compiler asks for: buffers below 2 GiB have loads of their own."""
        return self.buffer_bytes


def without_tensors(launch: Launch) -> Launch:
    """The launch for another process to compile: pointers in place of tensors, the kernel by its name."""
    kernel = _jit_function(launch.kernel)
    arguments: Mapping[str, Any] = {name: _without_tensor(value) for name, value in launch.args.items()}
    return replace(launch, kernel=f"{kernel.__module__}:{kernel.__name__}", args=arguments)


def _without_tensor(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Pointer.of(value)
    if isinstance(value, TensorDescriptor):
        return replace(value, base=Pointer.of(value.base), shape=list(value.shape), strides=list(value.strides))
    return value


def with_kernel(launch: Launch) -> Launch:
    """The launch of ``without_tensors`` with its kernel again."""
    module, name = launch.kernel.split(":")
    return replace(launch, kernel=getattr(importlib.import_module(module), name))
