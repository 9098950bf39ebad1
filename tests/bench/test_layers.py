"""The layer tables, against the published ones (FACTS: arXiv 1706.00388)."""

import pytest

from bench.layers import NETS, crop, layers, shared_layers
from triton_dirac.conv.problem import ConvProblem

PUBLISHED = {
    "DiracNet-28-10": (
        "3x32x32-160 3x3 x1, 160x32x32-160 3x3 x8, 160x16x16-320 3x3 x1, 320x16x16-320 3x3 x7, "
        "320x8x8-640 3x3 x1, 640x8x8-640 3x3 x7"
    ),
    "DiracNet-28-5": (
        "3x32x32-80 3x3 x1, 80x32x32-80 3x3 x8, 80x16x16-160 3x3 x1, 160x16x16-160 3x3 x7, "
        "160x8x8-320 3x3 x1, 320x8x8-320 3x3 x7"
    ),
    "DiracNet-34-2": (
        "3x32x32-32 3x3 x1, 32x32x32-32 3x3 x10, 32x16x16-64 3x3 x1, 64x16x16-64 3x3 x9, "
        "64x8x8-128 3x3 x1, 128x8x8-128 3x3 x9"
    ),
    "DiracNet-18": (
        "3x224x224-64 7x7 x1, 64x56x56-64 3x3 x4, 64x28x28-128 3x3 x1, 128x28x28-128 3x3 x3, "
        "128x14x14-256 3x3 x1, 256x14x14-256 3x3 x3, 256x7x7-512 3x3 x1, 512x7x7-512 3x3 x3"
    ),
    "DiracNet-34": (
        "3x224x224-64 7x7 x1, 64x56x56-64 3x3 x6, 64x28x28-128 3x3 x1, 128x28x28-128 3x3 x7, "
        "128x14x14-256 3x3 x1, 256x14x14-256 3x3 x11, 256x7x7-512 3x3 x1, 512x7x7-512 3x3 x5"
    ),
}
GIGAFLOPS = {
    "DiracNet-28-10": 1390.3,
    "DiracNet-28-5": 347.9,
    "DiracNet-34-2": 70.3,
    "DiracNet-18": 918.7,
    "DiracNet-34": 1865.7,
}


def test_the_nets_are_those_of_the_paper_s_tables():
    assert set(NETS) == set(PUBLISHED)


@pytest.mark.parametrize("net", NETS)
def test_layers_are_the_published_ones(net):
    found = layers(net)
    assert ", ".join(f"{layer.name} x{layer.count}" for layer in found) == PUBLISHED[net]
    assert [layer.dirac for layer in found] == [False] + [True] * (len(found) - 1)
    assert all(layer.problem.N == layer.published_batch == NETS[net].batch for layer in found)
    total = sum(layer.count * layer.problem.flops for layer in found) / 1e9
    assert total == pytest.approx(GIGAFLOPS[net], abs=0.1)


@pytest.mark.parametrize("batch", [None, 2])
def test_what_nets_have_in_common_is_one_layer(batch):
    shared = shared_layers(NETS, batch)
    assert len({layer.problem for layer in shared}) == len(shared) == 26
    for net in NETS:
        assert [(layer.name, layer.counts[net]) for layer in shared if net in layer.counts] == [
            (layer.name, layer.count) for layer in layers(net)
        ]
    imagenet = [layer for layer in shared if layer.net == "DiracNet-18, DiracNet-34"]
    assert len(imagenet) == 8
    assert [layer.count for layer in imagenet] == [2, 10, 2, 10, 2, 14, 2, 8]
    assert {layer.net for layer in shared_layers(["DiracNet-34"])} == {"DiracNet-34"}


def test_batch_replaces_the_published_one_but_is_not_taken_for_it():
    layer = layers("DiracNet-34-2", 2)[1]
    assert (layer.problem.N, layer.published_batch) == (2, 128)


@pytest.mark.parametrize("net", NETS)
def test_crop_keeps_what_makes_a_layer_what_it_is(net):
    for layer in layers(net):
        whole, small = layer.problem, crop(layer.problem)
        assert (small.N, small.P, small.Q) == (2, 5, 6)
        assert max(small.K, small.C) <= 64
        for name in ("R", "S", "stride", "padding", "dilation", "groups"):
            assert getattr(small, name) == getattr(whole, name)
        if layer.dirac:
            assert small.K * whole.C == whole.K * small.C


def test_crop_of_160_channels_keeps_the_odd_tail():
    assert crop(ConvProblem(128, 160, 32, 32, 160, 3, 3, padding=(1, 1, 1, 1))).C == 40
