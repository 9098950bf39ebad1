"""The official interface: its names, keys and functions, on current PyTorch."""

from urllib.error import URLError

import pytest
import torch

from tests.models.test_checkpoints import CIFAR, folded_state, official_output, thin_imagenet
from tests.tolerance import assert_as_good_as_torch
from triton_dirac import fold
from triton_dirac.models import diracnet, diracnet18, load_official, official, to_official

pytestmark = pytest.mark.cpu  # functions of torch, on tensors that the interface makes


def stirred(params):
    """Parameters and statistics as after a training: none is left at 0 or 1."""
    with torch.no_grad():
        for name, tensor in params.items():
            if name.endswith(("running_var", "alpha", "beta")) or ".bn.weight" in name:
                tensor.uniform_(0.5, 1.5)
            elif not name.startswith("eye") and tensor.dim() == 1:
                tensor.normal_(std=0.1)
    return params


def split(params):
    stats = {name: tensor for name, tensor in params.items() if "running" in name}
    return {name: tensor for name, tensor in params.items() if name not in stats}, stats


def test_the_functional_net_is_the_published_function_and_ours():
    f, params = official.define_diracnet(10, 1, "CIFAR10")
    stirred(params)
    images = torch.randn(2, 3, 32, 32)
    logits = f(images, params, False).detach()
    assert_as_good_as_torch("logits", logits, official_output(CIFAR, *split(params), images).detach())
    net = diracnet(10, 1).eval()
    load_official(net, params)
    assert_as_good_as_torch("ours", net(images).detach(), logits)
    assert set(to_official(net)) == set(params)


def test_its_training_mode_takes_the_batchs_statistics_and_keeps_running_ones():
    f, params = official.define_diracnet(10, 1, "CIFAR100")
    net = diracnet(10, 1, 100).train()
    load_official(net, params)
    images = torch.randn(8, 3, 16, 16)
    logits = f(images, params, True)
    assert_as_good_as_torch("logits", logits.detach(), net(images).detach())
    logits.square().mean().backward()
    net(images).square().mean().backward()
    for name, tensor in to_official(net).items():
        if "group0.block1" in name and "running" in name:
            net_twice = tensor  # the net has seen the batch twice
            assert not torch.equal(params[name], torch.zeros_like(net_twice))
    grads = {name: tensor.grad for name, tensor in params.items() if tensor.requires_grad}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    assert_as_good_as_torch("alpha", grads["group1.block0.alpha"], net.groups[1].block0.conv.alpha.grad)


@pytest.mark.parametrize(
    "depth, width, dataset, count",
    [
        (28, 10, "CIFAR10", 36_450_090),
        (34, 2, "CIFAR100", 1_865_988),
        (18, 1, "ImageNet", 11_523_368),
        (34, 1, "ImageNet", 21_638_952),
    ],
)
def test_its_parameters(depth, width, dataset, count):
    with torch.device("meta"):
        _, params = official.define_diracnet(depth, width, dataset)
    trained = {name: tensor for name, tensor in params.items() if tensor.requires_grad}
    assert sum(tensor.numel() for tensor in trained.values()) == count
    assert not any(name.startswith("eye") or "running" in name for name in trained)


def test_its_keys_come_in_the_official_order_of_kinds():
    _, params = official.define_diracnet(10, 0.5, "CIFAR10")
    names = list(params)
    assert names[:5] == ["conv", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    assert names[5:8] == ["group0.block0.conv", "group0.block0.alpha", "group0.block0.beta"]
    assert names[-5:] == ["eye8_8_3_3", "eye16_8_3_3", "eye16_16_3_3", "eye32_16_3_3", "eye32_32_3_3"]
    assert params["eye16_8_3_3"][7, 7, 1, 1] == 1
    assert params["eye16_8_3_3"].sum() == 8


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((10, 1, "cifar10"), "dataset must be 'CIFAR10', 'CIFAR100' or 'ImageNet', got 'cifar10'"),
        ((50, 1, "ImageNet"), "depth must be 18 or 34 for ImageNet, got 50"),
        ((11, 1, "CIFAR10"), r"depth must be 6n \+ 4"),
        ((10, 0.01, "CIFAR10"), "width must leave at least one channel, got 0.01"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        official.define_diracnet(*arguments)


# --- the released nets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("build, tensors, count", [("diracnet18", 36, 11_511_784), ("diracnet34", 68, 21_616_232)])
def test_the_folded_nets_build_and_have_the_released_keys(build, tensors, count):
    with torch.device("meta"):
        net = getattr(official, build)()
    assert len(net.state_dict()) == tensors
    assert sum(p.numel() for p in net.parameters()) == count
    assert list(net.state_dict())[:3] == [
        "features.conv.weight",
        "features.conv.bias",
        "features.group0.block0.conv.weight",
    ]


def test_a_trained_net_becomes_the_released_layout_with_the_same_function():
    _, params = official.define_diracnet(18, 1, "ImageNet")
    f, _ = official.define_diracnet(18, 1, "ImageNet")
    stirred(params)
    net = diracnet18().eval()
    load_official(net, params)
    released = official.diracnet18().eval()
    released.load_state_dict(to_official(fold(net)), strict=True)
    images = torch.randn(1, 3, 64, 64)
    expected = f(images, params, False).detach()
    torch.testing.assert_close(released(images).detach(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    folded = fold(diracnet18().eval())
    load_official(folded, released.state_dict())
    torch.testing.assert_close(folded(images).detach(), released(images).detach())


def test_thin_states_load_by_name():
    """The keys are the released ones, whatever the widths."""
    assert set(folded_state(*split(to_official(thin_imagenet())))) == set(to_official(fold(thin_imagenet())))


def test_pretrained_weights_are_fetched_from_the_released_address_and_a_failure_says_what_to_do(monkeypatch):
    asked = []

    def fetch(url, **options):
        asked.append((url, options))
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    with pytest.raises(
        RuntimeError, match=r"could not fetch https://\S+diracnet34v2folded-dfb15d34.pth .*no network.*load_state_dict"
    ):
        official.diracnet34(pretrained=True)
    assert asked[0][1] == {"map_location": "cpu", "check_hash": True, "weights_only": True}
    trained = official.diracnet18()
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **options: trained.state_dict())
    assert torch.equal(official.diracnet18(pretrained=True).fc.weight, trained.fc.weight)


def test_a_depth_that_was_not_released_is_refused():
    with pytest.raises(ValueError, match="depth must be 18 or 34, got 50"):
        official.DiracNet(50)
