"""Dirac convolutions as modules: torch's own convolution modules with alpha, beta and the identity inside.

Constructor order, parameters and state-dict keys are those of the official DiracNets code, so that its
checkpoints load strictly. Source: arXiv 1706.00388.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from triton_dirac.functional import BACKENDS, FORMS, conv2d, dirac_conv2d, dirac_weight
from triton_dirac.identity_term import diagonal, identity_rows
from triton_dirac.module_checks import check_arguments, check_choice
from triton_dirac.runtime.tracing import autocast_dtype

ALPHA_START = 1.0
BETA_START = 0.1
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The two optimiser groups that DiracNets are trained with: decay the filters, nothing else.

    Returns:
        ``[{"params": tensors of more than one dimension, "weight_decay": weight_decay},
        {"params": alpha, beta, biases, batch-norm, "weight_decay": 0.0}]``; frozen parameters are left out.

    >>> from triton_dirac import DiracConv2d
    >>> optimiser = torch.optim.SGD(parameter_groups(DiracConv2d(8, 8, 3), 5e-4), lr=0.1, momentum=0.9)

    Source: arXiv 1706.00388, section 4; the official training script.
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be a non-negative number, got {weight_decay!r}")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


class Prepared(NamedTuple):
    """Filters made ahead of a forward pass, the identity term's alpha if it is not in them, and what they are of."""

    filters: Tensor
    alpha: Tensor | None
    state: tuple


