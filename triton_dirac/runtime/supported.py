"""Which versions this runs on, said in one line at import instead of by whatever breaks first.

``nox -s versions`` runs the tests on them; pyproject.toml asks pip for the same.
"""

from __future__ import annotations

import re

TORCH = (2, 11)
TRITON = (3, 6), (3, 10)  # from the first on, below the second
NUMPY_OF_OLD_INTERPRETER = (2, 4)  # below it: Triton 3.6's interpreter indexes with arrays of one element


def release(version: str) -> tuple[int, int]:
    """(major, minor) of a version such as 2.11.0+cu130."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise ImportError(f"no version of the form X.Y: {version!r}")
    return int(found[1]), int(found[2])


def check() -> None:
    """ImportError where torch, Triton or, for Triton's interpreter, numpy is not one that this runs on."""
    import torch

    check_torch(torch.__version__)
    try:
        import triton
    except ModuleNotFoundError:  # published for Linux only; all else works without it
        return
    check_triton(triton.__version__)
    if triton.knobs.runtime.interpret:
        import numpy

        check_interpreter(triton.__version__, numpy.__version__)


def check_torch(version: str) -> None:
    if release(version) < TORCH:
        raise ImportError(f"triton_dirac needs torch {_named(TORCH)} or newer, found {version}")


def check_triton(version: str) -> None:
    oldest, beyond = TRITON
    if not oldest <= release(version) < beyond:
        raise ImportError(
            f"triton_dirac needs Triton from {_named(oldest)} on and below {_named(beyond)}, found {version}: install "
            "the one that your torch asks for, or the nearest of these"
        )


def check_interpreter(version: str, numpy: str) -> None:
    if release(version) == TRITON[0] and release(numpy) >= NUMPY_OF_OLD_INTERPRETER:
        raise ImportError(
            f"TRITON_INTERPRET=1: the interpreter of Triton {version} does not work with numpy {numpy} ('only "
            f"0-dimensional arrays can be converted'): install numpy<{_named(NUMPY_OF_OLD_INTERPRETER)} or Triton 3.7"
        )


def _named(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
