"""What a call must give: values and gradients of the definition in float64, with the errors that are allowed.

For every result four tensors: exact (float64), the same without the subnormal numbers among the arguments, as torch
computes it in the call's dtype, and the magnitude: the sum of the absolute values of the terms that are added for it.
An error is measured by the largest magnitude: where terms cancel, their rounding stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tolerance import ABSOLUTE, assert_as_good_as_torch, max_error
from triton_dirac import reference


class Expected(NamedTuple):
    exact: Tensor
    flushed: Tensor
    by_torch: Tensor
    magnitude: Tensor


def double(tensor: Tensor) -> Tensor:
    return tensor.double()


def without_subnormals(tensor: Tensor) -> Tensor:
    """Hardware may read them as zero; what that makes of a result, divided by a norm of eps, is no small number."""
    return torch.where(tensor.abs() < torch.finfo(tensor.dtype).tiny, 0.0, tensor.double())


Tensors = dict[str, "Tensor | None"]
Convolve = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]  # (image, filters, bias)


def convolution(dims: int, stride, padding, dilation, groups, padding_mode: str = "zeros") -> Convolve:
    """torch's convolution of so many dimensions; padding_mode as ``torch.nn``'s modules have it."""
    function = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]

    def convolve(image: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
        sides = padding
        if padding_mode != "zeros":
            each = (padding,) * dims if isinstance(padding, int) else padding
            image = F.pad(image, [size for size in reversed(each) for _ in "lr"], mode=padding_mode)
            sides = 0
        return function(image, filters, bias, stride, sides, dilation, groups)

    return convolve


def prepared(weight: Tensor, alpha: Tensor | None, beta: Tensor | None, eps: float, identity: bool, groups: int):
    """The filters that are convolved with: Dirac's, or without beta the weight and alpha's identity beside it."""
    if beta is not None:
        zeros = torch.zeros_like(beta) if alpha is None else alpha
        return reference.dirac_weight(weight, zeros, beta, eps=eps, identity=identity, groups=groups)
    if alpha is None:
        return weight
    delta = reference.dirac_delta(tuple(weight.shape), groups, dtype=weight.dtype, device=weight.device)
    alpha = alpha.to(weight.dtype).view((-1,) + (1,) * (weight.dim() - 1))
    return weight + torch.where(delta != 0, alpha, delta)


def of_filters(
    tensors: Tensors, grad: Tensor, dtype: torch.dtype, *, eps: float, identity: bool, groups: int
) -> dict[str, Expected]:
    """``dirac_weight``'s output and, for the upstream gradient ``grad`` of it, its gradients."""

    def run(cast: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves = [cast(tensors[name]).detach().requires_grad_() for name in ("weight", "alpha", "beta")]
        output = prepared(*leaves, eps, identity, groups)
        return [output.detach(), *_gradients(output, leaves, grad.to(output.dtype))]

    exact, flushed, by_torch = run(double), run(without_subnormals), run(lambda t: t)
    by_torch[0] = by_torch[0].to(dtype)
    magnitude = [exact[0].abs(), *_prepared_magnitudes(tensors, grad.double().abs(), eps, groups)]
    names = ("output", "weight", "alpha", "beta")
    rows = zip(names, exact, flushed, by_torch, magnitude, strict=True)
    return {name: Expected(*row) for name, *row in rows}


def of_convolution(
    tensors: Tensors,
    grad: Callable[[Tensor], Tensor],
    convolve: Convolve,
    *,
    eps: float,
    groups: int,
    activation: str | None,
) -> dict[str, Expected]:
    """A convolution's output and gradients; a Dirac convolution's where there is beta.

    ``grad`` is called with the exact output. With relu it must be zero where the result under test is: which of the
    numbers near zero were rounded up to be positive is not for the definition to say.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def run(cast: Callable[[Tensor], Tensor], upstream: Tensor | None = None) -> dict[str, Tensor]:
        leaves = {name: cast(tensor).detach().requires_grad_() for name, tensor in given.items()}
        filters = prepared(leaves["weight"], leaves.get("alpha"), leaves.get("beta"), eps, True, groups)
        filters = filters.to(leaves["image"].dtype)
        z = convolve(leaves["image"], filters, leaves.get("bias"))
        output = z if activation is None else getattr(F, activation)(z)
        results = {"output": output.detach()}
        upstream = grad(results["output"]) if upstream is None else upstream
        output = z if activation == "relu" else output
        found = _gradients(output, [*leaves.values(), filters], upstream.to(output.dtype))
        return results | dict(zip([*leaves, "filters"], found, strict=True))

    narrow = given["image"].dtype
    exact = run(double)
    upstream = grad(exact["output"])
    flushed = run(without_subnormals, upstream)
    by_torch = run(lambda t: t.to(narrow), upstream)

    # Terms by their absolute values: of a convolution that is the convolution of absolute values.
    sizes = {name: tensor.double().abs() for name, tensor in given.items()}
    filters = prepared(
        *(None if tensors.get(n) is None else tensors[n].double() for n in ("weight", "alpha", "beta")),
        eps, True, groups,
    )  # fmt: skip
    leaves = [sizes["image"].requires_grad_(), filters.abs().detach().requires_grad_()]
    output = convolve(*leaves, sizes.get("bias"))
    upstream = upstream.double().abs()
    if activation == "silu":  # |y'| <= 1.1; and |y''| <= 0.5, where z is rounded before the gradient is taken there
        upstream = upstream * (1.1 + 0.5 * output.detach())
    dimage, dfilters = _gradients(output, leaves, upstream)
    magnitude = {"output": output.detach(), "image": dimage}
    if "bias" in given:
        channels = leaves[1].dim() - 1  # counted from the last dimension: images may come alone
        magnitude["bias"] = upstream.movedim(-channels, 0).flatten(1).sum(1)
    if "beta" in given:
        found = _prepared_magnitudes(tensors, dfilters, eps, groups)
        magnitude |= dict(zip(("weight", "alpha", "beta"), found, strict=True))
    else:
        magnitude["weight"] = dfilters
        if "alpha" in given:
            magnitude["alpha"] = _identity_entries(dfilters, given["alpha"], groups)
    names = ("output", *given)
    return {name: Expected(exact[name], flushed[name], by_torch[name], magnitude[name]) for name in names}


def compare(name: str, actual: Tensor, expected: Expected, narrowest: torch.dtype, strict: bool = True) -> None:
    """``actual`` is as good as torch where exact and torch's are finite; elsewhere it is not finite either.

    ``narrowest``: the dtype with the coarsest rounding on the way. ``strict`` False: what is not finite is left open,
    where an infinite weight meets padding, which one kernel multiplies and another leaves out.
    """
    exact, flushed, by_torch, magnitude = (t.to(actual.device) for t in expected)
    assert actual.shape == exact.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    finite = exact.isfinite() & flushed.isfinite() & by_torch.isfinite()
    if strict:
        wrong = actual.isfinite() & ~exact.isfinite() & ~by_torch.isfinite()
        assert not wrong.any(), f"{name}: {int(wrong.sum())} finite values that are {exact[wrong][:3].tolist()}"
    else:
        finite &= actual.isfinite()
    usual = torch.cat([magnitude[magnitude.isfinite()], exact[finite].abs()])  # terms may be infinite, times zero
    largest = usual.max().item() if usual.numel() else 0.0
    # Flushing subnormal numbers is allowed, in the arguments and of the result.
    flush = max_error(flushed[finite], exact[finite]) + 4 * torch.finfo(actual.dtype).tiny
    rounding = max(ABSOLUTE[narrowest], ABSOLUTE[actual.dtype])
    atol = rounding * largest + flush
    assert_as_good_as_torch(name, actual[finite], exact[finite], by_torch[finite], atol)


def _gradients(output: Tensor, leaves: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, leaves, grad, allow_unused=True, materialize_grads=True)


def _prepared_magnitudes(tensors: Tensors, dfilters: Tensor, eps: float, groups: int) -> list[Tensor]:
    """Of dW = beta / n * (G - <G, u> u), dalpha and dbeta = <G, u>, where terms of G add up to ``dfilters``."""
    weight, beta = tensors["weight"].detach().double().flatten(1), tensors["beta"].detach().double().abs()
    norm = torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min(eps)
    unit, grad = (weight / norm).abs(), dfilters.flatten(1)
    along = (grad * unit).sum(1, keepdim=True)
    dweight = (beta.view(-1, 1) / norm * (grad + along * unit)).view(dfilters.shape)
    dbeta = along.view(-1)
    if beta.numel() == 1:
        dbeta = dbeta.sum().view(1)
    return [dweight, _identity_entries(dfilters, tensors["alpha"], groups), dbeta]


def _identity_entries(dfilters: Tensor, alpha: Tensor, groups: int) -> Tensor:
    delta = reference.dirac_delta(tuple(dfilters.shape), groups, dtype=torch.float64, device=dfilters.device)
    entries = torch.where(delta != 0, dfilters, delta).flatten(1).sum(1)
    return entries.sum().view(1) if alpha.numel() == 1 else entries
