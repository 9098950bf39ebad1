"""Dirac convolutions as modules: torch's own convolution modules with alpha, beta and the identity inside.

Constructor order, parameters and state-dict keys are those of the official DiracNets code, so that its
checkpoints load strictly. Source: arXiv 1706.00388.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triton_dirac.functional import FORMS, conv2d, dirac_conv2d, dirac_weight
from triton_dirac.reference import dirac_delta

ALPHA_START = 1.0
BETA_START = 0.1


class _DiracConv(nn.modules.conv._ConvNd):
    """What the three modules share; ``torch_conv`` names the torch module each one extends."""

    alpha: nn.Parameter
    beta: nn.Parameter
    form: str
    backend: str

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        padding: int | str | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        bias: bool = True,
        *,
        stride: int | tuple[int, ...] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        form: str = "split",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}")
        super().__init__(  # type: ignore[call-arg]
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,  # type: ignore[arg-type]
            padding=padding,  # type: ignore[arg-type]
            dilation=dilation,  # type: ignore[arg-type]
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self.form = form
        self.backend = backend
        self.alpha = nn.Parameter(torch.full((out_channels,), ALPHA_START, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.full((out_channels,), BETA_START, device=device, dtype=dtype))
        # An identity other than torch.nn.init.dirac_'s, from a version 1 checkpoint; None otherwise.
        self.register_buffer("_tiled_delta", None, persistent=False)

    @property
    def delta(self) -> Tensor:
        """The identity filter bank I, in the weight's shape. Made on demand: no forward pass reads it."""
        if self._tiled_delta is not None:
            return self._tiled_delta
        weight = self.weight
        return dirac_delta(tuple(weight.shape), self.groups, dtype=weight.dtype, device=weight.device)

    def effective_weight(self) -> Tensor:
        """What = diag(alpha) * I + diag(beta) * W / ||W||, as the convolution sees it."""
        tiled = self._tiled_delta
        prepared = dirac_weight(
            self.weight,
            self.alpha,
            self.beta,
            identity=tiled is None,
            groups=self.groups,
            backend=self.backend,
        )
        if tiled is None:
            return prepared
        return prepared + self.alpha.view((-1,) + (1,) * (tiled.dim() - 1)) * tiled

    def _padded(self, input: Tensor) -> tuple[Tensor, Any]:
        """(input, padding) with a padding mode other than zeros already applied."""
        if self.padding_mode == "zeros":
            return input, self.padding
        mode = self.padding_mode
        return F.pad(input, self._reversed_padding_repeated_twice, mode=mode), (0,) * len(self.kernel_size)

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "delta"] = self.delta

    def _load_from_state_dict(
        self, state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        state = dict(state_dict)
        delta = state.pop(prefix + "delta", None)
        for name in ("alpha", "beta"):  # version 1 has one scalar a layer
            tensor = state.get(prefix + name)
            if tensor is not None and tuple(tensor.shape) == (1,):
                state[prefix + name] = tensor.expand(self.out_channels)
        super()._load_from_state_dict(
            state, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._tiled_delta = None
        if delta is None:
            return
        if delta.shape != self.weight.shape:
            error_msgs.append(
                f"{prefix}delta has shape {tuple(delta.shape)}, the weight {tuple(self.weight.shape)}"
            )
        elif not torch.equal(delta.to(self.weight), self.delta):
            self._tiled_delta = delta.to(self.weight)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, form={self.form!r}, backend={self.backend!r}"


class DiracConv2d(_DiracConv, nn.Conv2d):
    """2-D Dirac convolution: y = conv(x, diag(alpha) * I + diag(beta) * W / ||W||) + bias.

    A ``torch.nn.Conv2d`` with the official constructor order (padding before stride). alpha and beta have
    shape (out_channels,) and start at 1 and 0.1; the identity is regenerated, never read from memory.

    Args:
        in_channels, out_channels, kernel_size, padding, dilation, bias: as the official module's.
        stride, groups, padding_mode, device, dtype: as ``torch.nn.Conv2d``'s.
        form, backend: as ``dirac_conv2d``'s.
    """

    def forward(self, input: Tensor) -> Tensor:
        padded, padding = self._padded(input)
        rest = (self.bias, self.stride, padding, self.dilation, self.groups)
        if self._tiled_delta is not None:
            return conv2d(padded, self.effective_weight().to(padded.dtype), *rest, backend=self.backend)
        return dirac_conv2d(
            padded, self.weight, self.alpha, self.beta, *rest, form=self.form, backend=self.backend
        )


class DiracConv1d(_DiracConv, nn.Conv1d):
    """1-D Dirac convolution; see ``DiracConv2d``. It runs on the 2-D kernels, as an image of height 1."""

    def forward(self, input: Tensor) -> Tensor:
        padded, padding = self._padded(input)
        padding = padding if isinstance(padding, str) else (0, *padding)
        rest = (self.bias, (1, *self.stride), padding, (1, *self.dilation), self.groups)
        image = padded.unsqueeze(-2)
        if self._tiled_delta is not None:
            filters = self.effective_weight().unsqueeze(2).to(padded.dtype)
            return conv2d(image, filters, *rest, backend=self.backend).squeeze(-2)
        filters = self.weight.unsqueeze(2)
        return dirac_conv2d(
            image, filters, self.alpha, self.beta, *rest, form=self.form, backend=self.backend
        ).squeeze(-2)


class DiracConv3d(_DiracConv, nn.Conv3d):
    """3-D Dirac convolution; see ``DiracConv2d``. Triton prepares the weight, torch convolves (materialised)."""

    def forward(self, input: Tensor) -> Tensor:
        padded, padding = self._padded(input)
        filters = self.effective_weight().to(padded.dtype)
        return F.conv3d(
            padded, filters, self.bias, self.stride, padding, self.dilation, self.groups
        )
