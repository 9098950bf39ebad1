"""From a trained convolution to a Dirac layer: the same function, and everything else taken over."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tests.folded import DIRAC, PLAIN, RELATIVE, SIZES, assert_same
from triton_dirac import DiracConv2d, fold, from_conv

DIMS = pytest.mark.parametrize("dims", [1, 2, 3])
CONVOLUTIONS = [
    ((4, 6), {}),
    ((6, 4), {"stride": 2, "padding": 1, "bias": False}),
    ((4, 6), {"groups": 2, "padding": "same", "dilation": 2}),
    ((6, 4), {"padding": 2, "padding_mode": "reflect"}),
]


@pytest.mark.parametrize("dtype", RELATIVE, ids=str)
@pytest.mark.parametrize("channels, options", CONVOLUTIONS, ids=str)
@DIMS
def test_from_conv(dims, channels, options, dtype):
    conv = PLAIN[dims](*channels, 3, **options, dtype=dtype)
    layer = from_conv(conv)
    assert type(layer) is DIRAC[dims]
    scale = conv.weight.abs().max().double()
    error = (layer.effective_weight().double() - conv.weight.double()).abs().max()
    assert error <= 2 * torch.finfo(dtype).eps * scale
    image = torch.randn(2, channels[0], *SIZES[dims]).to(dtype)
    assert_same(layer(image), conv(image))
    if dtype in (torch.float32, torch.float64):
        assert_same(fold(layer.eval())(image), conv(image))


def test_from_conv_takes_everything_over():
    conv = nn.Conv2d(4, 6, (3, 5), padding=(1, 2)).to(memory_format=torch.channels_last).eval()
    conv.bias.requires_grad_(False)
    layer = from_conv(conv, form="materialised", backend="torch")
    assert layer.weight.stride() == conv.weight.stride()
    assert (layer.form, layer.backend, layer.training) == ("materialised", "torch", False)
    assert [p.requires_grad for p in (layer.weight, layer.alpha, layer.beta, layer.bias)] == [
        True,
        True,
        True,
        False,
    ]
    assert torch.equal(layer.alpha[:4], conv.weight[range(4), range(4), 1, 2])
    before = conv.bias.clone()
    layer.bias.fill_(0)
    assert torch.equal(conv.bias, before)


def test_from_conv_of_filters_that_are_zero_or_the_identity():
    """Nothing is left for W there; it must still be able to learn, through beta."""
    conv = nn.Conv2d(4, 6, 3, padding=1)
    with torch.no_grad():
        nn.init.dirac_(conv.weight)
        conv.weight[1] = 0
        conv.weight[2] *= 0.25
    layer = from_conv(conv)
    assert torch.equal(layer.effective_weight(), conv.weight)
    assert torch.equal(layer.beta, torch.zeros(6))
    layer(torch.randn(2, 4, 8, 8)).square().sum().backward()
    assert layer.beta.grad.abs().min() > 0


def test_from_conv_of_tiny_filters():
    """Norms of 1e-14 are under dirac_weight's eps."""
    conv = nn.Conv2d(4, 6, 3, bias=False)
    with torch.no_grad():
        conv.weight *= 1e-14
    image = torch.randn(2, 4, 8, 8)
    assert_same(from_conv(conv)(image), conv(image))


def test_from_conv_of_a_depthwise_point():
    conv = nn.Conv2d(4, 4, 1, groups=4)
    image = torch.randn(2, 4, 8, 8)
    assert_same(from_conv(conv)(image), conv(image))


def test_fine_tuning_starts_where_the_convolution_ended():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    layer = from_conv(conv)
    image, upstream = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    conv(image).backward(upstream)
    layer(image).backward(upstream)
    assert_same(layer.alpha.grad, conv.weight.grad[range(4), range(4), 1, 1])
    assert_same(layer.bias.grad, conv.bias.grad)
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


class Standardised(nn.Conv2d):
    def forward(self, input):
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


def hooked():
    conv = nn.Conv2d(4, 4, 3)
    conv.register_forward_hook(lambda module, inputs, output: 2 * output)
    return conv


def filled(value, dtype=torch.float32):
    conv = nn.Conv2d(4, 4, 3, dtype=dtype)
    nn.init.constant_(conv.weight, value)
    return conv


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: nn.Linear(4, 4),
            TypeError,
            r"conv must be an nn.Conv1d, nn.Conv2d or nn.Conv3d, got Linear",
        ),
        (lambda: nn.ConvTranspose2d(4, 4, 3), TypeError, "got ConvTranspose2d"),
        (
            lambda: Standardised(4, 4, 3),
            TypeError,
            "must compute what nn.Conv2d does, but Standardised overrides",
        ),
        (
            lambda: DiracConv2d(4, 4, 3),
            TypeError,
            "must compute what nn.Conv2d does, but DiracConv2d overrides",
        ),
        (
            lambda: nn.LazyConv2d(4, 3),
            ValueError,
            "conv must have its sizes, but this LazyConv2d has not run yet",
        ),
        (hooked, ValueError, "conv must have no forward hooks"),
        (lambda: filled(torch.inf), ValueError, "norms that torch.float32 can hold, got inf"),
        (lambda: filled(torch.nan), ValueError, "norms that torch.float32 can hold, got nan"),
        (lambda: filled(6e4, torch.float16), ValueError, "norms that torch.float16 can hold, got 3549"),
        (
            lambda: nn.Conv2d(4, 4, 3, dtype=torch.complex64),
            TypeError,
            "must be floating-point, got torch.complex64",
        ),
        (lambda: None, TypeError, "got NoneType"),
    ],
)
def test_what_from_conv_refuses(make, error, message):
    with pytest.raises(error, match=message):
        from_conv(make())


# --- parametrised convolutions ----------------------------------------------------------------------------


def test_from_conv_of_a_parametrised_convolution_is_trained_as_that_was():
    """The weight is computed: without a gradient mode it asks for no gradient, and all came out frozen."""
    image = torch.randn(2, 4, 8, 8)
    conv = parametrizations.weight_norm(nn.Conv2d(4, 6, 3))
    for trained in (True, False):
        conv.requires_grad_(trained)
        layer = from_conv(conv)
        assert all(parameter.requires_grad == trained and parameter.is_leaf for parameter in layer.parameters())
        assert_same(layer(image), conv(image))
    layer.requires_grad_()(image).sum().backward()


def test_from_conv_leaves_what_a_parametrisation_keeps_and_takes_its_next_weight():
    """spectral_norm in training iterates at every look at the weight."""
    conv = parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)).train()
    state = copy.deepcopy(conv.state_dict())
    layer = from_conv(conv)
    for name, tensor in conv.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    image = torch.randn(2, 4, 8, 8)
    assert_same(layer(image), conv(image))


def test_from_conv_of_a_parametrised_bias():
    class Positive(nn.Module):
        def forward(self, tensor):
            return tensor.exp()

    conv = nn.Conv2d(4, 6, 3)
    parametrize.register_parametrization(conv, "bias", Positive())
    image = torch.randn(2, 4, 8, 8)
    assert_same(from_conv(conv)(image), conv(image))


class OnItsOwn(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean(), bias)


def replaced():
    conv = nn.Conv2d(4, 4, 3)
    conv.forward = lambda input: nn.Conv2d.forward(conv, input).relu()
    return conv


@pytest.mark.parametrize("make", [lambda: OnItsOwn(4, 4, 3), replaced], ids=["_conv_forward", "the object's forward"])
def test_other_ways_to_override_the_forward_are_refused(make):
    with pytest.raises(TypeError, match=r"must compute what nn\.Conv2d does"):
        from_conv(make())
