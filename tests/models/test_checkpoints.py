"""Official checkpoints, made here to the official layouts, give these nets the official function."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.tolerance import assert_as_good_as_torch
from triton_dirac.folding import fold
from triton_dirac.models import diracnet, diracnet34, diracnet_v1
from triton_dirac.models.checkpoints import load_official, read_official, to_official
from triton_dirac.models.diracnet import DiracNet

CIFAR = {"widths": (16, 32, 64), "blocks": (2, 2, 2), "stem": 3, "classes": 10}
DIRACNET_34 = {"widths": (64, 128, 256, 512), "blocks": (6, 8, 12, 6), "stem": 7, "classes": 1000}
THIN = {"widths": (8, 16, 16, 24), "blocks": (2, 2, 2, 2), "stem": 7, "classes": 10}


def flat_parameters(net, scalar=False, version=2):
    """(parameters, running statistics) with the keys and shapes of the official define_diracnet."""
    widths, blocks, stem = net["widths"], net["blocks"], net["stem"]
    params, stats = {}, {}

    def add_norm(base, n):
        params[f"{base}.weight"], params[f"{base}.bias"] = torch.rand(n) + 0.5, torch.randn(n) * 0.1
        stats[f"{base}.running_mean"], stats[f"{base}.running_var"] = (
            torch.randn(n) * 0.1,
            torch.rand(n) + 0.5,
        )

    params["conv"] = torch.randn(widths[0], 3, stem, stem) / stem
    add_norm("bn", widths[0])
    channels = widths[0]
    for g, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for b in range(count):
            base, per_filter = f"group{g}.block{b}", 1 if scalar else width
            params[f"{base}.conv"] = torch.randn(width, channels * (3 - version), 3, 3)
            params[f"{base}.alpha"] = torch.rand(per_filter) + 0.5
            params[f"{base}.beta"] = torch.rand(per_filter)
            add_norm(f"{base}.bn", width)
            channels = width
    params["fc.weight"] = torch.randn(net["classes"], widths[-1]) / 8
    params["fc.bias"] = torch.randn(net["classes"])
    return params, stats


def identities(params):
    """The eyeK_C_3_3 entries beside the parameters."""
    convs = [tensor for name, tensor in params.items() if name.endswith(".conv")]
    return {"eye" + "_".join(map(str, w.shape)): nn.init.dirac_(torch.empty_like(w)) for w in convs}


def folded_state(params, stats):
    """The released inference nets' state dict: features.*.{weight, bias} and fc."""
    state = {}
    for name in [name for name in params if name == "conv" or name.endswith(".conv")]:
        base = name.removesuffix("conv")
        weight = effective_weight(params, base) if base else params["conv"].double()
        scale = params[f"{base}bn.weight"].double() / (stats[f"{base}bn.running_var"].double() + 1e-5).sqrt()
        shift = params[f"{base}bn.bias"] - stats[f"{base}bn.running_mean"] * scale
        state[f"features.{name}.weight"] = (weight * scale.view(-1, 1, 1, 1)).float()
        state[f"features.{name}.bias"] = shift.float()
    return state | {name: params[name] for name in ("fc.weight", "fc.bias")}


def effective_weight(params, base):
    weight, alpha, beta = (params[base + name].double() for name in ("conv", "alpha", "beta"))
    unit = weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return alpha.view(-1, 1, 1, 1) * nn.init.dirac_(torch.empty_like(weight)) + beta.view(-1, 1, 1, 1) * unit


