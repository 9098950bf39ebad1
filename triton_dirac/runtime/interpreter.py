"""Two faults of Triton's interpreter, mended where kernels run in it: TRITON_INTERPRET=1."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import triton

from triton_dirac.runtime.supported import release


def mend() -> None:
    """From now on in this process, for all kernels."""
    if sys.version_info < (3, 11):
        # The first launch imports it, with static_print replaced by print, whose signature Python 3.10 does not know.
        importlib.import_module("triton.experimental.gluon")
    if release(triton.__version__) == (3, 9):
        _broadcast_comparisons_as_bool()


def _broadcast_comparisons_as_bool() -> None:
    """Triton 3.9 gives a comparison of scalars the type of what it compares, so that it is broadcast as integers, and
    takes no integers for a mask: ``tl.load(x + offsets, mask=(offsets < n) & (program < m))`` raises ValueError."""
    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder

    splat = InterpreterBuilder.create_splat

    def create_splat(self: Any, block: Any, scalar: Any) -> Any:
        made = splat(self, block, scalar)
        if scalar.data.dtype == np.bool_:
            made.data = made.data.astype(np.bool_)
        return made

    InterpreterBuilder.create_splat = create_splat
