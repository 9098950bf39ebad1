"""Triton's driver for an NVIDIA GPU that is not here: kernels are compiled for it, launched all the way, and not run.

A libcuda that does nothing (``stub_cuda.c``) is built and loaded, so that the host does everything that it does with a
GPU: specialising arguments, filling tensor descriptors, Triton's launcher in C. Tensors stay on the CPU; their
content is never touched. For a process of its own: what Triton and torch think of the machine is changed for good.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

from triton_dirac import functional
from triton_dirac.runtime import targets


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_uint64),
        ("function", ctypes.c_uint64),
        ("parameters", ctypes.c_ubyte * (128 * 128)),
    )


class Stub:
    """The library, and what it noted."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.stub_noted.restype = ctypes.POINTER(_Launch)
        library.stub_launches.restype = ctypes.c_long

    @property
    def launches(self) -> int:
        """How many there were so far."""
        return self._library.stub_launches()

    def note(self, sizes: Sequence[int]) -> None:
        """From now on note launches whose parameters have these many bytes; none for no sizes."""
        self._library.stub_note(len(sizes), (ctypes.c_uint * len(sizes))(*sizes))

    def noted(self) -> tuple:
        """(grid, block, shared memory, stream, function, bytes of the parameters) of the last launch."""
        last = self._library.stub_noted().contents
        return tuple(last.grid), tuple(last.block), last.shared, last.stream, last.function, bytes(last.parameters)


def install(capability: int = 90) -> Stub:
    """Make the stub Triton's active driver, of one GPU of this compute capability, for tensors of the CPU."""
    from triton.backends.nvidia import driver as nvidia

    folder = tempfile.mkdtemp(prefix="stub-cuda-")
    path = f"{folder}/libcuda.so.1"
    source = Path(__file__).with_name("stub_cuda.c")
    include = Path(nvidia.__file__).parent / "include"
    compiler = os.environ.get("CC", "cc")
    options = ["-shared", "-fPIC", "-O1", "-w", "-Wl,-soname,libcuda.so.1", f"-I{include}"]
    subprocess.run([compiler, *options, str(source), "-o", path], check=True)
    triton.knobs.nvidia.libcuda_path = folder
    library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)

    class Driver(nvidia.CudaDriver):
        def __init__(self) -> None:
            self.utils = nvidia.CudaUtils()
            self.launcher_cls = nvidia.CudaLauncher
            self.get_current_device = lambda: 0
            self.get_current_stream = lambda device: 0
            self.get_device_capability = lambda device=0: divmod(capability, 10)

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

    triton.runtime.driver.set_active(Driver())
    functional.INTERPRETED = True  # type: ignore[attr-defined] # lets tensors of the CPU through
    targets.INTERPRETER = targets.TARGETS[f"cuda:{capability}"]
    targets.target_of.cache_clear()
    return Stub(library)