def official_output(net, params, stats, images):
    """The published net in float64, from the flat parameters."""
    values = {name: tensor.double() for name, tensor in (params | stats).items()}

    def batch_norm(x, base):
        mean, variance = values[f"{base}.running_mean"], values[f"{base}.running_var"]
        return F.batch_norm(x, mean, variance, values[f"{base}.weight"], values[f"{base}.bias"])

    cifar = net["stem"] == 3
    x = F.conv2d(images.double(), values["conv"], stride=1 if cifar else 2, padding=net["stem"] // 2)
    x = batch_norm(x, "bn")
    x = x.relu() if cifar else F.max_pool2d(x, 3, 2, 1)
    for g, count in enumerate(net["blocks"]):
        x = F.max_pool2d(x, 2) if g else x
        for b in range(count):
            base = f"group{g}.block{b}"
            x = batch_norm(F.conv2d(x.relu(), effective_weight(params, f"{base}."), padding=1), f"{base}.bn")
    return F.linear(x.relu().mean((2, 3)), values["fc.weight"], values["fc.bias"])


LAYOUTS = {
    "params, stats": lambda p, s: {"params": p, "stats": s, "optimizer": {"state": {}}, "epoch": 7},
    "stats among params": lambda p, s: {"params": p | s | identities(p), "epoch": 7, "optimizer": {}},
    "identities in stats": lambda p, s: {"params": p, "stats": s | identities(p)},
    "flat": lambda p, s: p | s | identities(p),
}


@pytest.mark.parametrize("scalar", [False, True], ids=["per filter", "scalar"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_training_checkpoints(layout, scalar):
    params, stats = flat_parameters(CIFAR, scalar)
    net = diracnet(10, 1, 10).eval()
    load_official(net, LAYOUTS[layout](params, stats))
    images = torch.randn(2, 3, 32, 32)
    assert_as_good_as_torch("logits", net(images), official_output(CIFAR, params, stats, images))


def thin_imagenet():
    """An ImageNet net in everything but its widths, blocks and number of classes."""
    with torch.device("meta"):
        stem = diracnet34().stem
    stem.conv, stem.bn = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(8)
    return DiracNet(stem, list(THIN["widths"]), list(THIN["blocks"]), THIN["classes"], "auto").eval()


def test_imagenet_checkpoint_folded_and_not():
    params, stats = flat_parameters(THIN)
    images = torch.randn(2, 3, 64, 64)
    expected = official_output(THIN, params, stats, images)
    net = thin_imagenet()
    load_official(net, {"params": params, "stats": stats})
    assert_as_good_as_torch("logits", net(images), expected)
    folded = fold(thin_imagenet())
    load_official(folded, folded_state(params, stats))
    assert_as_good_as_torch("folded logits", folded(images), expected)


def test_every_tensor_of_diracnet34_has_an_official_name():
    """On the meta device, where names and shapes are looked at before it is missed that there is no data."""
    with torch.device("meta"):
        params, stats = flat_parameters(DIRACNET_34)
        net = diracnet34()
        folded = fold(diracnet34().eval())
    state = dict(folded_state_shapes(params))
    assert len(state) == 68  # as the released diracnet34v2folded-dfb15d34.pth
    for model, checkpoint in ((net, {"params": params, "stats": stats}), (folded, state)):
        with pytest.raises(ValueError, match=r"model must have data, got .* on the meta device"):
            load_official(model, checkpoint)


def test_without_data_nothing_is_loaded_and_that_is_said():
    """torch only warns, and load_official returned as if it had loaded."""
    params, stats = flat_parameters(CIFAR)
    with torch.device("meta"):
        net = diracnet(10, 1)
    with pytest.raises(ValueError, match=r"model must have data, got .* stem\.conv\.weight .*to_empty"):
        load_official(net, params | stats)
    empty = {name: tensor.to("meta") for name, tensor in (params | stats).items()}
    with pytest.raises(ValueError, match=r"the checkpoint must have data, .* map_location"):
        load_official(diracnet(10, 1), empty)
    load_official(net.to_empty(device="cpu"), params | stats)
    for name, tensor in net.named_parameters():
        assert tensor.isfinite().all(), name


def folded_state_shapes(params):
    for name, tensor in params.items():
        if name == "conv" or name.endswith(".conv"):
            yield f"features.{name}.weight", tensor
            yield f"features.{name}.bias", tensor.new_empty(tensor.shape[0])
        elif name.startswith("fc."):
            yield name, tensor


def test_through_a_file_and_into_the_nets_own_dtype_and_layout(tmp_path):
    params, stats = flat_parameters(CIFAR)
    trained = {name: tensor.requires_grad_() for name, tensor in params.items()}
    torch.save({"params": trained, "stats": stats, "optimizer": {}, "epoch": 3}, tmp_path / "model.pt7")
    net = diracnet(10, 1, 10).eval().double().to(memory_format=torch.channels_last)
    load_official(net, torch.load(tmp_path / "model.pt7", weights_only=True))
    conv = net.groups[2].block1.conv
    assert conv.weight.dtype == torch.float64
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(conv.weight.float(), params["group2.block1.conv"])
    assert torch.equal(conv.alpha.float(), params["group2.block1.alpha"])


def without(checkpoint, key):
    return {name: tensor for name, tensor in checkpoint.items() if name != key}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda c: without(c, "group1.block0.beta"),
            r"not of this net: 1 missing: groups.1.block0.conv.beta. Nothing was loaded; was it another depth",
        ),
        (
            lambda c: c | {"group3.block0.conv": torch.ones(1)},
            r"1 unexpected: groups.3.block0.conv.weight",
        ),
        (
            lambda c: c | {"gamma": torch.ones(1)},
            r"has 'gamma' \(Tensor\): it is no official DiracNet checkpoint",
        ),
        (
            lambda c: c | {"fc.weight": torch.ones(100, 64)},
            r"1 misshapen: fc.weight \(100, 64\) where the net has \(10, 64\).* number of classes",
        ),
        (
            lambda c: c | {"bn.weight": torch.ones(1)},
            r"stem.bn.weight \(1,\) where the net has \(16,\)",
        ),
        (
            lambda c: without(c, "fc.bias") | {"group3.block0.conv": torch.ones(1), "conv": torch.ones(1)},
            r"1 missing: fc.bias; 1 unexpected: groups.3.block0.conv.weight; 1 misshapen: stem.conv.weight \(1,\)",
        ),
        (lambda c: folded_state(c, c), r"the checkpoint is folded: load it into a folded net"),
        (lambda c: {"state_dict": c}, r"has 'state_dict' \(dict\): it is no official"),
        (lambda c: c | {"conv": c["conv"] * 1j}, r"has 'conv' \(torch.complex64\): it is no official"),
        (
            lambda c: flat_parameters(CIFAR, True, 1)[0] | c_stats(c),
            r"\(16, 32, 3, 3\) .* is it of version 1 .* diracnet_v1 builds",
        ),
    ],
)
def test_wrong_checkpoints_load_nothing(change, message):
    params, stats = flat_parameters(CIFAR)
    net = diracnet(10, 1, 10)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=message):
        load_official(net, change(params | stats))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def c_stats(checkpoint):
    return {name: tensor for name, tensor in checkpoint.items() if "running" in name}


