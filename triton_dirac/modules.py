"""Dirac convolutions as modules: torch's own convolution modules with alpha, beta and the identity inside.

Constructor order, parameters and state-dict keys are those of the official DiracNets code, so that its
checkpoints load strictly. Source: arXiv 1706.00388.
"""

# No ``from __future__ import annotations`` here: torch.fx keeps forward's, and cannot pickle those that are strings.
import copy
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from triton_dirac.conv3d import conv3d, dirac_conv3d
from triton_dirac.functional import BACKENDS, FORMS, conv2d, dirac_conv2d, dirac_weight
from triton_dirac.identity_term import centred, diagonal, with_identity
from triton_dirac.module_checks import (
    check_arguments,
    check_choice,
    check_foldable,
    check_image,
    check_not_rescaled,
    identity_of,
)
from triton_dirac.runtime.tracing import autocast_dtype
from triton_dirac.weight_prep.net_node import versions

if TYPE_CHECKING:
    from typing_extensions import Self

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
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not (isinstance(weight_decay, Real) and weight_decay >= 0):
        raise ValueError(f"weight_decay must be a non-negative number, got {weight_decay!r}")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


class Prepared(NamedTuple):
    """Filters made ahead of a forward pass, the identity term's alpha if it is not in them, and what they are of.

    A copy of it is None, and so is a saved one: copies of a layer have parameters of their own. Said here and not in
    the layer's ``__getstate__``, whose place others take (parametrisations), and which does more (``nn.Module``'s).
    """

    filters: Tensor
    alpha: Tensor | None
    state: tuple[Any, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


class _DiracConv(nn.modules.conv._ConvNd):
    """What the three modules share."""

    torch_class: ClassVar[type[nn.modules.conv._ConvNd]]
    dims: ClassVar[int]
    loading = False  # a state dict: it may assign any weight
    alpha: nn.Parameter
    beta: nn.Parameter

    if TYPE_CHECKING:  # torch's signatures lack ``memory_format`` alone

        def to(self, *args: Any, **kwargs: Any) -> "Self": ...

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
        checked = check_arguments(
            *(self.dims, in_channels, out_channels, kernel_size, padding, dilation, bias, stride, groups, dtype)
        )
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        check_choice("form", form, FORMS)
        check_choice("backend", backend, BACKENDS)
        super().__init__(  # type: ignore[call-arg]
            checked.in_channels,
            checked.out_channels,
            checked.kernel_size,  # type: ignore[arg-type]
            stride=checked.stride,  # type: ignore[arg-type]
            padding=checked.padding,  # type: ignore[arg-type]
            dilation=checked.dilation,  # type: ignore[arg-type]
            groups=checked.groups,
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
        self.alpha = nn.Parameter(torch.full((checked.out_channels,), ALPHA_START, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.full((checked.out_channels,), BETA_START, device=device, dtype=dtype))

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight" and not (self.training or self.loading):
            check_not_rescaled(type(self).__name__, self._parameters.get(name), param)
        super().register_parameter(name, param)

    def reset_parameters(self) -> None:
        """Start over, as a new layer does: after ``to_empty``, for one. Also what torch's constructor calls."""
        super().reset_parameters()
        if hasattr(self, "alpha"):  # torch's constructor calls this before ours has made alpha and beta
            nn.init.constant_(self.alpha, ALPHA_START)
            nn.init.constant_(self.beta, BETA_START)
            self.identity = "dirac"

    @property
    def delta(self) -> Tensor:
        """The identity filter bank I, in the weight's shape. Made on demand: no forward pass reads it."""
        return self._make_delta(self.identity, self.weight.dtype, self.weight.device)

    @delta.setter
    def delta(self, delta: Tensor) -> None:
        """As loading does it: ``torch.func.functional_call`` with a whole state dict assigns this, too."""
        self.identity = identity_of(self, delta)

    def _make_delta(self, identity: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        delta = torch.zeros(self.weight.shape, dtype=dtype, device=device)
        if identity == "tiled":
            return _tiled_delta(delta)
        diagonal(delta, self.groups).fill_(1)
        return delta

    def effective_weight(self) -> Tensor:
        """What = diag(alpha) * I + diag(beta) * W / ||W||, as the convolution sees it, differentiable."""
        return self._effective_weight(self.weight, self.alpha, self.beta, self.backend)

    def _effective_weight(self, weight: Tensor, alpha: Tensor, beta: Tensor, backend: str) -> Tensor:
        if self.identity == "tiled":
            return _tiled_weight(weight, alpha, beta, backend)
        return dirac_weight(weight, alpha, beta, groups=self.groups, backend=backend)

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """weight, alpha, beta, bias: from where they lie, since each lookup by attribute takes torch a microsecond."""
        own = self._parameters
        try:
            return own["weight"], own["alpha"], own["beta"], own["bias"]  # type: ignore[return-value]
        except KeyError:  # parametrised, or pruned
            return self.weight, self.alpha, self.beta, self.bias

    def _ready_filters(self, input: Tensor, tensors: Sequence[Any]) -> tuple[Tensor, Tensor | None] | None:
        """(filters, the identity term's alpha): prepared beforehand, or version 1's; None: still to be prepared."""
        if self.identity == "tiled":
            return self.effective_weight().to(input.dtype), None
        ready = self.prepared
        if ready is None or not isinstance(input, Tensor):  # torch.fx is tracing
            return None
        filters, term, state = ready
        weight, alpha, beta, _ = tensors
        if state != state_of(weight, alpha, beta) or filters.device != input.device:
            return None
        return (filters, term) if filters.dtype is (autocast_dtype(input) or input.dtype) else None

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
        self._check_foldable()
        fused = copy.deepcopy(self)
        fused.reparameterize()
        return fused

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Become, in place, the ``torch.nn`` convolution with the same function: class, parameters, keys.

        The effective weight is computed in float64 and rounded once. As right in training mode as in any.

        Raises:
            TypeError: the module overrides forward. ValueError: a parameter is parametrised, or made by a hook
                (pruning, the older weight_norm and spectral_norm).
        """
        weight = self._float64_weight()
        dtype, trained = self.weight.dtype, self.weight.requires_grad
        del self.alpha, self.beta, self.form, self.backend, self.identity, self.prepared
        self.__class__ = self.torch_class  # type: ignore[assignment]
        self.weight = nn.Parameter(weight.to(dtype), requires_grad=trained)

    switch_to_deploy = reparameterize

    def _float64_weight(self) -> Tensor:
        """The effective weight in float64, without gradients: what folding multiplies and rounds."""
        self._check_foldable()
        weight, alpha, beta = (p.detach().double() for p in (self.weight, self.alpha, self.beta))
        return self._effective_weight(weight, alpha, beta, "torch")

    def _check_foldable(self) -> None:
        check_foldable(self, {1: DiracConv1d, 2: DiracConv2d, 3: DiracConv3d}[self.dims])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "delta"] = self.delta

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        # Changed in place, as torch's own modules do: load_state_dict has made a copy, and what hooks add to it, as
        # parametrizations.weight_norm's does for checkpoints of the older weight_norm, must reach the submodules.
        delta = state_dict.pop(prefix + "delta", None)
        for name in ("alpha", "beta"):  # version 1, and version 2 at first, had one scalar a layer
            tensor, own = state_dict.get(prefix + name), self._parameters.get(name)
            if (
                isinstance(tensor, Tensor)
                and tuple(tensor.shape) == (1,)
                and (own is None or own.shape != tensor.shape)
            ):
                state_dict[prefix + name] = tensor.repeat(self.out_channels)
        self.loading = True
        try:
            super()._load_from_state_dict(
                state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
        finally:
            del self.loading
        if delta is not None:
            try:
                self.delta = delta
            except ValueError as error:
                error_msgs.append(str(error).replace("delta", f"{prefix}delta", 1))

    def extra_repr(self) -> str:
        tiled = ", identity='tiled'" if self.identity == "tiled" else ""
        return f"{super().extra_repr()}, form={self.form!r}, backend={self.backend!r}{tiled}"


class DiracConv2d(_DiracConv, nn.Conv2d):
    """2-D Dirac convolution: y = conv(x, diag(alpha) * I + diag(beta) * W / ||W||) + bias.

    A ``torch.nn.Conv2d`` with the official constructor order: padding, dilation, bias; stride and the rest go
    by name. alpha and beta have shape (out_channels,) and start at 1 and 0.1. The identity, delta, is neither
    stored nor read: it is made anew for the state dict, which the official code expects to have it.

    ``weight`` is W, for initialisers and optimisers to write to, and not the filters that the layer convolves with,
    ``effective_weight()``. Code that takes any ``nn.Conv2d`` and computes with its ``weight`` takes the wrong ones:
    batch-norm fusers, parent blocks that merge their children (timm's RepVGG, MobileOne, FastViT, RepViT),
    ``torch.utils.mkldnn``. Fold first: ``fold(model, example=x)``, or ``fold(model, norms=False)`` for such code to
    find plain convolutions. Where a fuser assigns what it made to ``weight`` in evaluation mode, it is refused.

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
        weight, alpha, beta, bias = tensors = self._tensors()
        # The geometry is written out twice: a call with ``*rest`` takes half a microsecond more.
        if (self.prepared is not None or self.identity == "tiled") and (ready := self._ready_filters(input, tensors)):
            weight, term = ready
            return conv2d(
                input, weight, bias, self.stride, padding, self.dilation, self.groups, alpha=term, backend=self.backend
            )
        return dirac_conv2d(
            input, weight, alpha, beta, bias, self.stride, padding, self.dilation, self.groups,
            form=self.form, backend=self.backend,
        )  # fmt: skip


class DiracConv1d(_DiracConv, nn.Conv1d):
    """1-D Dirac convolution; see ``DiracConv2d``. It runs on the 2-D kernels, as an image of height 1."""

    torch_class, dims = nn.Conv1d, 1

    def forward(self, input: Tensor) -> Tensor:
        check_image(input, 1)
        padded, padding = self._padded(input)
        padding = padding if isinstance(padding, str) else (0, *padding)
        rest = (self.bias, (1, *self.stride), padding, (1, *self.dilation), self.groups)
        image = padded.unsqueeze(-2)
        if ready := self._ready_filters(padded, self._tensors()):
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
        check_image(input, 3)
        padded, padding = self._padded(input)
        geometry: Any = (self.stride, padding, self.dilation, self.groups)
        weight, alpha, beta, bias = tensors = self._tensors()
        if ready := self._ready_filters(padded, tensors):
            return conv3d(padded, *ready, bias, *geometry)
        return dirac_conv3d(padded, weight, alpha, beta, bias, *geometry, form=self.form, backend=self.backend)


# --- pieces -----------------------------------------------------------------------------------------------


def state_of(weight: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Any, ...]:
    """What tells whether they are still those, and as they were, that filters were prepared from."""
    now: Any = None  # unknown to who compiles
    if not torch.compiler.is_compiling():
        try:
            now = weight._version, alpha._version, beta._version
        except RuntimeError:  # of inference mode
            now = tuple(versions((weight, alpha, beta)))
    return torch.is_grad_enabled(), id(weight), id(alpha), id(beta), now


def _tiled_weight(weight: Tensor, alpha: Tensor, beta: Tensor, backend: str) -> Tensor:
    """The effective weight with version 1's identity."""
    if has_torch_function_unary(weight):
        return handle_torch_function(_tiled_weight, (weight,), weight, alpha, beta, backend)
    prepared = dirac_weight(weight, alpha, beta, identity=False, backend=backend)
    return with_identity(prepared, alpha, _tiled_delta(prepared))


def _tiled_delta(filters: Tensor) -> Tensor:
    """Version 1's identity, in ``filters``' shape: I[k, c] = 1 where k = c modulo n = min(K, C)."""
    small, *_ = sorted(filters.shape[:2])
    matrix = torch.eye(small, dtype=filters.dtype, device=filters.device)
    return centred(matrix.repeat(filters.shape[0] // small, filters.shape[1] // small), filters.shape[2:])
