"""The epilogue: what is added to a convolution's sum and done to it before the store, as one value.

    z[n, k, p, q] = sum + alpha[k] * x[n, c(k), centre tap] + bias[k],    y = activation(z)

What its parts mean stands here. Forward, a kernel's sum begins with the identity term (``taps.identity``; ``direct``
adds alpha to the centre's weight, the persistent kernel comes to it last) and ends with ``finish``. Backward, with
g = dL/dz:

=========== ============================================= ============================================
part        backward                                      needs
=========== ============================================= ============================================
activation  g = dL/dy * activation'(z)                    y where the row of ACTIVATIONS says so, else z
bias        dbias[k] = sum of g over pixels               nothing
alpha       dalpha[k] = sum of g * x[centre tap];         x
            dx gains alpha * g, in dgrad's own epilogue
=========== ============================================= ============================================

z is not kept but convolved once more, without the activation. Kept, it would be a second image as large as the output,
held until the backward, and a second store in every kernel, in inference too, where nobody asks for it: an operator
does not know whether it is trained. The price is a fourth convolution beside fprop, dgrad and wgrad, for activations
whose gradient y does not tell; and z is rounded to the image's dtype, as torch's is, where the forward rounds y alone.

What is to come has its place here: a scale and a shift of the source's channels on load, statistics of z on store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_dirac.conv.problem import ConvProblem
from triton_dirac.identity_term import diagonal, identity_rows

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:  # published for Linux only; torch's backend takes the rest of this file
    from types import SimpleNamespace

    triton: Any = SimpleNamespace(jit=lambda function: function)  # type: ignore[no-redef]


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """activation(z) in float32; NaN and infinities become what torch makes of them."""
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)  # keeps NaN
    if ACTIVATION == "silu":
        z = z / (1 + tl.exp(-z))  # -0 where exp overflows, not inf * 0
    return z


@triton.jit
def finish(acc, bias, channel, exists, BIAS: tl.constexpr, ACTIVATION: tl.constexpr):
    """activation(acc + bias[channel]), [rows, channels]; ``exists`` masks the channels, None where all exist.

    The bias comes last: with the identity first, each thread never holds alpha and bias of all its columns at once.
    """
    if BIAS:
        if exists is None:
            shift = tl.load(bias + channel)
        else:
            shift = tl.load(bias + channel, mask=exists, other=0.0)
        acc += shift.to(tl.float32)[None, :]
    return activate(acc, ACTIVATION)


class Activation(NamedTuple):
    """One that is named as ``torch.nn.functional`` names it; ``activate`` has the same for the kernels.

    ``gradient(dL/dy, at) -> dL/dz`` is differentiable; ``at`` is y with ``of_output``, else z.
    """

    gradient: Callable[[Tensor, Tensor], Tensor]
    of_output: bool


def _silu_gradient(grad: Tensor, z: Tensor) -> Tensor:
    """dL/dy * (s + z * s * (1 - s)), s = sigmoid(z)."""
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(grad, z)  # type: ignore[no-any-return] # has no derivative itself
    s = torch.sigmoid(z)
    return grad * (s * (1 + z * (1 - s)))


ACTIVATIONS = {
    "relu": Activation(partial(torch.ops.aten.threshold_backward, threshold=0), of_output=True),
    "silu": Activation(_silu_gradient, of_output=False),
}


@dataclass(frozen=True, eq=False)
class Epilogue:
    """bias: (K,) or None. alpha: (K,), (1,) or None, of the identity term. Both of x's dtype or float32. activation: a
    name of ``ACTIVATIONS``, or None."""

    bias: Tensor | None = None
    alpha: Tensor | None = None
    activation: str | None = None

    @property
    def args(self) -> dict[str, Tensor | None]:
        """What kernels are given at run time."""
        return {"bias": self.bias, "alpha": self.alpha}

    @property
    def constexprs(self) -> dict[str, Any]:
        """What they are compiled for."""
        return self.identity | {"BIAS": self.bias is not None, "ACTIVATION": self.activation}

    @property
    def identity(self) -> dict[str, Any]:
        """The identity term's part of that, all that dgrad has; ALPHA_STRIDE is 0 where all filters have one alpha."""
        one = self.alpha is None or self.alpha.numel() == 1
        return {"IDENTITY": self.alpha is not None, "ALPHA_STRIDE": 0 if one else 1}

    @property
    def label(self) -> str:
        """e.g. ``+alpha+relu``: what matters to which backend is faster, for the file of timings."""
        return ("" if self.alpha is None else "+alpha") + (f"+{self.activation}" if self.activation else "")


PLAIN = Epilogue()


# --- by torch ---------------------------------------------------------------------------------------------


