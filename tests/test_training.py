"""In a training loop: the same curve whichever backend, and nothing in a step that a GPU would have to wait for."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.placement import DEVICE
from tests.tolerance import assert_as_good_as_torch
from triton_dirac import DiracConv2d, parameter_groups, prepared, reference
from triton_dirac.runtime.launch import Launch


class ReferenceConv2d(DiracConv2d):
    """The same module, computed by the reference."""

    def forward(self, input):
        return reference.dirac_conv2d(
            *(input, self.weight, self.alpha, self.beta, self.bias, self.stride, self.padding)
        )


def small_net(layer: type[DiracConv2d] = DiracConv2d, backend: str = "torch", width: int = 6) -> nn.Sequential:
    """ReLU -> Dirac -> BatchNorm blocks for the 8 x 8 digits."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        *(nn.BatchNorm2d(width), nn.ReLU(), layer(width, width, 3, 1, bias=False, backend=backend)),
        *(nn.BatchNorm2d(width), nn.ReLU(), layer(width, width + 2, 3, 1, stride=2, backend=backend)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * (width + 2), 10)),
    )


def digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first handwritten digits of scikit-learn's (real) data set, as (count, 1, 8, 8) in 0..1."""
    images, labels = load_digits(return_X_y=True)
    return (
        torch.tensor(images[:count], dtype=torch.float32).view(-1, 1, 8, 8) / 16,
        torch.tensor(labels[:count]),
    )


def loss_curve(net, model, steps: int, batch: int) -> list[float]:
    """Losses of ``steps`` steps of SGD on successive batches; ``model`` is ``net``, compiled or not."""
    images, labels = digits(steps * batch)
    images = images.to(net[0].weight.dtype)
    optimiser = torch.optim.SGD(parameter_groups(net, 5e-4), lr=0.1, momentum=0.9)
    losses = []
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_digits_have_the_same_loss_curve_on_the_torch_backend(compiled):
    torch._dynamo.reset()
    # In float64: 25 steps of float32 part by 4e-3, whichever order a sum is taken in.
    expected_net, net = small_net(ReferenceConv2d).double(), small_net().double()
    expected = loss_curve(expected_net, expected_net, steps=25, batch=64)
    model = torch.compile(net, fullgraph=True, backend="aot_eager") if compiled else net
    assert loss_curve(net, model, steps=25, batch=64) == pytest.approx(expected, rel=1e-8)
    assert expected[-1] < expected[0] / 2  # it learns


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_digits_have_the_same_loss_curve_on_the_triton_kernels(compiled):
    torch._dynamo.reset()
    expected_net, net = small_net(ReferenceConv2d), small_net(backend="triton")
    expected = loss_curve(expected_net, expected_net, steps=3, batch=8)
    model = torch.compile(net, fullgraph=True, backend="aot_eager") if compiled else net
    assert loss_curve(net, model, steps=3, batch=8) == pytest.approx(expected, rel=1e-3, abs=1e-4)


class NoHostReads(TorchDispatchMode):
    """Fails on every operation that would make the host wait for a GPU, or copy between the two."""

    READS = ("_local_scalar_dense", "nonzero", "equal", "unique2", "masked_select")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.READS, f"{func} reads a tensor on the host"
        return func(*args, **(kwargs or {}))


def test_the_host_read_guard_can_fail():
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHostReads():
        torch.ones(1).item()


