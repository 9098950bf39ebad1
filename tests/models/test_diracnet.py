"""The nets: parameter counts and layer tables as published, and that they train."""

import pytest
import torch

from triton_dirac.models import conv_problems, diracnet, diracnet18, diracnet34
from triton_dirac.modules import DiracConv2d


@pytest.mark.parametrize(
    "depth, width, classes, parameters",
    [
        (28, 5, 10, 9_124_250),
        (28, 10, 10, 36_450_090),
        (28, 10, 100, 36_507_780),
        (34, 2, 10, 1_854_378),
        (34, 2, 100, 1_865_988),
    ],
)
def test_parameters_of_the_cifar_nets(depth, width, classes, parameters):
    with torch.device("meta"):
        net = diracnet(depth, width, classes)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("net, parameters", [(diracnet18, 11_523_368), (diracnet34, 21_638_952)])
def test_parameters_of_the_imagenet_nets(net, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in net().parameters()) == parameters


@pytest.mark.parametrize(
    "net, size, batch, gflop, dirac_weights, dirac_layers",
    [
        (lambda: diracnet(28, 5), 32, 128, 347.9, 9_100_800, 24),
        (lambda: diracnet(28, 10), 32, 128, 1390.3, 36_403_200, 24),
        (lambda: diracnet(34, 2), 32, 128, 70.3, 1_843_200, 30),
        (diracnet18, 224, 256, 918.7, 10_985_472, 16),
        (diracnet34, 224, 256, 1865.7, 21_086_208, 32),
    ],
    ids=["28-5", "28-10", "34-2", "18", "34"],
)
def test_layer_tables(net, size, batch, gflop, dirac_weights, dirac_layers):
    with torch.device("meta"):
        net = net()
    problems = conv_problems(net, size, batch)
    assert sum(p.problem.flops for p in problems) / 1e9 == pytest.approx(gflop, abs=0.05)
    assert [p.kind for p in problems] == ["plain"] + ["dirac"] * dirac_layers
    modules = [m for m in net.modules() if isinstance(m, DiracConv2d)]
    assert sum(m.weight.numel() for m in modules) == dirac_weights
    for found in problems[1:]:
        p = found.problem
        assert (p.R, p.S, p.stride, p.padding, p.dilation, p.groups) == (
            3,
            3,
            (1, 1),
            (1, 1, 1, 1),
            (1, 1),
            1,
        )
        assert (p.P, p.Q) == (p.H, p.W)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: diracnet(27, 1), r"depth must be 6n \+ 4 .* got 27"),
        (lambda: diracnet(16, 0), r"width must be a positive integer below 2 \*\* 31, got 0"),
        (lambda: diracnet(16, 1, 0), r"num_classes must be a positive integer below 2 \*\* 31, got 0"),
        (lambda: diracnet18(-1), r"num_classes must be a positive integer below 2 \*\* 31, got -1"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_net_learns_a_batch_by_heart():
    net = diracnet(10, 1, 4)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    assert all(p.grad is not None for p in net.parameters())


def test_imagenet_net_runs():
    assert diracnet18(7).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 7)
