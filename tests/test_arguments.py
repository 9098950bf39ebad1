"""Arguments as people have them: numpy's integers are integers, what is no tensor is named, and no call's answer
depends on calls before it."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import triton_dirac as td
from tests.placement import DEVICE
from triton_dirac.models import diracnet

IMAGE, WEIGHT, GROUPED = torch.randn(2, 8, 9, 9), torch.randn(8, 8, 3, 3), torch.randn(8, 4, 3, 3)
ALPHA, BETA = torch.linspace(0.5, 1.5, 8), torch.linspace(0.1, 0.8, 8)  # the same in every process: they name tests


class Index:
    def __init__(self, value):
        self.value = value

    def __repr__(self):  # the same in every process, as the names of tests must be
        return "Index()"

    def __index__(self):
        return self.value


TWO = [np.int64(2), np.uint8(2), torch.tensor(2), Index(2), (np.int64(2), 2), [Index(2), torch.tensor(2)], (2,), [2]]
TWO += [torch.Size((2, 2)), np.array([2, 2]), range(2, 3)]
NO_INTEGERS = [2.0, True, np.float64(2), "2", None, (2, 2.0), (True, True), (2, 2, 2), (), {2: 2}, torch.tensor(2.0)]
NO_INTEGERS += [torch.tensor(True), np.bool_(True)]
CALLS = {
    "conv2d": lambda **geometry: td.conv2d(IMAGE, WEIGHT, **geometry),
    "dirac_conv2d": lambda **geometry: td.dirac_conv2d(IMAGE, WEIGHT, ALPHA, BETA, **geometry),
    "DiracConv2d": lambda **geometry: td.DiracConv2d(8, 8, 3, **geometry)(IMAGE),
}


@pytest.mark.parametrize("value", TWO, ids=repr)
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_integers_of_every_kind(call, name, value):
    torch.manual_seed(0)
    actual = call(**{name: value})
    torch.manual_seed(0)
    assert torch.equal(actual, call(**{name: 2}))


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
@pytest.mark.parametrize("name", ["stride", "padding", "dilation", "groups"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_no_integer_is_refused_also_after_an_equal_one(call, name, value):
    """2.0 and True are equal to 2 and 1, as keys of a dictionary too."""
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{name} must be .*integer"):
            call(**{name: value})
        for good in (1, 2, (2, 2)) if name != "groups" else (1,):
            call(**{name: good})


@pytest.mark.parametrize("two", [np.int64(2), torch.tensor(2), Index(2)], ids=repr)
def test_groups_and_channels(two):
    expected = F.conv2d(IMAGE, GROUPED, groups=2)
    torch.testing.assert_close(td.conv2d(IMAGE, GROUPED, groups=two), expected)
    assert torch.equal(
        td.dirac_conv2d(IMAGE, GROUPED, ALPHA, BETA, groups=two), td.dirac_conv2d(IMAGE, GROUPED, ALPHA, BETA, groups=2)
    )
    plain = td.dirac_weight(GROUPED, ALPHA, BETA, groups=2)
    assert torch.equal(td.dirac_weight(GROUPED, ALPHA, BETA, groups=two), plain)
    for groups in (two, [two], (two,), np.array([2])):
        assert torch.equal(td.dirac_weights([(GROUPED, ALPHA, BETA)], groups=groups)[0], plain)
    layer = td.DiracConv2d(Index(8), np.int32(8), torch.tensor(3), groups=two)
    assert repr(layer) == repr(td.DiracConv2d(8, 8, 3, groups=2))
    assert all(type(size) is int for size in (layer.in_channels, layer.groups, *layer.kernel_size, *layer.stride))


@pytest.mark.parametrize("groups", [1.0, True, "1", None, [1.0], [1, 1], [[1]]], ids=repr)
def test_groups_of_layers_are_refused_also_after_equal_ones(groups):
    layers = [(WEIGHT, ALPHA, BETA)]
    for _ in range(2):
        with pytest.raises(ValueError, match="groups must be an integer or one for each"):
            td.dirac_weights(layers, groups=groups)
        td.dirac_weights(layers, groups=1)
        td.dirac_weights(layers, groups=[1])


def test_from_conv_of_a_layer_sized_with_numpy():
    conv = nn.Conv2d(8, 8, 3, stride=np.int64(2), groups=np.int64(2), padding=(np.int64(1), 0))
    torch.testing.assert_close(td.from_conv(conv)(IMAGE), conv(IMAGE))


def test_nets_sized_with_numpy():
    net = diracnet(np.int64(10), np.int64(1), np.int64(7))
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 7)
    for wrong in ({"depth": 10.0}, {"depth": "10"}, {"width": 1.0}, {"num_classes": None}, {"width": True}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            diracnet(**({"depth": 10, "width": 1} | wrong))


# --- tensors ----------------------------------------------------------------------------------------------

NO_TENSORS = [None, 1.0, True, "x", np.ones(8, np.float32), [1.0], torch.float32]


def calls_with(name, value):
    """Every public function that takes a tensor of that name, with ``value`` for it."""
    tensors = {"input": IMAGE, "weight": WEIGHT, "alpha": ALPHA, "beta": BETA, "bias": ALPHA}
    tensors[name] = value
    layer = [tensors[key] for key in ("weight", "alpha", "beta")]
    yield lambda: td.dirac_conv2d(tensors["input"], *layer, tensors["bias"])
    if name in ("weight", "alpha", "beta"):
        yield lambda: td.dirac_weight(*layer)
        yield lambda: td.dirac_weights([layer])
    if name != "beta" and (name != "alpha" or value is not None):
        yield lambda: td.conv2d(tensors["input"], tensors["weight"], tensors["bias"], alpha=tensors["alpha"])


@pytest.mark.parametrize("value", NO_TENSORS, ids=repr)
@pytest.mark.parametrize("name", ["input", "weight", "alpha", "beta", "bias"])
def test_what_is_no_tensor_is_named(name, value):
    if name == "bias" and value is None:
        return
    for call in calls_with(name, value):
        with pytest.raises(TypeError, match=rf"{name} must be a torch\.Tensor( or None)?, got "):
            call()


@pytest.mark.parametrize("make", [td.DiracConv1d, td.DiracConv2d, td.DiracConv3d])
@pytest.mark.parametrize("value", NO_TENSORS, ids=repr)
def test_modules_name_it_too(make, value):
    with pytest.raises(TypeError, match=r"input must be a torch\.Tensor, got "):
        make(8, 8, 3)(value)


def test_modules_name_the_shape_they_take():
    with pytest.raises(ValueError, match=r"input must have shape \(N, C, L\) or \(C, L\), got \(2, 8, 9, 9\)"):
        td.DiracConv1d(8, 8, 3)(IMAGE)
    with pytest.raises(ValueError, match=r"input must have shape \(N, C, D, H, W\) or .*, got \(9, 9\)"):
        td.DiracConv3d(8, 8, 3)(IMAGE[0, 0])


@pytest.mark.parametrize("layers", [[None], [(WEIGHT, ALPHA)], ["abc"], [WEIGHT]], ids=type)
def test_layers_that_are_none(layers):
    with pytest.raises(ValueError, match=r"layers\[0\] must be \(weight, alpha, beta\), got "):
        td.dirac_weights(layers)


# --- other values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dtype": "float16"}, "dtype must be a floating-point dtype, got 'float16'"),
        ({"dtype": np.float32}, "dtype must be a floating-point dtype, got <class"),
        ({"eps": ALPHA}, r"eps must be a number, got torch\.Tensor"),
        ({"eps": torch.tensor(1e-12)}, "eps must be a number"),
        ({"eps": "1e-12"}, "eps must be a number, got '1e-12'"),
        ({"eps": None}, "eps must be a number, got None"),
        ({"identity": ALPHA}, "identity must be True or False"),
        ({"identity": "no"}, "identity must be True or False, got 'no'"),
        ({"identity": None}, "identity must be True or False, got None"),
    ],
    ids=str,
)
def test_options_of_the_preparation(change, message):
    with pytest.raises(TypeError, match=message):
        td.dirac_weight(WEIGHT, ALPHA, BETA, **change)
    with pytest.raises(TypeError, match=message):
        td.dirac_weights([(WEIGHT, ALPHA, BETA)], **change)


def test_numbers_that_are_equal_are_the_same_eps_in_any_order():
    for first, second in itertools.permutations([1, 1.0, np.float32(1), np.int64(1)], 2):
        expected = WEIGHT * BETA.view(-1, 1, 1, 1)
        for eps in (first, second):
            actual = td.dirac_weight(WEIGHT * 1e-3, ALPHA, BETA, eps=eps, identity=False)
            torch.testing.assert_close(actual, expected * 1e-3)


def test_functions_honour_torch_function():
    """Whatever stands in for a tensor takes the whole call, as with torch's own functions."""

    class Stand:
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return function, len(args), sorted(kwargs)

    stand = Stand()
    assert td.conv2d(stand, WEIGHT)[0] is td.conv2d
    assert td.dirac_conv2d(IMAGE, stand, ALPHA, BETA)[0] is td.dirac_conv2d
    assert td.dirac_weight(WEIGHT, stand, BETA)[0] is td.dirac_weight


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_integer_images_are_refused_and_not_rounded(dims, autocast):
    layer = (td.DiracConv1d, td.DiracConv2d, td.DiracConv3d)[dims - 1](3, 4, 3)
    image = torch.full((1, 3, *[6] * dims), 257)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=autocast):
        with pytest.raises(TypeError, match=r"input must be floating-point, got torch\.int64"):
            layer(image)
        with pytest.raises(TypeError, match=r"input must be floating-point"), td.prepared(layer):
            layer(image)


