"""Folding with the identity kept apart: the same function in plain operators, and filters that int8 can hold."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from tests.folded import DIRAC, NORMS, SIZES, assert_same, kinds, randomised
from triton_dirac import DiracConv2d, fold
from triton_dirac.fold_separate import ConvPlusIdentity
from triton_dirac.models import diracnet, diracnet_v1

DIMS = pytest.mark.parametrize("dims", [1, 2, 3])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels", [(4, 4), (3, 6), (6, 3)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"padding": 1, "stride": 2}, {"padding": 2, "dilation": 2}, {"padding": "same"}],
    ids=str,
)
@DIMS
def test_it_is_the_same_function(dims, options, channels, bias):
    pair = randomised(nn.Sequential(DIRAC[dims](*channels, 3, bias=bias, **options), NORMS[dims](channels[1])))
    image = torch.randn(2, channels[0], *SIZES[dims])
    for folded in (fold(pair, identity="separate"), fold(pair, example=image, identity="separate")):
        assert type(folded[0]) is ConvPlusIdentity
        assert kinds(folded) == [f"Conv{dims}d", "Identity"]
        assert_same(folded(image), pair(image))
        assert_same(folded[0](image[0]), pair(image)[0])  # unbatched, as the layer takes it


def test_padding_modes_leave_the_centre_where_it_is():
    for mode in ("reflect", "replicate", "circular"):
        layer = randomised(DiracConv2d(3, 5, 3, 1, padding_mode=mode))
        folded = fold(layer, identity="separate")
        image = torch.randn(2, 3, 6, 7)
        assert type(folded) is ConvPlusIdentity
        assert_same(folded(image), layer(image))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: DiracConv2d(4, 4, 3),
        lambda: DiracConv2d(4, 4, 2, 1),
        lambda: DiracConv2d(4, 4, 3, 2),
        lambda: DiracConv2d(4, 4, 3, 1, groups=2),
        lambda: diracnet_v1(10, 1).groups[0].block0.conv,
    ],
    ids=["no padding", "even window", "more padding", "groups", "version 1"],
)
def test_where_the_centre_tap_is_no_pixel_the_identity_is_folded(layer):
    layer = randomised(layer())
    folded = fold(layer, identity="separate")
    assert type(folded) is nn.Conv2d
    image = torch.randn(2, layer.in_channels, 6, 6)
    assert_same(folded(image), layer(image))


def test_a_layers_hooks_see_the_whole_of_it():
    layer, seen = randomised(DiracConv2d(3, 3, 3, 1)), []
    image = torch.randn(1, 3, 4, 4)
    expected = layer(image)
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    folded = fold(layer, identity="separate")
    seen.clear()
    folded(image)
    assert len(seen) == 1
    assert_same(seen[0], expected)


def test_a_net_has_the_names_it_had_and_loads_its_own_state():
    net = randomised(diracnet(10, 1))
    images = torch.randn(2, 3, 16, 16)
    expected = net(images)
    folded = fold(net, example=images, identity="separate")
    assert_same(folded(images), expected)
    assert "groups.1.block0.conv.conv.weight" in folded.state_dict()
    assert folded.groups[1].block0.conv.scale.shape == (16, 1, 1)
    assert type(folded.stem.conv) is nn.Conv2d
    assert type(net.groups[1].block0.conv) is DiracConv2d
    twin = fold(diracnet(10, 1).eval(), example=images, identity="separate")
    twin.load_state_dict(folded.state_dict())
    assert_same(twin(images), expected)


def test_without_norms():
    net = randomised(diracnet(10, 1))
    folded = fold(net, norms=False, identity="separate")
    assert kinds(folded).count("BatchNorm2d") == 7
    images = torch.randn(1, 3, 16, 16)
    assert_same(folded(images), net(images))


def test_a_wrong_choice_is_refused():
    with pytest.raises(ValueError, match="identity must be one of 'folded', 'separate', got 'apart'"):
        fold(diracnet(10, 1).eval(), identity="apart")


def test_it_runs_in_onnxruntime():
    onnxruntime = pytest.importorskip("onnxruntime")
    layers = (DiracConv2d(3, 3, 3, 1), nn.BatchNorm2d(3), DiracConv2d(3, 5, 3, 1, stride=2), nn.BatchNorm2d(5))
    net = randomised(nn.Sequential(*layers))
    images = torch.randn(2, 3, 7, 6)
    folded = fold(net, identity="separate")
    file = io.BytesIO()
    torch.onnx.export(folded, (images,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: images.cpu().numpy()})
    np.testing.assert_allclose(output, net(images).detach().cpu().numpy(), rtol=1e-3, atol=1e-4)


def rounded(weight):
    """To int8 with a step for each filter, by torch's own quantisation, and back."""
    observer = torch.ao.quantization.PerChannelMinMaxObserver(
        ch_axis=0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric
    )
    observer(weight)
    steps, zeros = observer.calculate_qparams()
    return torch.fake_quantize_per_channel_affine(weight, steps, zeros.int(), 0, -128, 127)


@pytest.mark.filterwarnings("ignore")
def test_int8_keeps_the_small_weights_where_the_identity_is_apart():
    """As at the start of a training: alpha 1, beta 0.1. Folded whole, the step is larger than most weights are."""
    layer = DiracConv2d(64, 64, 3, 1, bias=False).eval()
    whole, apart = fold(layer).weight.detach(), fold(layer, identity="separate").conv.weight.detach()
    errors = []
    for weight in (whole, apart):
        error = rounded(weight) - weight
        errors.append((error.flatten(1).norm(dim=1) / apart.flatten(1).norm(dim=1)).median().item())
    assert errors[0] > 0.5
    assert errors[1] < 0.02
