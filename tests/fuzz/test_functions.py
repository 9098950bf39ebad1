"""conv2d and dirac_conv2d on any arguments: right against float64, forward and backward, the first time and again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import triton_dirac as td
from tests.fuzz.calls import EPS, WEIGHTS, backwards, check_convolution, images, make_leaves, per_filter
from tests.fuzz.expected import convolution
from tests.fuzz.geometry import geometries
from tests.fuzz.tensors import specs
from triton_dirac.conv.epilogue import ACTIVATIONS

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),  # of silu, far below zero
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def conv_tensors(geometry, dtype, tie):
    filters = geometry.weight[0]
    tensors = {
        "image": images(geometry.image, dtype),
        "weight": specs(geometry.weight, dtype, WEIGHTS),
        "bias": st.none() | specs((filters,), dtype) | specs((filters,), torch.float32),
        "alpha": st.none() | per_filter(filters, dtype),
    }
    if tie == "image is weight":
        tensors["image"] = st.just("weight")
    if tie == "bias is alpha":
        tensors["alpha"], tensors["bias"] = specs((filters,), torch.float32), st.just("alpha")
    return st.fixed_dictionaries(tensors)


def dirac_tensors(geometry, dtype, tie):
    filters = geometry.weight[0]
    wide = st.sampled_from([dtype, torch.float32] if dtype != torch.float64 else [dtype])

    def of(weight_dtype):
        tensors = {
            "image": images(geometry.image, dtype),
            "weight": specs(geometry.weight, weight_dtype, WEIGHTS),
            "alpha": per_filter(filters, weight_dtype),
            "beta": per_filter(filters, weight_dtype),
            "bias": st.none() | specs((filters,), dtype),
        }
        if tie == "alpha is beta":
            tensors["alpha"] = st.just("beta")
        if tie == "bias is alpha":
            tensors["alpha"], tensors["bias"] = specs((filters,), torch.float32), st.just("alpha")
        return st.fixed_dictionaries(tensors)

    return wide.flatmap(of)


def check(data, function, tensors_of, ties, backend, device, **drawn_options):
    dtypes = DTYPES if backend == "triton" else [*DTYPES, torch.float64]
    dtype = data.draw(st.sampled_from(dtypes), label="dtype")
    tie = data.draw(st.sampled_from([None, None, None, *ties]), label="tie")
    geometry = data.draw(geometries(), label="geometry")
    if tie == "image is weight":  # one output pixel
        geometry = geometry._replace(image=geometry.weight, dilation=1, groups=1, padding=0)
        geometry = geometry._replace(weight=(geometry.weight[0], geometry.image[1], *geometry.window))
    if tie == "bias is alpha" and dtype == torch.float64:
        tie = None
    tensors = data.draw(tensors_of(geometry, dtype, tie), label="tensors")
    options = data.draw(
        st.fixed_dictionaries(
            {
                "activation": st.sampled_from([None, *ACTIVATIONS]),
                "precision": st.sampled_from([None, "ieee", "tf32x3"]),
            }
            | drawn_options
        ),
        label="options",
    )
    backward = data.draw(backwards(*tensors), label="backward")
    rounds = data.draw(st.sampled_from([1, 2]), label="rounds")
    convolve = convolution(2, *geometry[2:])
    for round in range(rounds):
        leaves = make_leaves(tensors, device, round)

        def call(leaves):
            named = {"input" if name == "image" else name: leaf for name, leaf in leaves.items()}
            return function(**named, **dict(zip(geometry._fields[2:], geometry[2:], strict=True)), **options,
                            backend=backend)  # fmt: skip

        check_convolution(
            call, leaves, tensors, convolve, backward,
            eps=options.get("eps", 1e-12), groups=geometry.groups, activation=options["activation"],
        )  # fmt: skip


@pytest.mark.parametrize("backend", ["triton", "torch", "auto"])
@given(data=st.data())
def test_conv2d(data, backend, device):
    check(data, td.conv2d, conv_tensors, ["image is weight", "bias is alpha"], backend, device)


@pytest.mark.parametrize("form", ["split", "materialised"])
@pytest.mark.parametrize("backend", ["triton", "torch", "auto"])
@given(data=st.data())
def test_dirac_conv2d(data, backend, form, device):
    ties = ["alpha is beta", "bias is alpha"]
    check(data, td.dirac_conv2d, dirac_tensors, ties, backend, device, form=st.just(form), eps=EPS)
