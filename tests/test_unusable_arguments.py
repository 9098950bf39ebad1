"""Tensors whose memory is gone or has no shape, and numbers that no size or norm can be: an error that names them."""

import numpy as np
import pytest
import torch

import triton_dirac as td

BACKENDS = ("auto", "torch", "triton")


def arguments():
    return {
        "input": torch.randn(2, 8, 9, 9),
        "weight": torch.randn(8, 8, 3, 3),
        "alpha": torch.rand(8),
        "beta": torch.rand(8),
    }


def call(function, given, **options):
    if function is td.conv2d:
        return function(given["input"], given["weight"], alpha=given["alpha"], **options)
    layer = (given["weight"], given["alpha"], given["beta"])
    if function is td.dirac_conv2d:
        return function(given["input"], *layer, **options)
    return function([layer], **options) if function is td.dirac_weights else function(*layer, **options)


TENSORS = {
    td.conv2d: ("input", "weight", "alpha"),
    td.dirac_conv2d: ("input", "weight", "alpha", "beta"),
    td.dirac_weight: ("weight", "alpha", "beta"),
    td.dirac_weights: ("weight", "alpha", "beta"),
}
CASES = [(function, name) for function, names in TENSORS.items() for name in names]


@pytest.mark.cpu
@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function, name", CASES)
def test_a_freed_storage_is_an_error_and_not_address_0(function, name, backend, called_before):
    """As offloading and sharding leave parameters; what an earlier call remembered may not let it pass."""
    given = arguments()
    if called_before:
        call(function, given, backend=backend)
    given[name].untyped_storage().resize_(0)
    with pytest.raises((ValueError, RuntimeError), match=r"storage|memory"):
        call(function, given, backend=backend)


@pytest.mark.cpu
@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("function, name", CASES)
def test_a_nested_tensor_is_an_error_and_does_not_end_the_process(function, name, called_before):
    given = arguments()
    if called_before:
        call(function, given)
    given[name] = torch.nested.nested_tensor([torch.randn(8, 9, 9), torch.randn(8, 5, 5)])
    with pytest.raises(TypeError, match=f"{name} must be a dense tensor, got a nested one"):
        call(function, given)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_an_integer_beyond_every_size_is_refused(name):
    given = arguments()
    for value in (2**31, 2**63, 10**30):
        with pytest.raises(ValueError, match=rf"{name} must be .*below 2 \*\* 31"):
            td.conv2d(given["input"], given["weight"], **{name: value})


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan"), float("inf"), 1e-46, 1e39, 10**400])
def test_an_eps_that_is_0_or_infinite_where_norms_are_is_refused(eps):
    given = arguments()
    with pytest.raises(ValueError, match="eps must be positive"):
        td.dirac_weight(given["weight"], given["alpha"], given["beta"], eps=eps)


def test_layers_that_are_none_are_named():
    with pytest.raises(TypeError, match=r"layers must be \(weight, alpha, beta\) of each layer, got 3"):
        td.dirac_weights(3)


def test_choices_are_words_and_no_arrays_of_them():
    for name in ("padding_mode", "form", "backend"):
        for value in (np.array(["split"]), np.array(["zeros", "auto"]), torch.ones(2)):
            with pytest.raises(ValueError, match=f"{name} must be one of"):
                td.DiracConv2d(4, 4, 3, **{name: value})
    image, weight, ones = torch.ones(1, 4, 5, 5), torch.ones(4, 4, 3, 3), torch.ones(4)
    for name in ("activation", "form", "backend", "precision"):
        with pytest.raises(ValueError, match=f"{name} must be "):
            td.dirac_conv2d(image, weight, ones, ones, **{name: np.array(["relu", "split"])})
