"""The three modules with any arguments and any parameters, alone and in ``prepared``: right against float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import triton_dirac as td
from tests.fuzz.calls import backwards, check_convolution
from tests.fuzz.expected import convolution
from tests.fuzz.geometry import Geometry, geometries
from tests.fuzz.tensors import Spec, specs

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
KINDS = {1: td.DiracConv1d, 2: td.DiracConv2d, 3: td.DiracConv3d}
CONTENTS = ("normal", "normal", "a zero row", "zeros")


class Drawn(NamedTuple):
    """A module to be made and the image for it."""

    geometry: Geometry
    tensors: dict[str, Spec | str | None]
    padding_mode: str
    form: str

    def make(self, backend: str, device: torch.device, round: int) -> nn.Module:
        (filters, channels, *window), g = self.geometry.weight, self.geometry
        module = KINDS[len(window)](
            *(channels * g.groups, filters, tuple(window), g.padding, g.dilation, self.tensors["bias"] is not None),
            stride=g.stride, groups=g.groups, padding_mode=self.padding_mode, form=self.form, backend=backend,
        )  # fmt: skip
        for name in ("weight", "alpha", "beta", "bias"):
            spec = self.tensors[name]
            if isinstance(spec, Spec):
                made = spec.make(device, round)
                setattr(module, name, nn.Parameter(made.detach(), requires_grad=spec.trained))
        if self.tensors["beta"] == "alpha":
            module.beta = module.alpha
        return module

    def convolve(self):
        g = self.geometry
        rest = (g.stride, g.padding, g.dilation, g.groups, self.padding_mode)
        return convolution(len(g.window), *rest)


@st.composite
def modules(draw, dtype: torch.dtype) -> Drawn:
    geometry = draw(geometries(dims=draw(st.sampled_from([1, 2, 2, 3]))))
    padding_mode = "zeros"
    if isinstance(geometry.padding, (int, tuple)) and draw(st.booleans()):
        padding_mode = draw(st.sampled_from(["reflect", "replicate", "circular"]))
        sides = geometry.padding if isinstance(geometry.padding, tuple) else (geometry.padding,) * len(geometry.window)
        image = [max(size, side + 1) for size, side in zip(geometry.image[2:], sides, strict=True)]
        geometry = geometry._replace(image=(max(1, geometry.image[0]), geometry.image[1], *image))
    vector = (geometry.weight[0],)
    tensors: dict[str, Spec | str | None] = {
        "image": draw(specs(geometry.image, dtype)),
        "weight": draw(specs(geometry.weight, dtype, CONTENTS)),
        "alpha": draw(specs(vector, dtype)),
        "beta": draw(specs(vector, dtype)),
        "bias": draw(st.none() | specs(vector, dtype)),
    }
    if draw(st.sampled_from([False, False, True])):
        tensors["beta"] = "alpha"
    return Drawn(geometry, tensors, padding_mode, draw(st.sampled_from(["split", "materialised"])))


def leaves_of(module: nn.Module, image: torch.Tensor) -> dict:
    return {"image": image} | {name: getattr(module, name) for name in ("weight", "alpha", "beta", "bias")}


@pytest.mark.parametrize("backend", ["triton", "torch", "auto"])
@given(data=st.data())
def test_module(data, backend, device):
    dtypes = [torch.float32, torch.float32, torch.float16, torch.bfloat16]
    dtype = data.draw(st.sampled_from(dtypes if backend == "triton" else [*dtypes, torch.float64]), label="dtype")
    layer = data.draw(modules(dtype), label="layer")
    backward = data.draw(backwards("image", "weight", "alpha", "beta", "bias"), label="backward")
    for round in range(data.draw(st.sampled_from([1, 2]), label="rounds")):
        module = layer.make(backend, device, round)
        leaves = leaves_of(module, layer.tensors["image"].make(device, round))
        check_convolution(
            lambda leaves, module=module: module(leaves["image"]), leaves, layer.tensors, layer.convolve(), backward,
            eps=1e-12, groups=layer.geometry.groups, activation=None,
        )  # fmt: skip


class Net(nn.Module):
    """Layers, each with an image of its own, called one after the other."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        return [layer(image) for layer, image in zip(self.layers, images, strict=True)]


@pytest.mark.parametrize("backend", ["triton", "torch", "auto"])
@given(data=st.data())
def test_prepared(data, backend, device):
    dtype = data.draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16]), label="dtype")
    layers = data.draw(st.lists(modules(dtype), min_size=1, max_size=3), label="layers")
    again = data.draw(st.booleans(), label="the first layer is called again")
    nets = data.draw(st.sampled_from([1, 2]), label="calls of the net in one block")
    backward = data.draw(backwards("image", "weight", "alpha", "beta", "bias"), label="backward")
    made = [layer.make(backend, device, 0) for layer in layers]
    used, called = (layers + layers[:1], made + made[:1]) if again else (layers, made)
    net = Net(called)
    with td.prepared(net):
        for round in range(nets):
            images = [layer.tensors["image"].make(device, round) for layer in used]
            outputs = net(images)
            for layer, module, image, output in zip(used, called, images, outputs, strict=True):
                check_convolution(
                    lambda _, output=output: output, leaves_of(module, image), layer.tensors, layer.convolve(),
                    backward._replace(changed=None), eps=1e-12, groups=layer.geometry.groups, activation=None,
                )  # fmt: skip
            if round + 1 < nets:  # as an optimiser would; the next call must see it
                backward.change(outputs[0], leaves_of(called[0], images[0]))
