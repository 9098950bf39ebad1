"""Folding: the same function in torch.nn, and in ONNX."""

import copy
import pickle
import threading

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.folded import DIRAC, NORMS, PLAIN, RELATIVE, SIZES, assert_plain, assert_same, block, kinds, randomised
from triton_dirac.folding import fold
from triton_dirac.models import diracnet, diracnet18
from triton_dirac.models.diracnet import DiracNet
from triton_dirac.modules import DiracConv2d

DIMS = pytest.mark.parametrize("dims", [1, 2, 3])


def thin_imagenet():
    """diracnet18 in everything but its widths and number of classes."""
    with torch.device("meta"):
        stem = diracnet18().stem
    stem.conv, stem.bn = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(8)
    return DiracNet(stem, [8, 16, 16, 24], [4, 4, 4, 4], 10, "auto")


# --- fold -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, size, dtype",
    [
        (lambda: diracnet(10, 2), 32, torch.float32),
        (lambda: diracnet(10, 2), 32, torch.float64),
        (lambda: diracnet(34, 1, 100), 32, torch.float32),
        (thin_imagenet, 64, torch.float64),
    ],
    ids=["10-2 float32", "10-2 float64", "34-1 float32", "thin 18 float64"],
)
def test_nets(make, size, dtype):
    net = randomised(make()).to(dtype)
    state = copy.deepcopy(net.state_dict())
    folded = fold(net)
    image = torch.randn(2, 3, size, size, dtype=dtype)
    with torch.no_grad():
        assert_same(folded(image), net(image))
    assert "DiracConv2d" not in kinds(folded)
    assert "BatchNorm2d" not in kinds(folded)
    layers = [name for name, module in folded.named_modules() if isinstance(module, nn.Conv2d)]
    assert list(folded.state_dict()) == [f"{n}.{p}" for n in [*layers, "fc"] for p in ("weight", "bias")]
    for name, tensor in net.state_dict().items():  # fold leaves its argument as it was
        assert torch.equal(tensor, state[name])
    pickle.loads(pickle.dumps(folded))


def test_folded_parameters_as_published():
    with torch.device("meta"):
        folded = fold(diracnet18().eval())
    assert sum(p.numel() for p in folded.parameters()) == 11_511_784


@pytest.mark.parametrize("dtype", RELATIVE, ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "groups": 2, "bias": False}, {"padding_mode": "circular", "dilation": 2}],
    ids=str,
)
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "alone"])
@DIMS
def test_layers(dims, norm, options, dtype):
    layers = [
        DIRAC[dims](4, 6, 3, **({"padding": 1} | options)),
        *([NORMS[dims](6)] if norm else []),
        nn.ReLU(),
    ]
    model = randomised(nn.Sequential(*layers)).to(dtype)
    image = torch.randn(2, 4, *SIZES[dims]).to(dtype)
    folded = fold(model)
    assert kinds(folded) == [f"Conv{dims}d", *(["Identity"] if norm else []), "ReLU"]
    assert_plain(folded)
    assert_same(folded(image), model(image))
    single = fold(model[0])
    assert type(single) is PLAIN[dims]
    assert_same(single(image), model[0](image))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_memory_format_mode_and_requires_grad_are_kept(memory_format):
    model = randomised(nn.Sequential(DiracConv2d(4, 6, 3), nn.BatchNorm2d(6))).to(memory_format=memory_format)
    model[0].weight.requires_grad_(False)
    folded = fold(model)
    assert folded[0].weight.is_contiguous(memory_format=memory_format)
    assert not folded[0].weight.requires_grad
    assert not any(module.training for module in folded.modules())


