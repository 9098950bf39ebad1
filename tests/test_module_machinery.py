"""What nn.Module does around forward: copies, pickles, compilation, deferred initialisation, loading through hooks."""

import copy
import io
import pickle
from importlib.resources import files

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, skip_init

import triton_dirac
from tests.test_modules import official_state, trained
from triton_dirac import DiracConv1d, DiracConv2d, DiracConv3d, fold, prepared
from triton_dirac.models import diracnet

MODULES = {1: DiracConv1d, 2: DiracConv2d, 3: DiracConv3d}
SIZES = {1: (9,), 2: (9, 8), 3: (5, 6, 7)}
DIMS = pytest.mark.parametrize("dims", [1, 2, 3])
IMAGE = torch.randn(2, 4, 8, 8)


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "save": saved,
}
COPY = pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)


def changed(module):
    """The module with new parameters, in place."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(0.5, 2)
    return module


@pytest.mark.parametrize("make_copy", [COPIES["deepcopy"], COPIES["pickle"], COPIES["save"]])
def test_a_copy_of_a_compiled_layer_computes_with_its_own_weights(make_copy):
    """Without nn.Module's __getstate__ the copy kept the original's compiled call, and torch.save failed."""
    layer = DiracConv2d(4, 4, 3)
    layer.compile(backend="eager")
    expected = layer(IMAGE)
    twin = changed(make_copy(layer))
    assert torch.equal(twin(IMAGE), twin.forward(IMAGE))
    assert torch.equal(layer(IMAGE), expected)


def test_compiled_layers_fold_and_fuse():
    model = changed(nn.Sequential(DiracConv2d(4, 4, 3), nn.BatchNorm2d(4)).eval())
    for layer in model:
        layer.compile(backend="eager")
    expected = model(IMAGE)
    torch.testing.assert_close(fold(model)(IMAGE), expected)
    alone = model[0](IMAGE)
    torch.testing.assert_close(model[0].fuse()(IMAGE), alone)
    model[0].reparameterize()
    torch.testing.assert_close(model[0](IMAGE), alone)


@COPY
def test_copies_within_prepared_prepare_their_own(make_copy):
    net = nn.Sequential(DiracConv2d(4, 4, 3), DiracConv2d(4, 4, 3))
    with prepared(net):
        expected = net(IMAGE)
        twin = make_copy(net)
        assert torch.equal(twin(IMAGE), expected)
        if make_copy is not copy.copy:  # which shares everything
            assert all(layer.prepared is None for layer in twin)
            assert not torch.equal(changed(twin)(IMAGE), expected)
    assert torch.equal(twin(IMAGE), twin(IMAGE))


@pytest.mark.parametrize("name", ["weight", "alpha", "beta"])
def test_deepcopy_of_a_parametrised_layer_within_prepared(name):
    """parametrize puts its own __deepcopy__ in, which asks no __getstate__: exponential moving averages do this."""

    class Shifted(nn.Module):
        def forward(self, tensor):
            return tensor + 1

    net = nn.Sequential(DiracConv2d(4, 4, 3), DiracConv2d(4, 4, 3))
    parametrize.register_parametrization(net[0], name, Shifted())
    with prepared(net):
        output = net(IMAGE)
        torch.testing.assert_close(copy.deepcopy(net)(IMAGE), output)
        averaged = torch.optim.swa_utils.AveragedModel(net)
        torch.testing.assert_close(averaged(IMAGE), output)


# --- deferred initialisation ------------------------------------------------------------------------------


def assert_fresh(layer):
    filters = layer.out_channels
    assert torch.equal(layer.alpha, torch.ones(filters))
    assert torch.equal(layer.beta, torch.full((filters,), 0.1))
    assert all(parameter.isfinite().all() for parameter in layer.parameters())


@DIMS
def test_reset_parameters_starts_every_parameter(dims):
    """FSDP's way from the meta device: to_empty, then reset_parameters of every module that has parameters."""
    with torch.device("meta"):
        layer = MODULES[dims](8, 8, 3, padding=1)
    layer.to_empty(device="cpu")
    for parameter in layer.parameters():  # as memory may be
        parameter.data.fill_(float("nan"))
    layer.reset_parameters()
    assert_fresh(layer)


