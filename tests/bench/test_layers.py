"""The layer tables, against the published ones (FACTS: arXiv 1706.00388)."""

import pytest
from torch import nn

from bench.layers import dirac_layers, every_layer, layers, shrink
from bench.nets import NETS, register_net
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
        "3x224x224-64 7x7 /2 x1, 64x56x56-64 3x3 x4, 64x28x28-128 3x3 x1, 128x28x28-128 3x3 x3, "
        "128x14x14-256 3x3 x1, 256x14x14-256 3x3 x3, 256x7x7-512 3x3 x1, 512x7x7-512 3x3 x3"
    ),
    "DiracNet-34": (
        "3x224x224-64 7x7 /2 x1, 64x56x56-64 3x3 x6, 64x28x28-128 3x3 x1, 128x28x28-128 3x3 x7, "
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


def test_the_nets_run_by_default_are_those_of_the_paper_s_tables():
    assert {name for name, net in NETS.items() if net.by_default} == set(PUBLISHED)


@pytest.mark.parametrize("net", PUBLISHED)
def test_layers_are_the_published_ones(net):
    found = layers(net)
    assert ", ".join(f"{layer.name} x{layer.count}" for layer in found) == PUBLISHED[net]
    assert [layer.has_identity for layer in found] == [False] + [True] * (len(found) - 1)
    assert [layer.needs_input_grad for layer in found] == [False] + [True] * (len(found) - 1)
    assert all(layer.problem.N == layer.published_batch == NETS[net].batch for layer in found)
    total = sum(layer.count * layer.problem.flops for layer in found) / 1e9
    assert total == pytest.approx(GIGAFLOPS[net], abs=0.1)


REPVGG_A0 = (
    "3x224x224-48 3x3 /2 x1, 48x112x112-48 3x3 /2 x1, 48x56x56-48 3x3 x1, 48x56x56-96 3x3 /2 x1, 96x28x28-96 3x3 x3, "
    "96x28x28-192 3x3 /2 x1, 192x14x14-192 3x3 x13, 192x14x14-1280 3x3 /2 x1"
)


def test_a_net_without_dirac_layers_has_its_published_layers_and_no_identity():
    """RepVGG-A0 (arXiv 2101.03697, table 2): 22 layers, 8.30 M parameters and 1.4 G multiply-adds as deployed."""
    found = layers("RepVGG-A0")
    assert ", ".join(f"{layer.name} x{layer.count}" for layer in found) == REPVGG_A0
    assert sum(layer.count for layer in found) == 22
    assert not any(layer.has_identity for layer in found)
    assert [layer.needs_input_grad for layer in found] == [False] + [True] * 7
    assert dirac_layers(["RepVGG-A0"]) == []
    one_image = sum(layer.count * layer.problem.flops for layer in found) / 2 / 256
    assert one_image == pytest.approx(1.4e9, rel=0.04)
    assert sum(p.numel() for p in NETS["RepVGG-A0"].build().parameters()) == pytest.approx(8.30e6, rel=2e-3)


def resnext_like():
    """Layers that differ in stride, dilation, groups or padding alone, and two that read the image."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stems = nn.ModuleList(nn.Conv2d(3, 16, 3, padding=1) for _ in range(2))
            self.rest = nn.ModuleList(
                nn.Conv2d(16, 16, 3, **other)
                for other in (
                    {"padding": 1}, {"padding": 1, "stride": 2}, {"padding": 1, "stride": (2, 1)},
                    {"padding": 1, "groups": 16}, {"padding": 2, "dilation": 2}, {"padding": 0},
                )
            )  # fmt: skip

        def forward(self, image):
            x = self.stems[0](image) + self.stems[1](image)
            return [layer(x) for layer in self.rest]

    return Two()


@pytest.fixture
def other_net():
    register_net("other", resnext_like, 8, 4)
    yield "other"
    del NETS["other"]
    layers.cache_clear()


def test_names_tell_layers_apart_and_every_layer_on_the_image_is_known(other_net):
    found = layers(other_net)
    base = "16x8x8-16 3x3"
    assert [layer.name for layer in found] == [
        "3x8x8-16 3x3", base, f"{base} /2", f"{base} /2x1", f"{base} g16", f"{base} d2", f"{base} p0",
    ]  # fmt: skip
    assert [(layer.count, layer.needs_input_grad) for layer in found] == [(2, False)] + [(1, True)] * 6
    assert shrink(found[4].problem).groups == 16


@pytest.mark.parametrize(
    "given, message",
    [
        (("DiracNet-18", nn.Identity, 8, 4), "a net named 'DiracNet-18' is registered already"),
        (("a,b", nn.Identity, 8, 4), "without commas, got 'a,b'"),
        (("new", nn.Identity, 0, 4), r"image_size must be a positive integer below 2 \*\* 31, got 0"),
        (("new", nn.Identity, 8, 2.5), r"batch must be a positive integer below 2 \*\* 31, got 2.5"),
    ],
)
def test_mistakes_in_registering_a_net_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        register_net(*given)


@pytest.mark.parametrize("batch", [None, 2])
def test_what_nets_have_in_common_is_one_layer(batch):
    shared = every_layer(PUBLISHED, batch)
    assert len({layer.problem for layer in shared}) == len(shared) == 26
    for net in PUBLISHED:
        assert [(layer.name, layer.counts[net]) for layer in shared if net in layer.counts] == [
            (layer.name, layer.count) for layer in layers(net)
        ]
    imagenet = [layer for layer in shared if layer.net == "DiracNet-18, DiracNet-34"]
    assert len(imagenet) == 8
    assert [layer.count for layer in imagenet] == [2, 10, 2, 10, 2, 14, 2, 8]
    assert {layer.net for layer in every_layer(["DiracNet-34"])} == {"DiracNet-34"}


def test_batch_replaces_the_published_one_but_is_not_taken_for_it():
    layer = layers("DiracNet-34-2", 2)[1]
    assert (layer.problem.N, layer.published_batch) == (2, 128)


@pytest.mark.parametrize("net", NETS)
def test_a_miniature_keeps_what_makes_a_layer_what_it_is(net):
    for layer in layers(net):
        whole, small = layer.problem, shrink(layer.problem)
        assert small.N == 2
        assert tuple(map(min, (5, 6), (whole.P, whole.Q))) == (small.P, small.Q)
        assert max(small.K, small.C) <= 64
        for name in ("R", "S", "stride", "padding", "dilation", "groups"):
            assert getattr(small, name) == getattr(whole, name)
        if layer.has_identity:
            assert small.K * whole.C == whole.K * small.C


def test_a_miniature_of_160_channels_keeps_the_odd_tail():
    assert shrink(ConvProblem(128, 160, 32, 32, 160, 3, 3, padding=(1, 1, 1, 1))).C == 40
