"""The C that Triton 3.6 compiles beside kernels: a launcher for each signature, 0.5 s of a C compiler, at first launch.

It is linked with the GPU's driver. A machine without a GPU has none, so there it is linked with a library of the same
name that defines the same symbols and does nothing: what is built finds the real one where it is used. Later versions
of Triton have one launcher for all kernels, and nothing is to be built.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import triton
from triton.compiler import ASTSource, CompiledKernel


def build_launcher(source: ASTSource, compiled: CompiledKernel) -> None:
    """Put a kernel's launcher into Triton's cache, in a process that will launch nothing itself.

    Where that fails the launch will try again, and say what is missing.
    """
    from triton.backends.nvidia import driver

    if compiled.metadata.target.backend != "cuda" or not hasattr(driver, "make_launcher"):
        return
    try:
        _find_a_driver()
        driver.CudaLauncher(source, compiled.metadata)
    except (AssertionError, ImportError, OSError, RuntimeError, subprocess.CalledProcessError):
        pass


@cache
def _find_a_driver() -> None:
    """Have Triton link with this machine's driver or with one that does nothing; build what loads kernels with it."""
    from triton.backends.nvidia import driver

    try:
        driver.libcuda_dirs()
    except (AssertionError, OSError, subprocess.CalledProcessError):
        triton.knobs.nvidia.libcuda_path = _empty_driver(Path(driver.__file__).parent)
        driver.libcuda_dirs.cache_clear()
        driver.library_dirs.cache_clear()
    driver.CudaUtils()


def _empty_driver(sources: Path) -> str:
    """The folder of a libcuda.so.1 that has what Triton's C calls; it is loaded, so that what is built can be."""
    folder = Path(tempfile.mkdtemp(prefix="driver-"))
    text = "".join((sources / name).read_text() for name in ("driver.py", "driver.c"))
    functions = "".join(f"void {name}(void) {{}}\n" for name in sorted(set(re.findall(r"\bcu[A-Z]\w+", text))))
    (folder / "driver.c").write_text(functions)
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise OSError("no C compiler")
    library = folder / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(folder / "driver.c")]
    subprocess.run(command, check=True, capture_output=True)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return str(folder)
