"""fold is right or refuses: forwards and hooks that read what folding changes, layers that are not as their class."""

import contextlib
import copy
import functools
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.folded import assert_same, block, kinds, randomised
from triton_dirac import DiracConv2d, fold

X = torch.randn(2, 4, 6, 6)
KINDS = pytest.mark.parametrize("kind", [DiracConv2d, nn.Conv2d], ids=["Dirac", "plain"])
EXAMPLE = pytest.mark.parametrize("options", [{}, {"example": X}], ids=["alone", "example"])


class Pair(nn.Module):
    def __init__(self, kind=DiracConv2d):
        super().__init__()
        self.conv, self.bn = kind(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x))


def pair(kind=DiracConv2d, prepare=lambda model: None, forward=Pair.forward):
    model = type("Model", (Pair,), {"forward": forward})(kind)
    prepare(randomised(model))
    model.eval().requires_grad_(False)
    with torch.no_grad():
        model(X)  # weights that hooks make are no results of a graph then
    return model


def folded_or_refused(model, **options):
    """The folded model, the same function as the model; None if fold refused."""
    twin, folded = copy.deepcopy(model), None
    with warnings.catch_warnings(), contextlib.suppress(TypeError, ValueError):
        warnings.simplefilter("ignore", UserWarning)
        folded = fold(model, **options)
    for _ in range(2 if folded is not None else 0):
        assert_same(folded(X), twin(X))
    return folded


# --- forwards that read -----------------------------------------------------------------------------------


def tied(self, x):
    return F.conv_transpose2d(self.bn(self.conv(x)).relu(), self.conv.weight, padding=1)


def penalty(self, x):
    return self.bn(self.conv(x)) + sum(tensor.square().sum() for tensor in self.conv.parameters())


def private(self, x):
    return self.bn(self.conv(x)) + self.conv._parameters["weight"].sum()


def state(self, x):
    return self.bn(self.conv(x)) + self.conv.state_dict()["weight"].sum()


def by_name(self, x):
    if x.sum() > -1e9:
        x = self.bn(self.conv(x))
    return x + getattr(self.conv, "wei" + "ght").sum()


def on_data(self, x):
    return self.bn(self.conv(x)) + self.conv.weight.sum() if x.sum() > -1e9 else x


def in_a_helper(self, x):
    def total(layer):
        return layer.weight.sum()

    return self.bn(self.conv(x)) + total(self.conv) if x.sum() > -1e9 else x


@EXAMPLE
@pytest.mark.parametrize("forward", [tied, penalty, private, state, by_name, on_data, in_a_helper])
def test_who_reads_a_dirac_layers_tensors_is_named(forward, options):
    """A plain convolution in its place would hand out another tensor."""
    with pytest.raises(ValueError, match=r"conv cannot be folded: .*(reads|mentions)"):
        fold(pair(forward=forward), **options)


@EXAMPLE
@pytest.mark.parametrize("forward", [tied, penalty, private, state, by_name, on_data, in_a_helper])
def test_of_a_plain_convolution_that_is_read_the_batch_norm_stays(forward, options):
    assert kinds(folded_or_refused(pair(nn.Conv2d, forward=forward), **options)) == ["Conv2d", "BatchNorm2d"]


def scale_again(self, x):
    return self.bn(self.conv(x)) * self.bn.weight.view(1, -1, 1, 1)


def variance_again(self, x):
    return self.bn(self.conv(x)) * self.bn.running_var.view(1, -1, 1, 1)


def eps_again(self, x):
    return self.bn(self.conv(x)) * (1 + self.bn.eps)


def class_of_norm(self, x):
    return self.bn(self.conv(x)) * (2 if isinstance(self.bn, nn.BatchNorm2d) else 1)


def functional_norm(self, x):
    y = self.conv(x)
    return self.bn(y) + F.batch_norm(y, self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias)


def forward_by_hand(self, x):
    return self.bn.forward(self.conv(x)) + self.bn(self.conv(x))


@EXAMPLE
@pytest.mark.parametrize(
    "forward", [scale_again, variance_again, eps_again, class_of_norm, functional_norm, forward_by_hand]
)
@KINDS
def test_a_batch_norm_that_is_read_stays(kind, forward, options):
    assert kinds(folded_or_refused(pair(kind, forward=forward), **options)) == ["Conv2d", "BatchNorm2d"]


@EXAMPLE
def test_who_asks_a_layer_what_it_is_is_named(options):
    def asks(self, x):
        return self.bn(self.conv(x)) * (2 if isinstance(self.conv, DiracConv2d) else 1)

    with pytest.raises(ValueError, match=r"Model|conv"):
        fold(pair(forward=asks), **options)


def test_a_shared_weight_that_is_read_by_another_name():
    def share(model):
        model.own = model.conv.weight

    model = pair(nn.Conv2d, share, lambda self, x: self.bn(self.conv(x)) + self.conv.weight.sum())
    assert kinds(folded_or_refused(model)) == ["Conv2d", "BatchNorm2d"]


# --- modules that others call -----------------------------------------------------------------------------


class Holder:
    def __init__(self, module):
        self.module = module

    def call(self, x):
        return self.module(x)


HELD = {
    "list": lambda module: [module],
    "dictionary": lambda module: {"of": {"it": module}},
    "method": lambda module: module.__call__,
    "partial": lambda module: functools.partial(Holder.call, Holder(module)),
    "object": Holder,
    "object's method": lambda module: Holder(module).call,
    "closure": lambda module: lambda x: module(x),  # not copied: it goes on calling the convolution that was
}


