"""One launch for a whole network gives the numbers of one launch a layer."""

import copy
import pickle

import pytest
import torch
from torch import nn

import triton_dirac as td
from tests.placement import DEVICE
from tests.runtime.test_planned import calls_of
from tests.tolerance import assert_as_good_as_torch
from triton_dirac import prepared
from triton_dirac.prepared import _dirac_layers
from triton_dirac.runtime import launch
from triton_dirac.runtime.plan import _Launched

BACKENDS = ["torch", "triton"]


def random_layers(shapes, dtype=torch.float32):
    return [
        (torch.randn(shape).to(dtype), torch.randn(shape[0]), torch.rand(1 if i % 2 else shape[0]))
        for i, shape in enumerate(shapes)
    ]


SHAPES = [(6, 4, 3, 3), (4, 6, 3), (7, 7, 1, 1), (2, 3, 2, 3, 2)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [{}, {"identity": False, "dtype": torch.bfloat16}, {"memory_format": torch.channels_last}],
    ids=["plain", "split-bfloat16", "channels-last"],
)
def test_dirac_weights_are_dirac_weight_of_each(options, backend):
    def run(function):
        torch.manual_seed(0)
        layers = [tuple(t.requires_grad_() for t in layer) for layer in random_layers(SHAPES)]
        outputs = function(layers)
        torch.autograd.backward(outputs, [torch.randn(o.shape).to(o.dtype) for o in outputs])
        return outputs, [t.grad for layer in layers for t in layer]

    def one_by_one(layers):
        own = dict(options)
        if own.pop("memory_format", None):
            formats = {4: torch.channels_last, 5: torch.channels_last_3d}
            return [td.dirac_weight(*x, memory_format=formats.get(x[0].dim()), backend=backend, **own) for x in layers]
        return [td.dirac_weight(*x, backend=backend, **own) for x in layers]

    (outputs, grads), (expected, expected_grads) = (
        run(lambda layers: td.dirac_weights(layers, backend=backend, **options)),
        run(one_by_one),
    )
    for mine, theirs in zip(outputs, expected, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    for mine, theirs in zip(grads, expected_grads, strict=True):
        assert torch.equal(mine, theirs)


def test_double_backward():
    layers = random_layers([(2, 1, 2), (1, 2, 1, 2)], torch.float64)
    tensors = [t.double().requires_grad_() for layer in layers for t in layer]

    def run(*tensors):
        return tuple(td.dirac_weights(list(zip(*[iter(tensors)] * 3, strict=True)), backend="triton"))

    assert torch.autograd.gradgradcheck(run, tensors)


@pytest.mark.parametrize(
    "layers, options, error, message",
    [
        (
            [(torch.ones(2, 2, 3), torch.ones(2))],
            {},
            ValueError,
            r"layers\[0\] must be \(weight, alpha, beta\)",
        ),
        (
            [*random_layers([(2, 2, 3)]), (torch.ones(2, 2, 3), torch.ones(3), torch.ones(2))],
            {},
            ValueError,
            r"layers\[1\]: alpha must have shape \(2,\) or \(1,\), got \(3,\)",
        ),
        (
            random_layers([(2, 2, 3)]),
            {"groups": [1, 1]},
            ValueError,
            "groups must be an integer or one for each",
        ),
        (
            random_layers([(2, 2, 3)]),
            {"dtype": torch.int8},
            TypeError,
            "dtype must be a floating-point dtype",
        ),
        (
            random_layers([(2, 2, 3)]),
            {"memory_format": torch.channels_last_3d},
            ValueError,
            "memory_format must be None",
        ),
    ],
)
def test_wrong_arguments(layers, options, error, message):
    with pytest.raises(error, match=message):
        td.dirac_weights(layers, **options)


def test_no_layers():
    for backend in BACKENDS:
        assert td.dirac_weights([], backend=backend) == []


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_net_trains_the_same(backend, autocast):
    layers = [td.DiracConv2d(c, c + 2, 3, padding=1, backend=backend) for c in (3, 5, 7)]
    net = torch.nn.Sequential(*layers)
    twin = copy.deepcopy(net)
    images = torch.randn(1, 3, 4, 4)

    def step(net):
        with torch.autocast(DEVICE.type, enabled=autocast):
            output = net(images)
        output.float().square().sum().backward()
        return output.detach()

    with prepared(net):
        first = step(net)
        second = step(net)  # prepared anew: a graph is walked backward once
    assert torch.equal(first, second)
    assert torch.equal(step(twin), first)
    step(twin)
    for (name, mine), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_module_kinds(backend):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            options = {"padding": 1, "bias": False, "backend": backend}
            self.one = td.DiracConv1d(4, 4, 3, **options)
            self.two = td.DiracConv2d(4, 6, 3, **options, groups=2)
            self.three = td.DiracConv3d(2, 3, 3, **options)

        def forward(self, x):
            y = self.two(self.one(x).unflatten(2, (4, 2)))
            return self.three(y.unflatten(1, (2, 3)))

    net, image = Net(), torch.randn(2, 4, 8)
    expected = net(image)
    with prepared(net):
        assert_as_good_as_torch("output", net(image), expected)  # compiled, odd rows are added up in another order
    assert all(module.prepared is None for module in (net.one, net.two, net.three))


def test_a_model_without_dirac_layers_is_refused():
    with (
        pytest.raises(ValueError, match="model must contain Dirac convolutions, got Linear"),
        prepared(torch.nn.Linear(2, 2)),
    ):
        pass


def test_weights_are_fresh_after_an_optimiser_step():
    net = td.DiracConv2d(3, 3, 3, padding=1)
    image = torch.randn(1, 3, 5, 5)
    with prepared(net):
        before = net(image)
        with torch.no_grad():
            net.alpha.add_(1)
        assert not torch.equal(net(image), before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_made_in_the_block_are_on_their_own(backend):
    net = torch.nn.Sequential(td.DiracConv2d(3, 3, 3, padding=1, backend=backend))
    image = torch.randn(1, 3, 4, 4)
    with prepared(net):
        net(image)
        twin = copy.deepcopy(net)
        pickle.loads(pickle.dumps(net))
    with torch.no_grad():
        twin[0].weight.neg_()
    twin(image).sum().backward()
    assert twin[0].weight.grad is not None
    assert net[0].prepared is None
    fresh = td.DiracConv2d(3, 3, 3, padding=1, backend=backend)
    fresh.load_state_dict(twin[0].state_dict())
    assert torch.equal(twin(image), fresh(image))


@pytest.mark.parametrize("backend", BACKENDS)
def test_filters_are_not_used_for_other_parameters_than_they_were_made_of(backend):
    net = torch.nn.Sequential(td.DiracConv2d(3, 3, 3, padding=1, backend=backend))
    image = torch.randn(1, 3, 4, 4)
    with prepared(net):
        net(image)
        with torch.no_grad():
            net[0].beta.mul_(2)
        inside = net[0](image)
        with torch.no_grad():
            net(image)
        net[0](image).sum().backward()  # filters prepared without a graph must not be taken for these
    assert net[0].weight.grad is not None
    assert torch.equal(inside, net[0](image))


@pytest.mark.parametrize("backend", BACKENDS)
def test_unused_and_frozen_layers_are_left_alone(backend):
    layers = [tuple(t.requires_grad_() for t in layer) for layer in random_layers([(3, 2, 3)] * 3)]
    frozen = tuple(t.detach() for t in layers[1])
    used, still, unused = td.dirac_weights([layers[0], frozen, layers[2]], backend=backend)
    assert not still.requires_grad
    assert unused.requires_grad
    (used * torch.randn_like(used)).sum().backward()
    assert all(t.grad is not None for t in layers[0])
    assert all(t.grad is None for t in (*frozen, *layers[2]))


@pytest.mark.parametrize("backward, most", [(False, 80), (True, 172)])
def test_a_steady_prepared_net_makes_few_calls_a_layer(backward, most, monkeypatch):
    """What the host does for one more layer, counted instead of timed; launches are left out."""
    monkeypatch.setattr(launch.Launch, "run", lambda self: None)
    image = torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()

    def calls(layers: int) -> int:
        many = (td.DiracConv2d(8, 8, 3, padding=1, bias=False, backend="triton") for _ in range(layers))
        net = nn.Sequential(*many)

        def step() -> None:
            with td.prepared(net):
                output = net(image)
            if backward:
                torch.autograd.grad(output, list(net.parameters()), output)

        for _ in range(3):
            step()
        with monkeypatch.context() as patched:  # in place of a launch by the compiled kernel
            patched.setattr(_Launched, "by_jit", lambda self, tensors: None)
            return len(calls_of(step))

    found = (calls(8) - calls(4)) / 4
    on_gpu = DEVICE.type == "cuda"  # there the stream and Triton's hooks are asked for too
    assert found <= most + 8 * on_gpu, found


def test_a_layer_in_two_places_is_prepared_once():
    layer = td.DiracConv2d(4, 4, 3, padding=1)
    net = nn.Sequential(layer, nn.Sequential(nn.ReLU(), layer), td.DiracConv2d(4, 4, 3, padding=1))
    found = _dirac_layers(net)
    assert found == [module for module in net.modules() if isinstance(module, td.DiracConv2d)]
    assert len(found) == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "parameter, message",
    [
        (lambda alpha: alpha.to("meta"), r"layers\[1\]: alpha must be on weight's device (cpu|cuda:0), got meta"),
        (lambda alpha: alpha[:2], r"layers\[1\]: alpha must have shape \(4,\) or \(1,\), got \(2,\)"),
        (lambda alpha: alpha.half(), r"layers\[1\]: alpha must have .*float32, got torch.float16"),
    ],
    ids=["device", "shape", "dtype"],
)
def test_parameters_that_do_not_go_together_are_named_and_no_kernel_has_their_addresses(parameter, message, backend):
    net = nn.Sequential(*(td.DiracConv2d(4, 4, 3, 1, backend=backend) for _ in range(2)))
    image = torch.randn(1, 4, 5, 5)
    with prepared(net):
        net(image)
    net[1].alpha = nn.Parameter(parameter(net[1].alpha.detach()))
    with prepared(net), pytest.raises((TypeError, ValueError), match=message):
        net(image)
