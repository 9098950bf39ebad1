"""The modules: official constructors and state dicts, every layout and dtype, no stored identity."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.placement import DEVICE
from tests.tolerance import assert_as_good_as_torch
from triton_dirac import reference
from triton_dirac.models import diracnet
from triton_dirac.modules import DiracConv1d, DiracConv2d, DiracConv3d, parameter_groups

MODULES = {1: DiracConv1d, 2: DiracConv2d, 3: DiracConv3d}
CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SIZES = {1: (9,), 2: (9, 8), 3: (5, 6, 7)}
DIMS = pytest.mark.parametrize("dims", [1, 2, 3])


def trained(dims, *arguments, **options):
    """A module whose alpha, beta and bias are not what they start at."""
    module = MODULES[dims](*arguments, **options)
    with torch.no_grad():
        for parameter in (module.alpha, module.beta):
            parameter.copy_(torch.rand(parameter.shape) + 0.5)
    return module


def expected_output(module, image, delta=None):
    """The definition, in float64: padded as the mode says, then convolved with alpha * I + beta * u."""
    weight, alpha, beta = (p.detach().double() for p in (module.weight, module.alpha, module.beta))
    rows = (-1,) + (1,) * (weight.dim() - 1)
    if delta is None:
        filters = reference.dirac_weight(weight, alpha, beta, groups=module.groups)
    else:
        filters = alpha.view(rows) * delta.double() + beta.view(rows) * F.normalize(weight.flatten(1)).view_as(weight)
    bias = None if module.bias is None else module.bias.detach().double()
    image, padding = image.detach().double(), module.padding
    if module.padding_mode != "zeros":
        image = F.pad(image, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        padding = 0
    dims = weight.dim() - 2
    return CONVS[dims](image, filters, bias, module.stride, padding, module.dilation, module.groups)


# --- constructor ------------------------------------------------------------------------------------------


@DIMS
def test_official_constructor_order(dims):
    module = MODULES[dims](4, 6, 3, 1, 2, False)
    assert isinstance(module, getattr(nn, f"Conv{dims}d"))
    assert module.padding == (1,) * dims
    assert module.dilation == (2,) * dims
    assert module.stride == (1,) * dims
    assert module.bias is None
    assert MODULES[dims](4, 6, 3).bias.shape == (6,)
    assert torch.equal(module.alpha, torch.ones(6))
    assert torch.equal(module.beta, torch.full((6,), 0.1))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"in_channels": 0}, ValueError, r"in_channels must be a positive integer below 2 \*\* 31, got 0"),
        ({"out_channels": 6.0}, ValueError, r"out_channels must be a positive integer below 2 \*\* 31, got 6.0"),
        (
            {"kernel_size": 0},
            ValueError,
            r"kernel_size must be a positive integer below 2 \*\* 31 or a tuple of 2 of them, got 0",
        ),
        ({"kernel_size": (3, 3, 3)}, ValueError, r"kernel_size must be .* got \(3, 3, 3\)"),
        ({"stride": (1, 0)}, ValueError, r"stride must be a positive integer .* got \(1, 0\)"),
        ({"dilation": -1}, ValueError, "dilation must be a positive integer .* got -1"),
        (
            {"padding": -1},
            ValueError,
            r"padding must be a non-negative integer below 2 \*\* 31 or a tuple of 2 of them, got -1",
        ),
        ({"padding": "full"}, ValueError, "padding must be .* 'same' or 'valid', got 'full'"),
        ({"padding": "same", "stride": 2}, ValueError, "padding='same' needs stride 1, got stride 2"),
        ({"groups": 0}, ValueError, r"groups must be a positive integer below 2 \*\* 31, got 0"),
        ({"groups": 4}, ValueError, "groups must divide out_channels, got groups=4 and out_channels=6"),
        ({"groups": 3}, ValueError, "groups must divide in_channels, got groups=3 and in_channels=4"),
        ({"bias": 1}, TypeError, "bias must be True or False, got 1; the positional arguments are"),
        ({"padding_mode": "mirror"}, ValueError, "padding_mode must be one of 'zeros', .* got 'mirror'"),
        ({"form": "folded"}, ValueError, "form must be one of 'split', 'materialised', got 'folded'"),
        ({"backend": "cuda"}, ValueError, "backend must be one of .* got 'cuda'"),
        ({"dtype": torch.int32}, TypeError, "dtype must be a floating-point dtype, got torch.int32"),
    ],
)
def test_wrong_arguments(change, error, message):
    with pytest.raises(error, match=message):
        DiracConv2d(**({"in_channels": 4, "out_channels": 6, "kernel_size": 3} | change))


@DIMS
def test_repr_shows_the_dirac_part(dims):
    text = repr(MODULES[dims](4, 6, 3, 1, stride=2, form="materialised", backend="torch"))
    assert text.startswith(f"DiracConv{dims}d(4, 6, kernel_size=")
    assert text.endswith("form='materialised', backend='torch')")


# --- numbers ----------------------------------------------------------------------------------------------

GEOMETRIES = [
    {"padding": 1},
    {"stride": 2, "padding": 2, "bias": False},
    {"padding": "same", "dilation": 2},
    {"padding": "valid"},
    {"padding": 1, "groups": 2},
    {"padding": 2, "padding_mode": "reflect", "stride": 2},
    {"padding": "same", "padding_mode": "circular"},
    {"padding": 1, "padding_mode": "replicate", "groups": 2},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("channels", [(4, 6), (6, 4)], ids=str)
@DIMS
def test_the_modules_compute_the_definition(dims, channels, geometry):
    module = trained(dims, *channels, 3, **geometry, backend="torch")
    image = torch.randn(2, channels[0], *SIZES[dims])
    assert_as_good_as_torch("output", module(image), expected_output(module, image))


@pytest.mark.parametrize("geometry", [GEOMETRIES[1], GEOMETRIES[2], GEOMETRIES[-1]], ids=str)
@DIMS
def test_the_modules_on_the_kernels(dims, geometry, device):
    module = trained(dims, 4, 6, 3, **geometry, backend="triton").to(device)
    image = torch.randn(2, 4, *SIZES[dims], device=device)
    assert_as_good_as_torch("output", module(image), expected_output(module, image))


@pytest.mark.parametrize("window", [2, 4])
@DIMS
def test_even_windows_have_their_centre_at_half(dims, window):
    for padding in ("same", 1):
        module = trained(dims, 4, 4, window, padding)
        image = torch.randn(2, 4, *SIZES[dims])
        assert_as_good_as_torch("output", module(image), expected_output(module, image))


@DIMS
def test_every_gradient(dims):
    module = trained(dims, 4, 6, 3, 1, stride=2, groups=2, dtype=torch.float64)
    image = torch.randn(2, 4, *SIZES[dims], dtype=torch.float64, requires_grad=True)
    twin = copy.deepcopy(module)
    filters = reference.dirac_weight(twin.weight, twin.alpha, twin.beta, groups=2)
    expected = CONVS[dims](image, filters, twin.bias, 2, 1, 1, 2)
    upstream = torch.randn_like(expected)
    (dimage,) = torch.autograd.grad(expected, image, upstream, retain_graph=True)
    expected.backward(upstream)
    image.grad = None
    module(image).backward(upstream)
    torch.testing.assert_close(image.grad, dimage)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, twin.get_parameter(name).grad, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_narrow_3d(geometry, dtype):
    module = trained(3, 4, 6, 3, **geometry).to(dtype)
    image = torch.randn(2, 4, *SIZES[3], dtype=dtype)
    expected = expected_output(module, image)
    assert_as_good_as_torch("output", module(image), expected, expected.to(dtype))


@pytest.mark.parametrize("dims", [2, 3])
def test_split_form_keeps_small_weights_that_the_materialised_form_loses(dims):
    """bfloat16 near 1 is spaced 0.0078: a centre weight of 0.0035 beside alpha = 1 rounds away."""
    image = torch.randn(8, 1, *SIZES[dims], dtype=torch.bfloat16)
    slopes = {}
    for form in ("split", "materialised"):
        module = MODULES[dims](1, 1, 3, 1, bias=False, form=form)
        with torch.no_grad():
            module.weight.copy_(module.delta)
            module.beta.fill_(0.0035)
        output = module.bfloat16()(image).float()
        slopes[form] = ((output * image).sum() / image.float().square().sum()).item()
    assert slopes["split"] == pytest.approx(1.0035, abs=1.5e-3)  # outputs are rounded, too
    assert slopes["materialised"] == pytest.approx(1, abs=5e-4)


@DIMS
def test_unbatched_input(dims):
    module = trained(dims, 4, 6, 3, 1)
    image = torch.randn(4, *SIZES[dims])
    assert_as_good_as_torch("output", module(image), expected_output(module, image))


@DIMS
def test_autocast(dims):
    module = trained(dims, 4, 6, 3, 1)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        output = module(torch.randn(2, 4, *SIZES[dims]))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


# --- parameters in every form -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@DIMS
def test_dtypes(dims, dtype):
    module = trained(dims, 4, 6, 3, 1).to(dtype)
    image = torch.randn(2, 4, *SIZES[dims]).to(dtype)
    output = module(image)
    assert output.dtype == dtype
    expected = expected_output(module, image)
    assert_as_good_as_torch("output", output, expected, expected.to(dtype))
    assert module.delta.dtype == dtype


@pytest.mark.parametrize(
    "dims, memory_format", [(2, torch.channels_last), (3, torch.channels_last_3d)], ids=["2d", "3d"]
)
def test_channels_last_modules(dims, memory_format):
    module = trained(dims, 4, 6, 3, 1).to(memory_format=memory_format)
    assert not module.weight.is_contiguous()
    image = torch.randn(2, 4, *SIZES[dims])
    expected = expected_output(module, image)
    for layout in (memory_format, torch.contiguous_format):
        assert_as_good_as_torch("output", module(image.contiguous(memory_format=layout)), expected)
    assert module.effective_weight().is_contiguous(memory_format=memory_format)
    module(image).sum().backward()
    state = module.state_dict()
    fresh = MODULES[dims](4, 6, 3, 1)
    fresh.load_state_dict(state)
    assert_as_good_as_torch("reloaded", fresh(image), expected)


@DIMS
def test_deepcopy_and_pickle(dims):
    module = trained(dims, 4, 6, 3, 1, padding_mode="reflect", form="materialised")
    image = torch.randn(2, 4, *SIZES[dims])
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(twin) == repr(module)
        assert torch.equal(twin(image), module(image))
        assert twin.alpha.data_ptr() != module.alpha.data_ptr()


def test_meta_device():
    module = DiracConv2d(4, 6, 3, 1, device="meta")
    assert module(torch.empty(2, 4, 8, 8, device="meta")).shape == (2, 6, 8, 8)
    module.to_empty(device="cpu").load_state_dict(trained(2, 4, 6, 3).state_dict())
    assert module(torch.zeros(2, 4, 8, 8)).isfinite().all()
    module = DiracConv2d(4, 6, 3, device="meta")
    module.load_state_dict(trained(2, 4, 6, 3).state_dict(), assign=True)
    assert module(torch.zeros(2, 4, 8, 8)).isfinite().all()


# --- state dicts ------------------------------------------------------------------------------------------


def official_state(dims, channels, filters, version, bias=True):
    """A state dict with the official module's keys in its order: FACTS of versions 1 and 2."""
    window = (3,) * dims
    if version == 2:
        alpha, beta = torch.rand(filters), torch.rand(filters)
        delta = nn.init.dirac_(torch.empty(filters, channels, *window))
    else:
        alpha, beta = torch.tensor([5.0]), torch.tensor([1e-1])
        n = min(filters, channels)
        tile = nn.init.dirac_(torch.empty(n, n, *window))
        delta = tile.repeat(filters // n, channels // n, *(1,) * dims)
    state = {"weight": torch.randn(filters, channels, *window)}
    if bias:
        state["bias"] = torch.randn(filters)
    return state | {"alpha": alpha, "beta": beta, "delta": delta}


@pytest.mark.parametrize("bias", [True, False])
@DIMS
def test_keys_and_their_order(dims, bias):
    state = MODULES[dims](4, 6, 3, bias=bias).state_dict()
    assert list(state) == [*(["weight", "bias"] if bias else ["weight"]), "alpha", "beta", "delta"]
    assert torch.equal(state["delta"], nn.init.dirac_(torch.empty(6, 4, *(3,) * dims)))


def test_delta_of_groups_is_dirac_():
    assert torch.equal(DiracConv2d(4, 6, 3, groups=2).delta, nn.init.dirac_(torch.empty(6, 2, 3, 3), groups=2))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("channels, filters", [(8, 4), (4, 8), (4, 4), (12, 4)])
@DIMS
def test_official_state_dicts_load_strictly(dims, channels, filters, version):
    state = official_state(dims, channels, filters, version)
    module = MODULES[dims](channels, filters, 3, 1)
    module.load_state_dict(state, strict=True)
    image = torch.randn(2, channels, *SIZES[dims])
    expected = expected_output(module, image, state["delta"])
    assert_as_good_as_torch("output", module(image), expected)
    again = MODULES[dims](channels, filters, 3, 1)
    again.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(again.delta, state["delta"])
    assert_as_good_as_torch("reloaded", again(image), expected)
    assert_as_good_as_torch("copied", pickle.loads(pickle.dumps(copy.deepcopy(module)))(image), expected)


def test_version_1_identity_adds_what_ncrelu_split():
    """alpha * I on (max(x, 0), min(x, 0)) is alpha * x: the reason for the tiled identity."""
    state = official_state(2, 8, 4, 1, bias=False) | {"beta": torch.zeros(1)}
    module = DiracConv2d(8, 4, 3, 1, bias=False)
    module.load_state_dict(state)
    image = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(module(torch.cat([image.clamp_min(0), image.clamp_max(0)], 1)), 5 * image)
    assert "identity='tiled'" in repr(module)
    module(torch.randn(1, 8, 5, 5)).sum().backward()
    assert module.alpha.grad.abs().min() > 0


def test_gradients_with_a_tiled_identity():
    module = DiracConv2d(8, 4, 3, 1)
    state = official_state(2, 8, 4, 1)
    module.load_state_dict(state)
    module.double()
    leaves = [p.detach().clone().requires_grad_() for p in (module.weight, module.alpha, module.beta)]
    rows = (-1, 1, 1, 1)
    unit = F.normalize(leaves[0].flatten(1)).view_as(leaves[0])
    filters = leaves[1].view(rows) * state["delta"].double() + leaves[2].view(rows) * unit
    image = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    upstream = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    F.conv2d(image, filters, padding=1).backward(upstream)
    module(image).backward(upstream)
    for name, leaf in zip(("weight", "alpha", "beta"), leaves, strict=True):
        torch.testing.assert_close(module.get_parameter(name).grad, leaf.grad, msg=name)


def test_version_2_after_version_1():
    module = DiracConv2d(8, 4, 3)
    module.load_state_dict(official_state(2, 8, 4, 1))
    module.load_state_dict(official_state(2, 8, 4, 2))
    assert torch.equal(module.delta, nn.init.dirac_(torch.empty(4, 8, 3, 3)))


def test_delta_may_be_missing():
    state = trained(2, 4, 6, 3).state_dict()
    del state["delta"]
    result = DiracConv2d(4, 6, 3).load_state_dict(state, strict=True)
    assert not result.missing_keys


def test_wrong_state_dicts_are_named():
    state = official_state(2, 4, 6, 2)
    with pytest.raises(RuntimeError, match=r"size mismatch for 1\.delta: \(6, 3, 3, 3\) .* \(6, 4, 3, 3\)"):
        nn.Sequential(nn.ReLU(), DiracConv2d(4, 6, 3)).load_state_dict(
            {f"1.{k}": v for k, v in state.items()} | {"1.delta": torch.zeros(6, 3, 3, 3)}
        )
    with pytest.raises(RuntimeError, match="delta is neither version 2's identity filter bank nor version 1's"):
        DiracConv2d(4, 6, 3).load_state_dict(state | {"delta": torch.ones(6, 4, 3, 3)})
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"gamma\""):
        DiracConv2d(4, 6, 3).load_state_dict(state | {"gamma": torch.ones(6)})
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"alpha\""):
        DiracConv2d(4, 6, 3).load_state_dict({k: v for k, v in state.items() if k != "alpha"})