@pytest.mark.parametrize("one_launch", [False, True], ids=["layers", "prepared"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_step_reads_nothing_on_the_host(backend, one_launch):
    """What a CUDA graph needs: no synchronisation and no Python that depends on data, forward to optimiser."""
    net = nn.Sequential(*(DiracConv2d(2, 2, 3, 1, backend=backend) for _ in range(2)))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    image = torch.randn(1, 2, 3, 3)
    # With a dispatch mode on, calls go through the operators; their kernels run below it.
    with NoHostReads(), prepared(net) if one_launch else torch.enable_grad():
        net(image).square().sum().backward()
        optimiser.step()


@pytest.mark.parametrize("one_launch", [False, True], ids=["layers", "prepared"])
def test_an_eager_step_reads_nothing_on_the_host(one_launch, monkeypatch):
    """The same past the dispatcher, where no mode looks: with launches left out, no tensor may become a number."""
    net = nn.Sequential(*(DiracConv2d(2, 2, 3, 1, backend="triton") for _ in range(2)))
    image = torch.randn(1, 2, 3, 3)
    monkeypatch.setattr(Launch, "run", lambda self: None)

    def step():
        with prepared(net) if one_launch else torch.enable_grad():
            net(image).backward(torch.ones(1, 2, 3, 3))

    step()  # the first may build tables

    def read(*args, **kwargs):
        raise AssertionError("a tensor was read on the host")

    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, read)
    step()
    with pytest.raises(AssertionError, match="read on the host"):
        image.item()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("one_launch", [False, True], ids=["layers", "prepared"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradient_checkpointing(backend, one_launch, reentrant):
    net = nn.Sequential(*(DiracConv2d(2, 2, 3, 1, backend=backend) for _ in range(3)))
    twin = copy.deepcopy(net)
    image = torch.randn(1, 2, 3, 2)

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            for layer in self.net:
                x = checkpoint(layer, x, use_reentrant=reentrant)
            return x

    model = Checkpointed()
    with prepared(model) if one_launch else torch.enable_grad():
        model(image.clone().requires_grad_()).square().sum().backward()
    twin(image).square().sum().backward()
    for (name, mine), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert_as_good_as_torch(name, mine.grad, theirs.grad)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_weight_that_changed_before_the_backward_is_noticed(backend):
    net = nn.Sequential(*(DiracConv2d(4, 4, 3, 1, backend=backend) for _ in range(2)))
    with prepared(net):
        loss = net(torch.randn(1, 4, 5, 5)).sum()
    with torch.no_grad():
        net[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_grad_scaler():
    net = small_net()
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=1024.0)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    images, labels = digits(16)
    with torch.autocast(DEVICE.type, dtype=torch.float16):
        loss = nn.functional.cross_entropy(net(images).float(), labels)
    scaler.scale(loss).backward()
    before = net[3].alpha.detach().clone()
    scaler.step(optimiser)
    scaler.update()
    assert not torch.equal(net[3].alpha, before)
    assert torch.isfinite(net[3].alpha).all()


def test_copies_pickles_and_functional_calls():
    layer, image = DiracConv2d(3, 5, 3, 1), torch.randn(1, 3, 4, 4)
    expected = layer(image)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(image), expected)
    parameters = {name: p.detach() * 2 for name, p in layer.named_parameters()}
    doubled = torch.func.functional_call(layer, parameters, (image,))
    assert_as_good_as_torch("doubled", doubled, 2 * expected.detach())  # W's own scale does not matter


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_export_round_trip(backend):
    layer = DiracConv2d(3, 4, 3, 1, backend=backend)
    image = torch.randn(2, 3, 4, 4)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(layer, (image,), dynamic_shapes=(batch,))
    other = torch.randn(3, 3, 4, 4)
    assert_as_good_as_torch("exported", exported.module()(other).detach(), layer(other).detach())


def test_torch_func_works_on_the_torch_backend():
    """vmap, grad and jvp, against a loop, backward and a difference quotient."""
    layer = DiracConv2d(2, 2, 3, 1).double()
    images, tangent = torch.randn(2, 1, 2, 3, 3, dtype=torch.float64), torch.randn(1, 2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(layer)(images), torch.stack([layer(image) for image in images]))
    x = images[0].clone().requires_grad_()
    layer(x).square().sum().backward()
    torch.testing.assert_close(torch.func.grad(lambda x: layer(x).square().sum())(images[0]), x.grad)
    _, slope = torch.func.jvp(layer, (images[0],), (tangent,))
    torch.testing.assert_close(slope, layer(images[0] + tangent) - layer(images[0]))  # it is affine in x
    alphas = torch.stack([layer.alpha.detach(), 2 * layer.alpha.detach()])
    many = torch.vmap(lambda alpha: torch.func.functional_call(layer, {"alpha": alpha}, (images[0],)))(alphas)
    torch.testing.assert_close(many[0], layer(images[0]))


def test_torch_func_is_refused_by_the_triton_kernels():
    """They have no rules for it, and a tangent of zeros would be a silent wrong answer."""
    layer, images = DiracConv2d(2, 2, 3, 1, backend="triton"), torch.randn(2, 1, 2, 3, 3)
    for transform in (
        lambda: torch.vmap(layer)(images),
        lambda: torch.func.grad(lambda x: layer(x).sum())(images[0]),
        lambda: torch.func.jvp(layer, (images[0],), (images[0],)),
    ):
        with pytest.raises(RuntimeError, match=r"backend 'triton' has no rules for vmap, .* backend 'auto' or 'torch'"):
            transform()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_threads_share_a_module(backend):
    """Each thread's gradients with respect to its own image are those of a thread alone."""
    layer = DiracConv2d(3, 3, 3, 1, backend=backend)
    images = [torch.randn(1, 3, 3, 3) for _ in range(6)]

    def gradient(image):
        x = image.clone().requires_grad_()
        output = layer(x).square().sum()
        return torch.autograd.grad(output, [x, layer.weight, layer.alpha, layer.beta])

    expected = [gradient(image) for image in images]
    found: dict[int, tuple] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: gradient(images[i])})) for i in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, gradients in enumerate(expected):
        for mine, theirs in zip(found[i], gradients, strict=True):
            assert torch.equal(mine, theirs)
