"""Other people's loops over layers: those that ask the layer are right, those that take its weight are refused."""

import copy

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental import optimization
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from tests.folded import DIRAC, NORMS, PLAIN, SIZES, assert_plain, assert_same, kinds, randomised
from triton_dirac import DiracConv2d, fold
from triton_dirac.models import diracnet

DIMS = pytest.mark.parametrize("dims", [1, 2, 3])


def replace_children(model):
    """timm's reparameterize_model: fuse() gives a child's replacement, else it changes in place."""
    for name, child in model.named_children():
        if hasattr(child, "fuse"):
            setattr(model, name, child.fuse())
        elif hasattr(child, "reparameterize"):
            child.reparameterize()
        replace_children(child)
    return model


def call_on_every_module(method):
    """RepVGG's repvgg_model_convert (switch_to_deploy), MobileOne's reparameterize_model (reparameterize)."""

    def convert(model):
        for module in model.modules():
            if hasattr(module, method):
                getattr(module, method)()
        return model

    return convert


@pytest.mark.parametrize(
    "convert",
    [replace_children, call_on_every_module("switch_to_deploy"), call_on_every_module("reparameterize")],
    ids=["timm", "RepVGG", "MobileOne"],
)
@pytest.mark.parametrize("training", [False, True])
def test_reparameterisation_loops(convert, training):
    net = randomised(diracnet(10, 1)).train(training)
    converted = convert(copy.deepcopy(net))
    assert "DiracConv2d" not in kinds(converted)
    assert kinds(converted).count("BatchNorm2d") == kinds(net).count("BatchNorm2d")
    assert_plain(converted)
    image = torch.randn(2, 3, 32, 32)
    assert_same(converted(image), net(image))
    twin = convert(diracnet(10, 1))
    twin.load_state_dict(converted.state_dict(), strict=True)


@DIMS
def test_fuse_leaves_the_module_alone(dims):
    module = DIRAC[dims](4, 6, 3, 1, stride=2, padding_mode="replicate")
    image = torch.randn(2, 4, *SIZES[dims])
    fused = module.fuse()
    assert type(fused) is PLAIN[dims]
    assert type(module) is DIRAC[dims]
    assert_same(fused(image), module(image))
    assert fused.weight.requires_grad
    assert fused.bias is not module.bias
    assert repr(fused) == repr(PLAIN[dims](4, 6, 3, 2, 1, padding_mode="replicate"))
    assert vars(fused).keys() == vars(PLAIN[dims](4, 6, 3)).keys()


def pair(dims=2, **options):
    return randomised(nn.Sequential(DIRAC[dims](4, 6, 3, **options), NORMS[dims](6)))


# --- batch-norm fusers ------------------------------------------------------------------------------------


def in_place(conv, norm):
    """As mmcv's fuse_conv_bn."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    conv.weight = nn.Parameter(conv.weight * scale.reshape([conv.out_channels, *[1] * (conv.weight.dim() - 1)]))
    bias = conv.bias if conv.bias is not None else torch.zeros_like(norm.running_mean)
    conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
    return conv


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fuse", [fuse_conv_bn_eval, in_place])
@DIMS
def test_a_fuser_that_assigns_what_it_made_of_weight_is_refused(dims, fuse, bias, dtype):
    """It scaled W, whose length the layer does not depend on: the batch-norm's factor was lost in silence."""
    conv, norm = pair(dims, bias=bias).to(dtype)
    norm.weight.data[0] *= -1
    norm.weight.data[1] = 0
    with pytest.raises(ValueError, match=rf"weight of DiracConv{dims}d must not be its own filters.* Fold first"):
        fuse(conv, norm)


@pytest.mark.parametrize("fuse", [fuse_conv_bn_eval, in_place])
@DIMS
def test_a_fuser_after_fold_without_norms_is_right(dims, fuse):
    model = pair(dims)
    folded = fold(model, norms=False)
    assert kinds(folded) == [f"Conv{dims}d", f"BatchNorm{dims}d"]
    image = torch.randn(2, 4, *SIZES[dims])
    assert_same(fuse(*folded)(image), model(image))