@DIMS
def test_delta_is_neither_stored_nor_read(dims, monkeypatch):
    module = MODULES[dims](4, 6, 3, 1)
    assert not list(module.buffers())
    assert sum(p.numel() for p in module.parameters()) == module.weight.numel() + 3 * 6

    def forbidden(*_):
        raise AssertionError("forward made the identity")

    monkeypatch.setattr(MODULES[dims], "_make_delta", forbidden)
    module(torch.randn(2, 4, *SIZES[dims])).sum().backward()


# --- optimiser groups -------------------------------------------------------------------------------------


def test_parameter_groups():
    net = diracnet(10, 1, 10)
    net.fc.bias.requires_grad_(False)
    decayed, rest = parameter_groups(net, 5e-4)
    assert decayed["weight_decay"] == 5e-4
    assert rest["weight_decay"] == 0
    assert {p.dim() for p in decayed["params"]} == {2, 4}
    assert {p.dim() for p in rest["params"]} == {1}
    assert len(decayed["params"]) + len(rest["params"]) == len(list(net.parameters())) - 1
    torch.optim.SGD(parameter_groups(net, 5e-4), lr=0.1, momentum=0.9)
    torch.optim.AdamW(parameter_groups(nn.BatchNorm2d(3), 0.0))
    with pytest.raises(ValueError, match="weight_decay must be a non-negative number, got -1"):
        parameter_groups(net, -1)
    with pytest.raises(ValueError, match="weight_decay must be a non-negative number, got None"):
        parameter_groups(net, None)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        parameter_groups([net], 0.0)
