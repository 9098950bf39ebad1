"""RepVGG's and MobileOne's blocks as one convolution: timm's own blocks, and the official ones by their names."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from tests.folded import randomised
from triton_dirac import DiracConv2d, from_repvgg


@pytest.fixture(scope="module")
def byobnet():
    """timm's blocks. Its torchvision, built for another build of torch, may lack operators that nothing here calls."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for _ in range(20):
        try:
            import timm.models.byobnet as found

            return found
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            operator = str(error).partition("torchvision::")[2].split()[0]
            library.define(f"{operator}(Tensor x) -> Tensor")
        except ImportError as error:
            pytest.skip(str(error))
    raise AssertionError("timm cannot be imported")


def assert_same_function(block, activation, channels):
    image = torch.randn(2, channels, 9, 8)
    expected = block(image)
    layer, conv = from_repvgg(block), from_repvgg(block, dirac=False)
    assert type(layer) is DiracConv2d
    assert type(conv) is nn.Conv2d
    for one in (layer, conv):
        torch.testing.assert_close(activation(one(image)), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(block(image), expected, rtol=0, atol=0)  # unchanged
    return layer


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels, groups", [((8, 8), 1), ((8, 16), 1), ((8, 8), 2)], ids=str)
def test_timms_repvgg_block(byobnet, channels, groups, stride):
    block = byobnet.RepVggBlock(*channels, kernel_size=3, stride=stride, group_size=channels[0] // groups)
    layer = assert_same_function(randomised(block), block.act, channels[0])
    assert (layer.stride, layer.groups) == ((stride, stride), block.groups)
    assert (block.identity is not None) == (stride == 1 and channels[0] == channels[1])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("branches, kernel, group_size", [(1, 3, 0), (4, 3, 0), (2, 1, 0), (2, 3, 1)], ids=str)
def test_timms_mobileone_block(byobnet, branches, kernel, group_size, stride):
    block = byobnet.MobileOneBlock(
        8, 8, kernel_size=kernel, stride=stride, num_conv_branches=branches, group_size=group_size
    )
    assert_same_function(randomised(block), block.act, 8)


def test_a_whole_stage_and_blocks_that_are_merged_already(byobnet):
    block = randomised(byobnet.RepVggBlock(8, 8, kernel_size=3))
    image = torch.randn(1, 8, 6, 6)
    expected = block(image)
    block.reparameterize()
    torch.testing.assert_close(block.act(from_repvgg(block.eval())(image)), expected, rtol=1e-5, atol=1e-5)


class OfficialRepVGG(nn.Module):
    """Branches under the official names: DingXiaoH/RepVGG, repvgg.py."""

    def __init__(self, channels, stride=1):
        super().__init__()

        def branch(window):
            conv = nn.Conv2d(*channels, window, stride, window // 2, bias=False)
            return nn.Sequential()._modules | {"conv": conv, "bn": nn.BatchNorm2d(channels[1])}

        same = channels[0] == channels[1] and stride == 1
        self.rbr_identity = nn.BatchNorm2d(channels[0]) if same else None
        self.rbr_dense, self.rbr_1x1 = (self.sequence(branch(window)) for window in (3, 1))
        self.nonlinearity, self.se = nn.ReLU(), nn.Identity()

    @staticmethod
    def sequence(parts):
        found = nn.Sequential()
        for name, module in parts.items():
            found.add_module(name, module)
        return found

    def forward(self, x):
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.nonlinearity(self.rbr_dense(x) + self.rbr_1x1(x) + identity)


class OfficialMobileOne(nn.Module):
    """Branches under the official names: apple/ml-mobileone, mobileone.py."""

    def __init__(self, channels):
        super().__init__()

        def branch(window):
            parts = {"conv": nn.Conv2d(channels, channels, window, 1, window // 2, bias=False)}
            return OfficialRepVGG.sequence(parts | {"bn": nn.BatchNorm2d(channels)})

        self.rbr_skip = nn.BatchNorm2d(channels)
        self.rbr_conv = nn.ModuleList(branch(3) for _ in range(3))
        self.rbr_scale, self.activation = branch(1), nn.ReLU()

    def forward(self, x):
        return self.activation(sum(conv(x) for conv in self.rbr_conv) + self.rbr_scale(x) + self.rbr_skip(x))


@pytest.mark.parametrize(
    "block, channels",
    [
        (lambda: OfficialRepVGG((6, 6)), 6),
        (lambda: OfficialRepVGG((6, 10)), 6),
        (lambda: OfficialRepVGG((6, 6), 2), 6),
        (lambda: OfficialMobileOne(6), 6),
    ],
    ids=["RepVGG", "RepVGG, wider", "RepVGG, stride 2", "MobileOne"],
)
def test_blocks_under_the_official_names(block, channels):
    assert_same_function(randomised(block()), torch.relu, channels)


def test_what_the_identity_branch_adds_is_alphas():
    block = randomised(OfficialRepVGG((4, 4)))
    norm = block.rbr_identity
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    before = from_repvgg(block).alpha.detach()
    with torch.no_grad():
        norm.weight.zero_()
    torch.testing.assert_close(before - from_repvgg(block).alpha.detach(), scale.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: nn.ReLU(),
            TypeError,
            "block must have branches under the names conv_kxk, rbr_dense, rbr_conv, got ReLU",
        ),
        (lambda: OfficialRepVGG((4, 4)).train(), RuntimeError, "needs evaluation mode: call eval"),
        (
            lambda: wrong("rbr_dense", nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))),
            ValueError,
            "one convolution",
        ),
        (lambda: wrong("rbr_1x1", nn.Conv2d(4, 4, 5)), ValueError, "same channels, groups and windows up to 1 x 1"),
        (lambda: wrong("rbr_identity", nn.Conv2d(4, 4, 1)), ValueError, "must end in batch-norms with running stat"),
    ],
)
def test_what_is_no_such_block_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        from_repvgg(make())


def wrong(name, branch):
    block = OfficialRepVGG((4, 4))
    setattr(block, name, branch)
    return block.eval()
