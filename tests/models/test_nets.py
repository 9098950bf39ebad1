"""The nets beside the DiracNets: sizes as published, functions as defined, names that commands take."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.tolerance import assert_as_good_as_torch
from triton_dirac import fold, models, reference
from triton_dirac.models import delta_orthogonal_, diracnet, diracnet_v1, net_named, plain, resnet, wide_resnet
from triton_dirac.models.resnet import PostActivation, PreActivation


def parameters(build):
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


@pytest.mark.parametrize(
    "build, count",
    [
        (lambda: plain(28, 10), 36_432_170),
        (lambda: wide_resnet(28, 10), 36_479_194),
        (lambda: wide_resnet(28, 10, 100), 36_536_884),
        (lambda: resnet(110), 1_730_522),
        (lambda: resnet(164, bottleneck=True), 1_703_258),
        (lambda: resnet(1001, bottleneck=True), 10_327_706),
        (models.resnet18, 11_689_512),
        (models.resnet34, 21_797_672),
        (models.vgg16, 14_724_042),
    ],
    ids=["plain", "WRN-28-10", "WRN-28-10 of 100", "ResNet-110", "164", "1001", "ResNet-18", "ResNet-34", "VGG-16"],
)
def test_parameter_counts(build, count):
    assert parameters(build) == count


# Where the net's own count is not the printed one, and why, is the row's note.
OWN_COUNTS = {"VGG-16": 14_724_042, "ResNet-1001": 10_327_706, "DiracNet-18": 11_523_368, "DiracNet-34": 21_638_952}


@pytest.mark.parametrize("name", models.PUBLISHED)
def test_a_published_row_builds_the_net_whose_numbers_it_prints(name):
    row = models.PUBLISHED[name]
    count = parameters(row.build)
    if name in OWN_COUNTS:
        assert count == OWN_COUNTS[name]
        assert row.note
    elif row.millions is not None:
        assert count / 1e6 == pytest.approx(row.millions, abs=0.051)
    with torch.device("meta"):
        images = torch.empty(2, 3, row.image_size, row.image_size)
        classes = 1000 if row.image_size == 224 else 10
        assert row.build()(images).shape == (2, classes)


def test_the_published_errors_are_those_of_the_tables():
    errors = {
        (name, result.dataset, result.source.split(",")[0]): result.error
        for name, row in models.PUBLISHED.items()
        for result in row.results
    }
    assert errors["DiracNet-28-10", "CIFAR-10", "arXiv 1706.00388"] == 4.75
    assert errors["DiracNet-28-5", "CIFAR-100", "arXiv 1706.00388"] == 23.44
    assert errors["ResNet-1001", "CIFAR-10", "arXiv 1706.00388"] == 4.92
    assert errors["ResNet-1001", "CIFAR-10", "He et al."] == 4.62
    assert errors["ResNet-34", "ImageNet top-5", "arXiv 1706.00388"] == 8.91
    assert len(errors) == 19
    assert list(models.DIRACNETS) == ["DiracNet-28-10", "DiracNet-28-5", "DiracNet-34-2", "DiracNet-18", "DiracNet-34"]


def test_resnet_1001_has_the_printed_parameters_without_its_batch_norms():
    with torch.device("meta"):
        net = resnet(1001, bottleneck=True)
    assert sum(p.numel() for p in net.parameters() if p.dim() > 1) == 10_178_480


def test_a_plain_net_is_the_diracnet_without_alpha_and_beta():
    ours, theirs = plain(16, 2), diracnet(16, 2)
    lacks = {name for name in theirs.state_dict() if name.endswith((".alpha", ".beta", ".delta"))}
    assert set(ours.state_dict()) == set(theirs.state_dict()) - lacks
    ours.load_state_dict({k: v for k, v in fold(theirs, norms=False).state_dict().items() if k not in lacks})
    images = torch.randn(2, 3, 32, 32)
    assert_as_good_as_torch("logits", ours(images), theirs(images))


@pytest.mark.parametrize("channels, stride", [(4, 1), (6, 1), (4, 2)])
def test_a_residual_block_is_its_definition(channels, stride):
    image = torch.randn(2, 4, 8, 8)
    block = PreActivation([4, channels, channels], [3, 3], stride)
    twin = copy.deepcopy(block)
    first = twin.norms[0](image).relu()
    inner = F.conv2d(first, twin.convs[0].weight, stride=stride, padding=1)
    expected = F.conv2d(twin.norms[1](inner).relu(), twin.convs[1].weight, padding=1)
    changes = channels != 4 or stride > 1
    expected = expected + (F.conv2d(first, twin.shortcut.weight, stride=stride) if changes else image)
    torch.testing.assert_close(block(image), expected)
    block = PostActivation(4, channels, stride)
    twin = copy.deepcopy(block)
    inner = twin.bn1(F.conv2d(image, twin.conv1.weight, stride=stride, padding=1)).relu()
    inner = twin.bn2(F.conv2d(inner, twin.conv2.weight, padding=1))
    skipped = twin.shortcut[1](F.conv2d(image, twin.shortcut[0].weight, stride=stride)) if changes else image
    torch.testing.assert_close(block(image), (inner + skipped).relu())


def test_a_bottleneck_halves_the_image_in_its_middle():
    block = PreActivation([8, 4, 4, 16], [1, 3, 1], 2)
    assert [conv.stride for conv in block.convs] == [(1, 1), (2, 2), (1, 1)]
    assert block(torch.randn(1, 8, 8, 8)).shape == (1, 16, 4, 4)


# --- version 1 ----------------------------------------------------------------------------------------------


def test_a_version_1_net_is_its_definition():
    """NCReLU, scalar alpha and beta, the identity tiled over both halves; no ReLU before the pooling."""
    net = diracnet_v1(10, 1).eval()
    assert {tuple(p.shape) for name, p in net.named_parameters() if name.endswith(("alpha", "beta"))} == {(1,)}
    images = torch.randn(2, 3, 32, 32)
    features = net.stem(images.double().float())
    for index, group in enumerate(net.groups):
        features = F.max_pool2d(features, 2) if index else features
        for block in group:
            conv = block.conv
            filters, channels = conv.weight.shape[:2]
            small = min(filters, channels)
            identity = torch.zeros_like(conv.weight)
            for k in range(filters):
                for c in range(channels):
                    identity[k, c, 1, 1] = float(k % small == c % small)
            weight = 5 * identity + 1e-3 * reference.dirac_weight(
                conv.weight, conv.alpha, torch.ones(1), identity=False
            )
            features = torch.cat([features.clamp(min=0), features.clamp(max=0)], 1)
            features = block.bn(F.conv2d(features, weight, padding=1))
    torch.testing.assert_close(net(images), net.fc(features.mean((2, 3))))


def test_a_version_1_net_loads_and_saves_its_scalars_trains_and_folds():
    net, twin = diracnet_v1(10, 1), diracnet_v1(10, 1)
    images = torch.randn(4, 3, 16, 16)
    net(images).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    torch.optim.SGD(net.parameters(), lr=0.01).step()
    twin.load_state_dict(net.state_dict())
    folded = fold(net.eval(), example=images)
    assert not [name for name in folded.state_dict() if "alpha" in name]
    torch.testing.assert_close(folded(images), twin.eval()(images), rtol=1e-4, atol=1e-5)
    meta = twin.groups[0].block0.conv
    meta.reset_parameters()
    assert (meta.alpha.item(), meta.identity) == (5.0, "tiled")


# --- starts and names ---------------------------------------------------------------------------------------


def test_a_delta_orthogonal_convolution_keeps_every_pixels_length():
    filters = delta_orthogonal_(torch.empty(16, 8, 3, 3, dtype=torch.float64), gain=2.0)
    image = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    output = F.conv2d(image, filters, padding=1)
    torch.testing.assert_close(output.norm(dim=1), 2 * image.norm(dim=1))
    net = plain(10, 1, start="delta-orthogonal")
    for module in net.groups.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight[:, :, 0].count_nonzero() == 0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: delta_orthogonal_(torch.empty(4, 8, 3, 3)), r"weight must have K >= C, got K = 4 and C = 8"),
        (lambda: delta_orthogonal_(torch.empty(4, 8)), r"weight must have shape \(K, C, \*window\), got \(4, 8\)"),
        (lambda: plain(16, 1, start="he"), "start must be one of 'kaiming', 'delta-orthogonal', got 'he'"),
        (lambda: resnet(16), r"depth must be 6n \+ 2 .*\(8, 14, 20, 26, \.\.\.\) where bottleneck is False, got 16"),
        (lambda: resnet(12, bottleneck=True), r"depth must be 9n \+ 2 .* where bottleneck is True, got 12"),
        (lambda: wide_resnet(27), r"depth must be 6n \+ 4 .* got 27"),
        (lambda: resnet(8, 0), r"width must be a positive integer below 2 \*\* 31, got 0"),
        (lambda: models.vgg16(0), r"num_classes must be a positive integer below 2 \*\* 31, got 0"),
        (lambda: net_named("densenet-100-12", 10), r"net must be one of diracnet-DEPTH-WIDTH, .* got 'dense"),
        (lambda: net_named("diracnet-17-1", 10), r"depth must be 6n \+ 4"),
    ],
)  # fmt: skip
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "name, build",
    [
        ("diracnet-16-2", lambda: diracnet(16, 2, 7)),
        ("diracnet-v1-16-1", lambda: diracnet_v1(16, 1, 7)),
        ("plain-16-2", lambda: plain(16, 2, 7)),
        ("plain-delta-orthogonal-16-2", lambda: plain(16, 2, 7)),
        ("resnet-20-1", lambda: resnet(20, 1, 7)),
        ("resnet-bottleneck-20-1", lambda: resnet(20, 1, 7, bottleneck=True)),
        ("wide-resnet-16-2", lambda: wide_resnet(16, 2, 7)),
        ("vgg-16", lambda: models.vgg16(7)),
        ("diracnet-18", lambda: models.diracnet18(7)),
        ("diracnet-34", lambda: models.diracnet34(7)),
        ("diracnet-v1-18", lambda: models.diracnet18_v1(7)),
        ("diracnet-v1-34", lambda: models.diracnet34_v1(7)),
        ("resnet-18", lambda: models.resnet18(7)),
        ("resnet-34", lambda: models.resnet34(7)),
    ],
)
def test_names(name, build):
    with torch.device("meta"):
        named, built = net_named(name, 7), build()
    shapes = [{key: tensor.shape for key, tensor in net.state_dict().items()} for net in (named, built)]
    assert shapes[0] == shapes[1]
