"""Convolutions that torch computes, on a CPU say, are checked once: later ones like them take the problem from here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.signature_cache import SignatureCache
from triton_dirac.runtime.tracing import autocast_dtype, is_observed, is_plain

_problems: SignatureCache[ConvProblem] = SignatureCache()  # of convolutions that torch computed


def known_to_torch(tensors: Sequence[Tensor | None], options: bytes | None) -> ConvProblem | None:
    """The problem of an earlier call like this one, which was checked then and computed by torch."""
    if options is None or is_observed():
        return None
    given = [tensor for tensor in tensors if tensor is not None]
    problem = _problems.find((options, given[0].shape), given)
    if problem is None or not all(map(Tensor.data_ptr, given)):  # freed since, or empty
        return None
    return problem


def keep_for_torch(tensors: Sequence[Tensor | None], options: bytes | None, problem: ConvProblem) -> None:
    """Not of an image under autocast: a guard tells whether there is any, and not to which dtype."""
    given = [tensor for tensor in tensors if tensor is not None]
    if options is not None and is_plain(*given) and autocast_dtype(given[0]) is None:
        _problems.keep((options, given[0].shape), given, problem)