def test_tiled_identity():
    conv = DiracConv2d(8, 4, 3, 1)
    n = nn.init.dirac_(torch.empty(4, 4, 3, 3))
    conv.load_state_dict(conv.state_dict() | {"delta": n.repeat(1, 2, 1, 1), "alpha": torch.tensor([5.0])})
    image = torch.randn(2, 8, 6, 6)
    assert_same(fold(conv.eval())(image), conv(image))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(6, affine=False), nn.SyncBatchNorm(6), nn.BatchNorm2d(6, eps=0.1)], ids=str
)
@pytest.mark.parametrize("conv", [nn.Conv2d, DiracConv2d])
def test_every_batch_norm_and_ordinary_convolutions(conv, norm):
    model = randomised(nn.Sequential(conv(4, 6, 3), norm))
    image = torch.randn(2, 4, 8, 8)
    assert kinds(fold(model)) == ["Conv2d", "Identity"]
    assert_same(fold(model)(image), model(image))


class Attributes(nn.Module):
    """Layers as attributes, called in turn; ``forward`` is given by the test."""

    def __init__(self, forward, **more):
        super().__init__()
        self.conv1, self.bn1, self.act = DiracConv2d(4, 4, 3, 1), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.bn2 = DiracConv2d(4, 4, 3, 1), nn.BatchNorm2d(4)
        for name, module in more.items():
            self.add_module(name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def used_twice(m, x):
    y = m.conv1(x)
    return m.bn1(y) + y


def data_dependent(m, x):
    return m.bn1(m.conv1(x)) if x.sum() > 0 else m.bn2(m.conv2(x))


@pytest.mark.parametrize(
    "forward, left",
    [
        (lambda m, x: m.bn2(m.conv2(m.act(m.bn1(m.conv1(x))))), 0),
        (
            lambda m, x: m.bn2(m.conv1(m.bn1(m.conv2(x)))),
            0,
        ),  # the order of calls counts, not that of attributes
        (lambda m, x: m.bn2(m.conv2(x)) + m.bn1(m.conv1(x)), 0),
        (lambda m, x: m.bn1(m.conv1(m.bn1(m.conv1(x)))), 1),  # one pair, twice: folds; bn2 is never called
        (lambda m, x: m.conv1(m.bn1(x)), 2),
        (lambda m, x: m.bn1(m.act(m.conv1(x))), 2),
        (used_twice, 2),
        (lambda m, x: m.bn2(m.bn1(m.conv1(x))), 1),  # the second follows the first
        (lambda m, x: m.bn1(m.conv1(x)) + m.bn2(m.conv1(x)), 2),  # one convolution, two batch-norms
        (lambda m, x: m.bn1(m.conv1(x)) + m.bn1(m.conv2(x)), 2),  # two convolutions, one batch-norm
        (lambda m, x: m.bn1(m.conv1(x) + m.conv2(x)), 2),
        (lambda m, x: m.bn1(m.conv1(x) * 2), 2),
        (data_dependent, 2),
    ],
)
def test_only_a_batch_norm_that_directly_follows_is_folded(forward, left):
    model = randomised(Attributes(forward))
    folded = fold(model)
    assert_same(folded(torch.ones(2, 4, 8, 8)), model(torch.ones(2, 4, 8, 8)))
    image = torch.randn(2, 4, 8, 8)
    assert_same(folded(image), model(image))
    assert kinds(folded).count("BatchNorm2d") == left
    assert "DiracConv2d" not in kinds(folded)


@pytest.mark.parametrize(
    "make, left",
    [
        (lambda: block(nn.BatchNorm2d(4), DiracConv2d(4, 4, 3)), 1),
        (lambda: block(DiracConv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), 1),
        (lambda: block(block(DiracConv2d(4, 4, 3)), nn.BatchNorm2d(4)), 1),  # called by different modules
        (lambda: block(DiracConv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), 1),
        (lambda: block(DiracConv2d(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), 1),
        (lambda: block(block(DiracConv2d(4, 4, 3), nn.BatchNorm2d(4)), nn.ReLU()), 0),
    ],
)
def test_sequential(make, left):
    model = randomised(make())
    image = torch.rand(2, 4, 8, 8)
    assert_same(fold(model)(image), model(image))
    assert kinds(fold(model)).count("BatchNorm2d") == left


def test_a_shared_block_is_folded_once():
    shared = block(DiracConv2d(4, 4, 3, 1), nn.BatchNorm2d(4))
    model = randomised(block(shared, nn.ReLU(), shared))
    image = torch.randn(2, 4, 8, 8)
    folded = fold(model)
    assert folded[0] is folded[2]
    assert_same(folded(image), model(image))


class PicksFeatures(nn.Module):
    """Walks through a Sequential by hand and returns what lies inside, as detection backbones do."""

    def __init__(self, at):
        super().__init__()
        self.features, self.at = block(DiracConv2d(4, 4, 3, 1), nn.BatchNorm2d(4), nn.ReLU()), at

    def forward(self, x):
        found = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.at:
                found.append(x)
        return torch.cat(found)


@pytest.mark.parametrize("at, left", [((1, 2), 0), ((0, 2), 1)])
def test_features_picked_from_a_sequential(at, left):
    model = randomised(PicksFeatures(at))
    image = torch.randn(2, 4, 8, 8)
    assert_same(fold(model)(image), model(image))
    assert kinds(fold(model)).count("BatchNorm2d") == left


def test_hooks_see_what_they_saw():
    model = randomised(block(DiracConv2d(4, 4, 3), nn.BatchNorm2d(4), DiracConv2d(4, 4, 3), nn.BatchNorm2d(4)))
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model[3].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = torch.randn(2, 4, 8, 8)
    expected = model(image)
    folded = fold(model)
    assert kinds(folded) == ["Conv2d", "BatchNorm2d"] * 2
    assert_same(folded(image), expected)
    for before, after in zip(seen[:2], seen[2:], strict=True):
        assert_same(after, before)


def test_a_list_that_also_holds_the_layers_sees_the_folded_ones():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = DiracConv2d(4, 4, 3), nn.BatchNorm2d(4)
            self.order = [self.conv, self.bn]

        def forward(self, x):
            for layer in self.order:
                x = layer(x)
            return x

    model = randomised(Listed())
    image = torch.randn(2, 4, 8, 8)
    assert kinds(fold(model)) == ["Conv2d", "Identity"]
    assert_same(fold(model)(image), model(image))


def test_training_mode_is_refused():
    net = diracnet(10, 1)
    with pytest.raises(RuntimeError, match=r"fold needs evaluation mode: call model.eval\(\) first \(DiracNet is"):
        fold(net)
    net.eval().groups[1].block0.bn.train()
    with pytest.raises(RuntimeError, match=r"\(groups.1.block0.bn is in training mode\)"):
        fold(net)
    with pytest.raises(RuntimeError, match=r"\(DiracConv2d is in training mode\)"):
        fold(DiracConv2d(3, 3, 3))


def test_what_cannot_be_copied_is_refused():
    model = block(DiracConv2d(4, 4, 3)).eval()
    model.lock = threading.Lock()
    with pytest.raises(RuntimeError, match=r"this Sequential cannot be copied .cannot pickle '_thread.lock' object"):
        fold(model)


def test_what_no_plain_convolution_computes_is_refused():
    class Doubled(DiracConv2d):
        def forward(self, input):
            return 2 * super().forward(input)

    with pytest.raises(TypeError, match="Doubled overrides forward"):
        fold(block(Doubled(4, 4, 3)).eval())
    parametrised = parametrizations.spectral_norm(DiracConv2d(4, 4, 3)).eval()
    with pytest.raises(ValueError, match="cannot be folded while parametrised"):
        fold(parametrised)


def test_a_subclass_with_another_constructor_folds():
    class Square(DiracConv2d):
        def __init__(self, channels):
            super().__init__(channels, channels, 3, 1)

    conv = Square(4).eval()
    image = torch.randn(2, 4, 8, 8)
    assert type(fold(conv)) is nn.Conv2d
    assert_same(fold(conv)(image), conv(image))


# --- ONNX -------------------------------------------------------------------------------------------------


def test_a_folded_net_in_onnxruntime(tmp_path):
    net = randomised(diracnet(10, 1))
    image = torch.randn(3, 3, 32, 32)
    path = tmp_path / "net.onnx"
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(fold(net), (image[:2],), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for images in (image, image[:1]):
        (output,) = session.run(None, {session.get_inputs()[0].name: images.cpu().numpy()})
        assert_same(torch.from_numpy(output), net(images).cpu())