def test_integer_images_of_a_convolution_are_named():
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16), pytest.raises(TypeError, match=r"input.*int64"):
        td.conv2d(torch.full((1, 8, 6, 6), 257), torch.ones(4, 8, 3, 3))


@pytest.mark.parametrize("name", ["weight", "alpha", "beta"])
def test_sparse_tensors_are_refused(name):
    """torch adds a sparse vector to a slice out of bounds: sparse alpha wrote beyond the filters' memory."""
    given = {"weight": torch.ones(2, 1, 2, 1), "alpha": torch.ones(2), "beta": torch.ones(2)}
    given[name] = given[name].to_sparse()
    with pytest.raises((TypeError, ValueError), match=name):
        td.dirac_weight(**given)
    with pytest.raises((TypeError, ValueError), match=name):
        td.dirac_weights([tuple(given.values())])
    with pytest.raises((TypeError, ValueError), match=name):
        td.dirac_conv2d(torch.ones(1, 1, 4, 4), **given)
    if name == "alpha":
        with pytest.raises(TypeError, match=r"alpha must be a dense tensor, got one of layout torch\.sparse_coo"):
            td.conv2d(torch.ones(1, 1, 4, 4), given["weight"], alpha=given["alpha"])


@pytest.mark.parametrize("name", ["input", "weight"])
@pytest.mark.parametrize("backend", ["auto", "torch", "triton"])
def test_sparse_images_and_filters_are_refused_by_every_backend(name, backend, device):
    given = {"input": torch.ones(1, 2, 4, 4, device=device), "weight": torch.ones(2, 2, 3, 3, device=device)}
    given[name] = given[name].to_sparse()
    ones = torch.ones(2, device=device)
    with pytest.raises(TypeError, match=f"{name} must be a dense tensor"):
        td.conv2d(**given, backend=backend)
    with pytest.raises(TypeError, match=f"{name} must be a dense tensor"):
        td.dirac_conv2d(**given, alpha=ones, beta=ones, backend=backend)