def test_other_wrong_arguments():
    params, stats = flat_parameters(CIFAR)
    with pytest.raises(ValueError, match="the checkpoint is not folded, the net is:"):
        load_official(fold(diracnet(10, 1, 10).eval()), params | stats)
    with pytest.raises(TypeError, match="model must be a DiracNet, got Linear"):
        load_official(nn.Linear(2, 2), params)
    with pytest.raises(TypeError, match=r"checkpoint must be a dictionary, as torch.load gives it, got str"):
        load_official(diracnet(10, 1, 10), "model.pt7")


# --- written for the official code --------------------------------------------------------------------------


def test_what_is_written_for_the_official_code_is_what_it_was_read_from():
    params, stats = flat_parameters(CIFAR)
    official = params | stats | identities(params)
    net = diracnet(10, 1)
    load_official(net, official)
    written = to_official(net)
    assert set(written) == set(official)
    assert all(torch.equal(written[name], tensor) for name, tensor in official.items())


def test_a_folded_net_is_written_with_the_released_keys():
    params, stats = flat_parameters(THIN)
    net = thin_imagenet()
    load_official(net, params | stats)
    written, expected = to_official(fold(net)), folded_state(params, stats)
    assert list(written) == list(expected)
    for name, tensor in expected.items():
        assert_as_good_as_torch(name, written[name], tensor)


def test_version_1_goes_both_ways():
    params, stats = flat_parameters(CIFAR, scalar=True, version=1)
    net = diracnet_v1(10, 1).eval()
    load_official(net, {"params": params, "stats": stats})
    assert net.groups[0].block0.conv.alpha.item() == params["group0.block0.alpha"].item()
    written = to_official(net)
    assert all(torch.equal(written[name], tensor) for name, tensor in (params | stats).items())
    assert written["eye16_32_3_3"][3, 3 + 16, 1, 1] == 1  # tiled
    with pytest.raises(ValueError, match=r"18 misshapen: .*groups.0.block0.conv.weight \(16, 16, 3, 3\)"):
        load_official(net, {"params": flat_parameters(CIFAR)[0], "stats": stats})


def test_only_diracnets_are_written():
    with pytest.raises(TypeError, match="model must be a DiracNet, got Linear"):
        to_official(nn.Linear(2, 2))


class Executed:
    def __reduce__(self):
        return pytest.fail, ("a checkpoint was executed",)


def test_files_are_read_whole_or_refused_by_name_and_never_executed(tmp_path):
    params, stats = flat_parameters(CIFAR)
    whole, cut, program, other = (tmp_path / name for name in ("whole.pth", "cut.pth", "program.pth", "other.pth"))
    torch.save({"params": params, "stats": stats, "optimizer": {"state": {}}, "epoch": 7}, whole)
    read = read_official(whole)
    assert read["epoch"] == 7
    load_official(diracnet(10, 1), read)
    cut.write_bytes(whole.read_bytes()[:2000])
    torch.save({"params": Executed()}, program)
    torch.save([1, 2], other)
    odd = tmp_path / "odd.pth"  # as the released files are written, and one byte of its pickle is another
    torch.save(params, odd, _use_new_zipfile_serialization=False)
    odd.write_bytes(odd.read_bytes().replace(b"X\x04\x00\x00\x00conv", b"h\xee\x00\x00\x00conv", 1))
    for path in (cut, program, odd):
        with pytest.raises(ValueError, match=rf"path must be a whole checkpoint file, got '.*{path.name}'"):
            read_official(path)
    with pytest.raises(ValueError, match="path must hold a dictionary, got a list in"):
        read_official(other)
    with pytest.raises(FileNotFoundError):
        read_official(tmp_path / "absent.pth")