@DIMS
def test_reset_parameters_starts_a_trained_layer_over(dims):
    torch.manual_seed(1)
    fresh = MODULES[dims](8, 4, 3)
    layer = changed(MODULES[dims](8, 4, 3))
    eye = nn.init.dirac_(torch.empty(4, 4, *(3,) * dims))
    layer.load_state_dict(layer.state_dict() | {"delta": eye.repeat(1, 2, *(1,) * dims)})
    assert layer.identity == "tiled"
    parameters = dict(layer.named_parameters())
    torch.manual_seed(1)
    layer.reset_parameters()
    assert_fresh(layer)
    assert repr(layer) == repr(fresh)
    for name, parameter in layer.named_parameters():
        assert parameter is parameters[name]  # an optimiser's, still
        assert torch.equal(parameter, fresh.get_parameter(name))


def test_a_net_from_the_meta_device_is_as_good_as_new():
    with torch.device("meta"):
        net = diracnet(10, 1)
    net.to_empty(device="cpu")
    for tensor in [*net.parameters(), *net.buffers()]:
        tensor.data.fill_(float("nan") if tensor.is_floating_point() else 7)
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert net(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_skip_init_then_reset():
    layer = skip_init(DiracConv2d, 4, 6, 3)
    layer.reset_parameters()
    assert_fresh(layer)


# --- state dicts through hooks ----------------------------------------------------------------------------


def test_a_checkpoint_of_the_older_weight_norm_loads_into_the_parametrised():
    """Its hook renames keys for a submodule: in a copy of the state dict they were lost."""
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = changed(nn.utils.weight_norm(DiracConv2d(4, 4, 3)))
    new = parametrizations.weight_norm(DiracConv2d(4, 4, 3))
    state = old.state_dict()
    names = list(state)
    new.load_state_dict(state)
    torch.testing.assert_close(new(IMAGE), old(IMAGE))
    assert list(state) == names  # the user's own stays as it was


def test_state_dicts_of_pruned_layers():
    layer = prune.l1_unstructured(DiracConv2d(4, 4, 3), "weight", amount=0.5)
    other = prune.random_unstructured(DiracConv2d(4, 4, 3), "weight", amount=0.5)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(IMAGE), layer(IMAGE))


def test_the_package_says_that_it_is_typed():
    """PEP 561: without the marker a type checker takes everything here for Any."""
    assert files(triton_dirac).joinpath("py.typed").is_file()


@DIMS
@pytest.mark.parametrize("version", [1, 2])
def test_a_whole_state_dict_stands_in_for_a_call(dims, version):
    """With the delta in it, of either version; afterwards the module is as it was."""
    module, other = trained(dims, 4, 8, 3), MODULES[dims](4, 8, 3)
    other.load_state_dict(official_state(dims, 4, 8, version))
    image = torch.randn(2, 4, *SIZES[dims])
    own, state = module(image), other.state_dict()
    assert torch.equal(torch.func.functional_call(module, state, image), other(image))
    assert module.identity == "dirac"
    assert torch.equal(module(image), own)
    with pytest.raises(ValueError, match="delta is neither version 2's"):
        torch.func.functional_call(module, state | {"delta": state["delta"] + 1}, image)


def test_what_is_no_tensor_in_a_state_dict_is_named():
    state = official_state(2, 4, 6, 2)
    with pytest.raises(RuntimeError, match=r"1\.delta must be a torch.Tensor, got str"):
        nn.Sequential(nn.ReLU(), DiracConv2d(4, 6, 3)).load_state_dict(
            {f"1.{k}": v for k, v in state.items()} | {"1.delta": "identity"}
        )
    with pytest.raises(RuntimeError, match=r'parameter named "alpha", expected torch.Tensor .* received <class .float'):
        DiracConv2d(4, 6, 3).load_state_dict(state | {"alpha": 1.0})