def finish_by_torch(
    output: Tensor, image: Tensor, alpha: Tensor | None, problem: ConvProblem, activation: str | None
) -> Tensor:
    """activation(output + alpha * x[centre tap]); torch's convolution has added the bias.

    Where the dtype is narrower than float32 the identity term is rounded once before it is added.
    """
    if alpha is not None:
        output = output + identity_term(image, alpha, problem).to(output.dtype)
    return output if activation is None else getattr(F, activation)(output)


def identity_term(image: Tensor, alpha: Tensor, problem: ConvProblem) -> Tensor:
    """alpha * x[centre tap], (N, K, P, Q), zero for filters without an identity; in float32 if alpha is."""
    groups, per_group = problem.groups, problem.identity_per_group
    centre = torch.unflatten(centre_tap(image, problem), 1, (groups, -1))[:, :, :per_group]
    scale = identity_rows(alpha, problem.K, problem.C // groups, groups)
    term = centre * scale.view(1, groups, per_group, 1, 1)
    return F.pad(term, (0, 0, 0, 0, 0, problem.K // groups - per_group)).flatten(1, 2)


def centre_tap(image: Tensor, problem: ConvProblem) -> Tensor:
    """The input pixel under the filter's centre tap for every output pixel: (N, C, P, Q), zero outside."""
    view = image
    for axis, out, stride, first in _centres(problem):
        last = first + stride * (out - 1)
        pad_before, pad_after = max(-first, 0), max(last - (image.shape[axis] - 1), 0)
        if pad_before or pad_after:
            spatial = (pad_before, pad_after) if axis == 3 else (0, 0, pad_before, pad_after)
            view = F.pad(view, spatial)
        view = view.narrow(axis, first + pad_before, last - first + 1)
        if stride > 1:
            view = view[..., ::stride] if axis == 3 else view[..., ::stride, :]
    return view


def _centres(problem: ConvProblem) -> Iterator[tuple[int, int, int, int]]:
    """(axis, outputs along it, stride, the pixel under the first output's centre tap) of height and width."""
    p = problem
    for axis, size, out, stride, dilation, before in (
        (2, p.R, p.P, p.stride[0], p.dilation[0], p.padding[0]),
        (3, p.S, p.Q, p.stride[1], p.dilation[1], p.padding[2]),
    ):
        yield axis, out, stride, size // 2 * dilation - before


# --- backward ---------------------------------------------------------------------------------------------


def identity_dgrad(grad: Tensor, alpha: Tensor, problem: ConvProblem) -> Tensor:
    """dL/dx of ``identity_term``: alpha * dL/dz at each centre tap, (N, C, H, W); in float32 if alpha is."""
    groups, per_group = problem.groups, problem.identity_per_group
    scale = identity_rows(alpha, problem.K, problem.C // groups, groups)
    rows = torch.unflatten(grad, 1, (groups, -1))[:, :, :per_group] * scale.view(1, groups, per_group, 1, 1)
    if missing := problem.C // groups - per_group:
        rows = F.pad(rows, (0, 0, 0, 0, 0, missing))
    term = rows.flatten(1, 2)
    sides = []
    for (axis, _, stride, first), length in zip(_centres(problem), (problem.H, problem.W), strict=True):
        if stride > 1:  # zeros between outputs: an axis of 1 padded to the stride, and joined
            apart = (0, stride - 1) if axis == 3 else (0, 0, 0, stride - 1)
            term = F.pad(term.unsqueeze(axis + 1), apart).flatten(axis, axis + 1)
        sides.append((first, length - first - term.shape[axis]))  # less than 0 cuts off
    (top, bottom), (left, right) = sides
    return F.pad(term, (left, right, top, bottom)) if any((top, bottom, left, right)) else term


def keeps_output(activation: str | None) -> bool:
    """Whether the backward takes y."""
    return activation is not None and ACTIVATIONS[activation].of_output


def convolves_again(activation: str | None) -> bool:
    """Whether the backward takes z, and so all that the forward took."""
    return activation is not None and not ACTIVATIONS[activation].of_output


def bias_gradient(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over pixels, in float32."""
    return grad.sum((0, 2, 3), dtype=torch.float32).to(dtype)


def alpha_gradient(grad: Tensor, image: Tensor, alpha: Tensor, dweight: Tensor | None, problem: ConvProblem) -> Tensor:
    """dalpha_k = sum over pixels of dL/dz[k] * x[centre tap]: the diagonal centre of wgrad, where there is one."""
    groups, per_group = problem.groups, problem.identity_per_group
    if dweight is not None:
        entries = diagonal(dweight, groups).float()
    else:
        centre = torch.unflatten(centre_tap(image, problem), 1, (groups, -1))[:, :, :per_group]
        entries = (torch.unflatten(grad, 1, (groups, -1))[:, :, :per_group].float() * centre).sum((0, 3, 4))
    if alpha.shape[0] == 1:
        return entries.sum().view(1).to(alpha.dtype)
    return F.pad(entries, (0, problem.K // groups - per_group)).flatten().to(alpha.dtype)