def test_fold_without_norms_takes_a_model_in_training():
    net = diracnet(10, 1).train()
    folded = fold(net, norms=False)
    assert folded.training
    assert kinds(folded).count("BatchNorm2d") == kinds(net).count("BatchNorm2d")
    assert_plain(folded)
    image = torch.randn(2, 3, 32, 32)
    assert_same(folded(image), net(image))


def test_torch_fx_and_quantisation_do_not_take_a_dirac_layer_for_a_convolution():
    model = pair()
    image = torch.randn(2, 4, 9, 8)
    assert_same(optimization.fuse(model)(image), model(image))
    assert_same(optimization.fuse(fx.symbolic_trace(model), no_trace=True)(image), model(image))
    with pytest.raises(AssertionError, match="did not find fuser method"):
        torch.ao.quantization.fuse_modules(copy.deepcopy(model), [["0", "1"]])


def test_who_means_the_weight_may_assign_it():
    conv = pair()[0]
    filters, generator = conv.weight.detach(), torch.Generator().manual_seed(1)
    for new in (filters.clone(), torch.randn(filters.shape, generator=generator), torch.zeros_like(filters)):
        conv.weight = nn.Parameter(new)
    conv.weight = nn.Parameter(filters)
    conv.load_state_dict({**conv.state_dict(), "weight": 2 * filters}, assign=True)
    with torch.no_grad():
        conv.weight.mul_(2)
        conv.weight.copy_(filters)
        conv.weight.data = filters * 3
    conv.train().weight = nn.Parameter(filters)  # weight decay by hand, a projection
    conv.eval()
    parametrizations.weight_norm(conv)
    nn.utils.parametrize.remove_parametrizations(conv, "weight")
    prune.remove(prune.l1_unstructured(conv, "weight", amount=0.5), "weight")
    torch.func.functional_call(conv, {"weight": 2 * filters}, torch.randn(2, 4, 9, 8))
    DiracConv2d(1, 1, 1).eval().weight = nn.Parameter(torch.ones(1, 1, 1, 1))  # a row of one is no evidence


def test_reading_weight_cannot_be_told():
    """What the README warns of: nothing is assigned, and W is taken for the filters."""
    conv, norm = pair()
    arguments = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    wrong, _ = fuse_conv_bn_weights(conv.weight, conv.bias, *arguments)
    right, _ = fuse_conv_bn_weights(conv.effective_weight(), conv.bias, *arguments)
    assert_same(right, fold(pair_of(conv, norm))[0].weight)
    assert (wrong - right).abs().max() > 0.1


def pair_of(*layers):
    return nn.Sequential(*layers).eval()


# --- layers that are not what their parameters say --------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["fuse", "reparameterize", "switch_to_deploy"])
@pytest.mark.parametrize(
    "make",
    [
        lambda conv: prune.l1_unstructured(conv, "weight", amount=0.3),
        lambda conv: prune.l1_unstructured(conv, "alpha", amount=2),
        lambda conv: prune.l1_unstructured(conv, "bias", amount=2),
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
    ids=["pruned", "pruned alpha", "pruned bias", "weight_norm", "spectral_norm"],
)
def test_what_hooks_make_is_refused(make, method):
    layer = make(DiracConv2d(4, 4, 3)).eval()
    names = set(layer.state_dict())
    with pytest.raises(ValueError, match=r"cannot be folded while hooks make its (weight|alpha|bias): make it perm"):
        getattr(layer, method)()
    assert type(layer) is DiracConv2d
    assert set(layer.state_dict()) == names


def test_after_the_hooks_are_gone_it_folds():
    layer = prune.l1_unstructured(DiracConv2d(4, 4, 3), "weight", amount=0.3).eval()
    image = torch.randn(2, 4, 8, 8)
    expected = layer(image)
    assert_same(prune.remove(layer, "weight").fuse()(image), expected)


def test_a_forward_of_the_object_is_refused():
    layer = DiracConv2d(4, 4, 3)
    layer.forward = lambda input: DiracConv2d.forward(layer, input).relu()
    with pytest.raises(TypeError, match="DiracConv2d overrides forward"):
        layer.fuse()