class Calls(nn.Module):
    """Calls a module that torch does not know of."""

    def __init__(self, held):
        super().__init__()
        self.held = held

    def forward(self, x):
        held = self.held[0] if isinstance(self.held, list) else self.held
        held = held["of"]["it"] if isinstance(held, dict) else held
        return held.call(x) if isinstance(held, Holder) else held(x)


class CallsOnData(Calls):
    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else x


@EXAMPLE
@pytest.mark.parametrize("calls", [Calls, CallsOnData])
@pytest.mark.parametrize("how", HELD)
@KINDS
def test_a_convolution_that_is_called_out_of_sight(kind, how, calls, options):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = block(kind(4, 4, 3, padding=1), nn.BatchNorm2d(4))
            self.calls = calls(HELD[how](self.inner[0]))

        def forward(self, x):
            return self.inner(x) + self.calls(x)

    folded = folded_or_refused(randomised(Both()).requires_grad_(False), **options)
    assert kinds(folded).count("BatchNorm2d") == (how != "closure")


@EXAMPLE
def test_a_sequential_that_an_owner_also_takes_apart(options):
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = block(DiracConv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))

        def forward(self, x):
            y = self.inner(x)
            return y + self.inner[0](x) if x.sum() > -1e9 else y

    folded = folded_or_refused(randomised(Apart()).requires_grad_(False), **options)
    assert kinds(folded) == ["Conv2d", "BatchNorm2d"]


# --- layers that are not as their class -------------------------------------------------------------------


def replace_conv_forward(model):
    kind = type(model.conv)
    model.conv.forward = types.MethodType(lambda conv, x: kind.forward(conv, x).relu(), model.conv)


def replace_norm_forward(model):
    model.bn.forward = types.MethodType(lambda norm, x: nn.BatchNorm2d.forward(norm, x).relu(), model.bn)


def replace_owner_forward(model):
    model.forward = types.MethodType(lambda self, x: self.bn(self.conv(x).relu()), model)


def override_call(model):
    model.__class__ = type("Model", (Pair,), {"__call__": lambda self, x: self.bn(self.conv(x).relu())})


def hook_standardises(model):
    def standardise(conv, inputs):
        conv.weight.data.copy_(F.layer_norm(conv.weight.data, conv.weight.shape[1:]))
        if hasattr(conv, "alpha"):
            conv.alpha.data.fill_(3.0)

    model.conv.register_forward_pre_hook(standardise)


def hook_of_owner_reads(model):
    model.register_forward_hook(lambda model, inputs, output: output + model.conv.weight.sum())


def hook_of_owner_calls(model):
    model.register_forward_hook(lambda model, inputs, output: output + model.conv(inputs[0]))


def hook_of_norm_changes(model):
    model.bn.register_forward_hook(lambda module, inputs, output: output * 2)


def prune_weight(model):
    prune.l1_unstructured(model.conv, "weight", amount=0.5)


def prune_bias(model):
    prune.l1_unstructured(model.conv, "bias", amount=2)


def prune_norm(model):
    prune.l1_unstructured(model.bn, "weight", amount=2)


def older_weight_norm(model):
    nn.utils.weight_norm(model.conv)


def older_spectral_norm(model):
    nn.utils.spectral_norm(model.conv)


def parametrised(model):
    parametrizations.weight_norm(model.conv)


OTHERWISE = [replace_conv_forward, replace_norm_forward, replace_owner_forward, override_call, hook_standardises]
OTHERWISE += [hook_of_owner_reads, hook_of_owner_calls, hook_of_norm_changes, prune_weight, prune_bias, prune_norm]
OTHERWISE += [older_weight_norm, older_spectral_norm, parametrised]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@EXAMPLE
@pytest.mark.parametrize("prepare", OTHERWISE, ids=lambda prepare: prepare.__name__)
@KINDS
def test_layers_that_are_not_as_their_class(kind, prepare, options):
    folded = folded_or_refused(pair(kind, prepare), **options)
    assert folded is None or kinds(folded).count("BatchNorm2d") == 1
    if kind is nn.Conv2d:  # nothing has to be folded
        assert folded is not None


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("prepare", [prune_weight, older_weight_norm, parametrised], ids=lambda p: p.__name__)
def test_a_model_that_trains_and_whose_weight_a_graph_has_made(prepare):
    """torch does not copy results of a graph: pruned and weight-normed models hold some."""
    model = pair(nn.Conv2d, prepare).requires_grad_()
    expected = model(X).detach()
    with torch.no_grad():
        assert_same(fold(model)(X), expected)
        assert_same(fold(model, example=X)(X), expected)


def test_what_is_made_permanent_folds():
    model = pair(DiracConv2d, prune_weight)
    expected = model(X)
    prune.remove(model.conv, "weight")
    folded = fold(model)
    assert kinds(folded) == ["Conv2d", "Identity"]
    assert_same(folded(X), expected)


def test_harmless_hooks_are_no_reason():
    seen = []
    model = pair()
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.mean()))
    model.conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].mean()))
    folded = fold(model)
    assert kinds(folded) == ["Conv2d", "Identity"]
    assert_same(folded(X), model(X))
    assert len(seen) == 4