class _DiracConv(nn.modules.conv._ConvNd):
    """What the three modules share."""

    torch_class: ClassVar[type[nn.modules.conv._ConvNd]]
    dims: ClassVar[int]
    alpha: nn.Parameter
    beta: nn.Parameter

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        *,
        stride: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        form: str = "split",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_arguments(self.dims, in_channels, out_channels, kernel_size, padding, dilation, bias, stride, groups)
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        check_choice("form", form, FORMS)
        check_choice("backend", backend, BACKENDS)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
        super().__init__(  # type: ignore[call-arg]
            in_channels,
            out_channels,
            kernel_size,  # type: ignore[arg-type]
            stride=stride,  # type: ignore[arg-type]
            padding=padding,  # type: ignore[arg-type]
            dilation=dilation,  # type: ignore[arg-type]
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )
        self.form = form
        self.backend = backend
        # "dirac": torch.nn.init.dirac_'s, version 2. "tiled": version 1's, I[k, c] = 1 where k = c modulo
        # min(K, C), so that x and -x, which NCReLU splits, meet again. Only loading a checkpoint sets it.
        self.identity = "dirac"
        self.prepared: Prepared | None = None  # while ``triton_dirac.prepared`` is at work
        self.alpha = nn.Parameter(torch.full((out_channels,), ALPHA_START, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.full((out_channels,), BETA_START, device=device, dtype=dtype))

    @property
    def delta(self) -> Tensor:
        """The identity filter bank I, in the weight's shape. Made on demand: no forward pass reads it."""
        return self._make_delta(self.identity, self.weight.dtype, self.weight.device)

    def _make_delta(self, identity: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        delta = torch.zeros(self.weight.shape, dtype=dtype, device=device)
        entries = _tiled_entries(delta) if identity == "tiled" else diagonal(delta, self.groups)
        entries.fill_(1)
        return delta

    def effective_weight(self) -> Tensor:
        """What = diag(alpha) * I + diag(beta) * W / ||W||, as the convolution sees it, differentiable."""
        return self._effective_weight(self.weight, self.alpha, self.beta, self.backend)

    def _effective_weight(self, weight: Tensor, alpha: Tensor, beta: Tensor, backend: str) -> Tensor:
        tiled = self.identity == "tiled"
        prepared = dirac_weight(weight, alpha, beta, identity=not tiled, groups=self.groups, backend=backend)
        if tiled:
            entries = _tiled_entries(prepared)
            entries += alpha.unflatten(0, (-1, 1, entries.shape[2]))
        return prepared

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """weight, alpha, beta, bias: from where they lie, since each lookup by attribute takes torch a microsecond."""
        own = self._parameters
        try:
            return own["weight"], own["alpha"], own["beta"], own["bias"]  # type: ignore[return-value]
        except KeyError:  # parametrised, or pruned
            return self.weight, self.alpha, self.beta, self.bias

    def _ready_filters(self, input: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """(filters, the identity term's alpha): prepared beforehand, or version 1's; None: still to be prepared."""
        if self.identity == "tiled":
            return self.effective_weight().to(input.dtype), None
        ready = self.prepared
        if ready is None or ready.filters.dtype != (autocast_dtype(input) or input.dtype):
            return None
        if ready.filters.device != input.device or ready.state != state_of(self):
            return None
        return ready.filters, ready.alpha

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "prepared": None}  # copies and saved models have filters of their own to prepare

    def _padded(self, input: Tensor) -> tuple[Tensor, Any]:
        """(input, padding) with a padding mode other than zeros already applied."""
        if self.padding_mode == "zeros":
            return input, self.padding
        mode = self.padding_mode
        return F.pad(input, self._reversed_padding_repeated_twice, mode=mode), (0,) * len(self.kernel_size)

    def fuse(self) -> nn.Module:
        """A ``torch.nn`` convolution with the same function; this module stays as it is.

        What timm's ``reparameterize_model`` calls on every child and puts in its place. A batch-norm stays
        where it is; ``triton_dirac.fold`` folds that too.
        """
        fused = copy.deepcopy(self)
        fused.reparameterize()
        return fused

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Become, in place, the ``torch.nn`` convolution with the same function: class, parameters, keys.

        The effective weight is computed in float64 and rounded once. As right in training mode as in any.

        Raises:
            TypeError: the module overrides forward. ValueError: a parameter is parametrised.
        """
        weight = self._float64_weight()
        dtype, trained = self.weight.dtype, self.weight.requires_grad
        del self.alpha, self.beta, self.form, self.backend, self.identity, self.prepared
        self.__class__ = self.torch_class  # type: ignore[assignment]
        self.weight = nn.Parameter(weight.to(dtype), requires_grad=trained)

    switch_to_deploy = reparameterize

    def _float64_weight(self) -> Tensor:
        """The effective weight in float64, without gradients: what folding multiplies and rounds."""
        if type(self).forward not in (DiracConv1d.forward, DiracConv2d.forward, DiracConv3d.forward):
            raise TypeError(f"{type(self).__name__} overrides forward: no plain convolution does the same")
        if parametrize.is_parametrized(self):
            raise ValueError(
                f"{type(self).__name__} cannot be folded while parametrised: call "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
        weight, alpha, beta = (p.detach().double() for p in (self.weight, self.alpha, self.beta))
        return self._effective_weight(weight, alpha, beta, "torch")

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "delta"] = self.delta

    def _load_from_state_dict(
        self, state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        state = dict(state_dict)
        delta = state.pop(prefix + "delta", None)
        for name in ("alpha", "beta"):  # version 1, and version 2 at first, had one scalar a layer
            tensor = state.get(prefix + name)
            if tensor is not None and tuple(tensor.shape) == (1,):
                state[prefix + name] = tensor.repeat(self.out_channels)
        super()._load_from_state_dict(state, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if delta is None or delta.is_meta:
            return
        if delta.shape != self.weight.shape:
            error_msgs.append(
                f"size mismatch for {prefix}delta: {tuple(delta.shape)} in the checkpoint, "
                f"{tuple(self.weight.shape)} in the model"
            )
            return
        for identity in ("dirac", "tiled") if self._can_be_tiled() else ("dirac",):
            if torch.equal(delta, self._make_delta(identity, delta.dtype, delta.device)):
                self.identity = identity
                return
        error_msgs.append(f"{prefix}delta is neither version 2's identity filter bank nor version 1's")

    def _can_be_tiled(self) -> bool:
        small, large = sorted((self.in_channels, self.out_channels))
        return self.groups == 1 and large % small == 0

    def extra_repr(self) -> str:
        tiled = ", identity='tiled'" if self.identity == "tiled" else ""
        return f"{super().extra_repr()}, form={self.form!r}, backend={self.backend!r}{tiled}"


class DiracConv2d(_DiracConv, nn.Conv2d):
    """2-D Dirac convolution: y = conv(x, diag(alpha) * I + diag(beta) * W / ||W||) + bias.

    A ``torch.nn.Conv2d`` with the official constructor order: padding, dilation, bias; stride and the rest go
    by name. alpha and beta have shape (out_channels,) and start at 1 and 0.1. The identity, delta, is neither
    stored nor read: it is made anew for the state dict, which the official code expects to have it.

    Args:
        in_channels, out_channels, kernel_size, padding, dilation, bias: as the official module's.
        stride, groups, padding_mode, device, dtype: as ``torch.nn.Conv2d``'s.
        form, backend: as ``dirac_conv2d``'s.

    Official state dicts load strictly: version 2's, and version 1's with its scalar alpha and beta (repeated
    for every filter) and tiled identity (computed in the materialised form). delta may be missing.

    Raises:
        TypeError, ValueError: an argument is not as above.

    Source: DiracNets, arXiv 1706.00388.
    """

    torch_class, dims = nn.Conv2d, 2

    def forward(self, input: Tensor) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = self._padded(input)
        weight, alpha, beta, bias = self._tensors()
        rest = (bias, self.stride, padding, self.dilation, self.groups)
        if (self.prepared is not None or self.identity == "tiled") and (ready := self._ready_filters(input)):
            filters, term = ready
            return conv2d(input, filters, *rest, alpha=term, backend=self.backend)
        return dirac_conv2d(input, weight, alpha, beta, *rest, form=self.form, backend=self.backend)


class DiracConv1d(_DiracConv, nn.Conv1d):
    """1-D Dirac convolution; see ``DiracConv2d``. It runs on the 2-D kernels, as an image of height 1."""

    torch_class, dims = nn.Conv1d, 1

    def forward(self, input: Tensor) -> Tensor:
        padded, padding = self._padded(input)
        padding = padding if isinstance(padding, str) else (0, *padding)
        rest = (self.bias, (1, *self.stride), padding, (1, *self.dilation), self.groups)
        image = padded.unsqueeze(-2)
        if ready := self._ready_filters(padded):
            filters, alpha = ready
            return conv2d(image, filters.unsqueeze(2), *rest, alpha=alpha, backend=self.backend).squeeze(-2)
        return dirac_conv2d(
            image,
            self.weight.unsqueeze(2),
            self.alpha,
            self.beta,
            *rest,
            form=self.form,
            backend=self.backend,
        ).squeeze(-2)


class DiracConv3d(_DiracConv, nn.Conv3d):
    """3-D Dirac convolution; see ``DiracConv2d``. The weight is prepared as there, torch convolves.

    As on the torch backend there, float32 and float64 are computed in the materialised form, which differs
    from the split form by rounding only; bfloat16 and float16 in the form that was asked for.
    """

    torch_class, dims = nn.Conv3d, 3

    def forward(self, input: Tensor) -> Tensor:
        input = input.to(autocast_dtype(input) or input.dtype)
        padded, padding = self._padded(input)
        narrow = input.dtype not in (torch.float32, torch.float64)
        split = self.form == "split" and narrow and self.identity == "dirac"
        if ready := self._ready_filters(input):
            filters, split = ready[0], ready[1] is not None
        else:
            filters = dirac_weight(
                self.weight,
                self.alpha,
                self.beta,
                identity=not split,
                dtype=input.dtype,
                groups=self.groups,
                backend=self.backend,
            )
        bias = None if self.bias is None else self.bias.to(input.dtype)
        output = F.conv3d(padded, filters, bias, self.stride, padding, self.dilation, self.groups)
        return output + self._identity_term(padded, padding, output) if split else output

    def _identity_term(self, padded: Tensor, padding: Any, output: Tensor) -> Tensor:
        """alpha * x[centre tap], in float32 and then in output's dtype: (..., K, *output's sizes)."""
        sides: list[int] = []
        for axis in (-1, -2, -3):
            step, dilation, window = self.stride[axis], self.dilation[axis], self.kernel_size[axis]
            before = dilation * (window - 1) // 2 if padding == "same" else 0
            before = before if isinstance(padding, str) else padding[axis]
            first = window // 2 * dilation - before
            length = step * (output.shape[axis] - 1) + 1
            sides += [-first, first + length - padded.shape[axis]]  # F.pad crops where they are negative
        centre = F.pad(padded, sides)[..., :: self.stride[0], :: self.stride[1], :: self.stride[2]]
        per_group = min(self.in_channels, self.out_channels) // self.groups
        scale = identity_rows(self.alpha, self.out_channels, self.in_channels // self.groups, self.groups)
        term = centre.unflatten(-4, (self.groups, -1))[..., :per_group, :, :, :] * scale.float()[..., None, None, None]
        missing = self.out_channels // self.groups - per_group
        return F.pad(term, (0,) * 6 + (0, missing)).flatten(-5, -4).to(output.dtype)


# --- pieces -----------------------------------------------------------------------------------------------


def state_of(layer: _DiracConv) -> tuple:
    """What tells whether parameters are still those, and as they were, that filters were prepared from."""
    tensors = (layer.weight, layer.alpha, layer.beta)
    return torch.is_grad_enabled(), *((id(tensor), tensor._version) for tensor in tensors)


def has_plain_parameters(layer: _DiracConv) -> bool:
    """Whether weight, alpha and beta are ordinary tensors at this moment, not shards or a parametrisation's."""
    tensors = (layer.weight, layer.alpha, layer.beta)
    return all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)


def _tiled_entries(filters: Tensor) -> Tensor:
    """View of the entries that version 1's identity touches: (K / n, C / n, n) with n = min(K, C)."""
    n = min(filters.shape[:2])
    centre = filters.unflatten(1, (-1, n)).unflatten(0, (-1, n))
    for size in filters.shape[2:]:
        centre = centre.select(4, size // 2)
    return centre.diagonal(dim1=1, dim2=3)
