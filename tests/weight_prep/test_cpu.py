"""The torch backend's weight preparation on a CPU: torch's weight-norm kernels, and the rows they do wrong."""

import pytest
import torch

from tests.tolerance import assert_as_good_as_torch
from triton_dirac import dirac_weight, dirac_weights, reference
from triton_dirac.identity_term import diagonal
from triton_dirac.weight_prep import cpu as cpu_prep

pytestmark = pytest.mark.cpu

SHAPES = {
    "2-D": ((6, 6, 3, 3), 1),
    "more filters": ((9, 4, 3, 3), 1),
    "more channels": ((4, 9, 3, 3), 1),
    "grouped": ((8, 3, 3, 5), 2),
    "1-D": ((5, 7, 4), 1),
    "3-D": ((5, 7, 2, 3, 3), 1),
    "one filter": ((1, 2, 1, 1), 1),
    "long rows": ((3, 700, 3, 3), 1),
}


def parameters(shape, shared=False):
    count = 1 if shared else shape[0]
    return torch.randn(shape), torch.randn(count), torch.randn(count)


def results(function, weight, alpha, beta, grad, dtype, **options):
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (weight, alpha, beta)]
    output = function(*leaves, **options)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


def check(weight, alpha, beta, grad=None, **options):
    grad = torch.randn(weight.shape) if grad is None else grad
    ours = results(dirac_weight, weight, alpha, beta, grad, torch.float32, backend="torch", **options)
    exact = results(reference.dirac_weight, weight, alpha, beta, grad, torch.float64, **options)
    plain = results(reference.dirac_weight, weight, alpha, beta, grad, torch.float32, **options)
    for name, *tensors in zip(("output", "weight", "alpha", "beta"), ours, exact, plain, strict=True):
        assert_as_good_as_torch(name, *tensors)
    return ours


@pytest.mark.parametrize("shared", [False, True], ids=["per filter", "shared"])
@pytest.mark.parametrize("shape, groups", SHAPES.values(), ids=SHAPES)
def test_both_passes_are_those_of_the_reference(shape, groups, shared):
    check(*parameters(shape, shared), groups=groups)


@pytest.mark.parametrize("shape, groups", [SHAPES["2-D"], SHAPES["grouped"], SHAPES["one filter"]])
def test_layouts_are_kept(shape, groups):
    weight, alpha, beta = parameters(shape)
    expected = check(weight, alpha, beta, grad := torch.randn(shape), groups=groups)
    last = weight.to(memory_format=torch.channels_last)
    for weights in (last, torch.stack([weight, weight], dim=-1)[..., 0]):
        for gradient in (grad, grad.to(memory_format=torch.channels_last), grad.expand(2, *shape)[0]):
            found = check(weights, alpha, beta, gradient, groups=groups)
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    prepared = dirac_weight(last, alpha, beta, groups=groups, backend="torch")
    assert prepared.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 10.0])
@pytest.mark.parametrize("shared", [False, True], ids=["per filter", "shared"])
def test_layers_that_the_kernels_do_wrong_are_done_step_by_step(eps, shared):
    weight, alpha, beta = parameters((9, 5, 3, 3), shared)
    weight[0] = 0
    for row, size in enumerate((1e-30, 1e-14, 1e-13, 1e-5, 1e13, 1e18, -1e18), start=1):
        weight[row] *= size
    layout = cpu_prep._layout(weight.shape, weight.stride(), 1)
    assert cpu_prep._forward([(weight, alpha, beta)], [layout], eps, True)[2] == {0}
    grad = torch.randn(weight.shape)
    ours = results(dirac_weight, weight, alpha, beta, grad, torch.float32, backend="torch", eps=eps)
    exact = results(reference.dirac_weight, weight, alpha, beta, grad, torch.float64, eps=eps)
    for name, found, expected in zip(("output", "weight"), ours, exact, strict=False):  # row by row
        scale = expected.flatten(1).abs().amax(1)
        errors = (found.double() - expected).flatten(1).abs().amax(1)
        assert (errors <= 2e-6 * scale).all(), f"{name}: {errors / scale}"
    for found, expected in zip(ours[2:], exact[2:], strict=True):
        assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("scale", [1e-20, 1e-25, 1e-37])
def test_tiny_filters_have_their_norm_where_eps_is_smaller_still(scale, backend):
    """Their squares are 0 in float32."""
    weight, alpha, beta = torch.randn(6, 4, 3, 3) * scale, torch.rand(6), torch.rand(6)
    actual = dirac_weight(weight, alpha, beta, eps=1.2e-38, backend=backend)
    expected = reference.dirac_weight(weight.double(), alpha.double(), beta.double(), eps=1.2e-38)
    torch.testing.assert_close(actual, expected.float())


def test_small_gradients_at_huge_filters_keep_their_second_term():
    """torch's backward divides by the norm three times: beyond 1e12 the quotient underflows."""
    weight, alpha, beta = parameters((4, 64, 3, 3))
    check(weight * 1e18, alpha, beta, 1e-6 * torch.randn(weight.shape))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_in_its_filter(value):
    weight, alpha, beta = parameters((4, 4, 3, 3))
    weight[1, 2, 0, 0] = value
    ours, plain = (
        results(function, weight, alpha, beta, torch.ones(weight.shape), torch.float32, **options)
        for function, options in ((dirac_weight, {"backend": "torch"}), (reference.dirac_weight, {}))
    )
    for found, expected in zip(ours[:2], plain[:2], strict=True):
        keep = [0, 2, 3]
        assert torch.allclose(found[keep], expected[keep], atol=1e-6)
    assert torch.equal(ours[0][1].isnan(), plain[0][1].isnan())


def test_gradients_share_no_memory_with_what_they_come_from():
    weight, alpha, beta = (tensor.requires_grad_() for tensor in parameters((1, 1, 1, 1)))
    grad = torch.ones(1, 1, 1, 1)
    dalpha = torch.autograd.grad(dirac_weight(weight, alpha, beta, backend="torch"), alpha, grad)[0]
    assert dalpha.data_ptr() != grad.data_ptr()


@pytest.mark.parametrize("shape, groups", SHAPES.values(), ids=SHAPES)
def test_the_entries_are_the_diagonal(shape, groups):
    transposed = torch.randn(shape[::-1]).permute(*reversed(range(len(shape))))
    last = torch.randn(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    for tensor in (torch.randn(shape), torch.randn(2, *shape)[1], transposed, last):
        layout = cpu_prep._layout(tensor.shape, tensor.stride(), groups)
        expected = diagonal(tensor, groups)
        assert torch.equal(layout.entries(layout.dense(tensor)), expected.view(layout.sizes))


def test_nothing_else_goes_to_the_kernels():
    weight, alpha, beta = parameters((4, 4, 3, 3))
    assert cpu_prep.net_of([(weight, alpha, beta), (torch.nn.Parameter(weight), alpha, beta)], [1, 1])[1:] == ([1], [0])
    for other in (weight.double(), weight.bfloat16(), weight.to("meta"), weight[:0]):
        assert cpu_prep.net_of([(weight, alpha, beta), (other, alpha, beta)], [1, 1]) is None
    with torch._subclasses.FakeTensorMode():
        assert cpu_prep.net_of([(torch.randn(4, 4, 3, 3), alpha, beta)], [1]) is None


def test_no_graph_is_recorded_where_none_is_wanted():
    layers = [tuple(tensor.requires_grad_() for tensor in parameters((4, 4, 3, 3))) for _ in range(2)]
    with torch.no_grad():
        assert not any(tensor.requires_grad for tensor in dirac_weights(layers, backend="torch"))
    assert all(tensor.requires_grad for tensor in dirac_weights(layers, backend="torch"))
    frozen = parameters((4, 4, 3, 3))
    assert [t.requires_grad for t in dirac_weights([layers[0], frozen], backend="torch")] == [True, False]


@pytest.mark.parametrize("hostile", [False, True], ids=["plain", "one layer with a zero filter"])
def test_a_net_in_one_node_has_the_numbers_of_its_layers(hostile):
    """Twice, so that the second call is one whose arguments were checked before; one result goes unused."""
    shapes = [(6, 6, 3, 3), (5, 7, 4), (8, 3, 3, 5), (9, 4, 3, 3), (5, 7, 2, 3, 3)]
    groups = [1, 1, 2, 1, 1]
    for _ in range(2):
        layers = [tuple(t.requires_grad_() for t in parameters(shape, shared=i == 3)) for i, shape in enumerate(shapes)]
        if hostile:
            with torch.no_grad():
                layers[2][0][1] = 0
        alone = [dirac_weight(*layer, groups=g, backend="torch") for layer, g in zip(layers, groups, strict=True)]
        together = dirac_weights(layers, groups=groups, backend="torch")
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
        assert len({tensor.grad_fn for tensor in together}) == 1
        leaves = [tensor for layer in layers for tensor in layer]
        found = [
            torch.autograd.grad(sum(t.square().sum() for t in outputs[1:]), leaves, allow_unused=True)
            for outputs in (alone, together)
        ]
        assert found[1][:3] == (None, None, None)
        assert all(torch.equal(a, b) for a, b in zip(found[0][3:], found[1][3:], strict=True))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_layer_may_be_stepped_before_another_s_backward(backend):
    """Two heads, two optimisers: what one backward does not need may change before it."""
    layers = [tuple(tensor.requires_grad_() for tensor in parameters((2, 2, 3, 3))) for _ in range(2)]
    first, second = dirac_weights(layers, backend=backend)
    first.square().sum().backward()
    with torch.no_grad():
        layers[0][0].mul_(2)
    second.square().sum().backward()
    assert layers[1][0].grad is not None
    first, second = dirac_weights(layers, backend=backend)
    with torch.no_grad():
        layers[0][0].mul_(2)
    with pytest.raises(RuntimeError, match=r"weight of shape \(2, 2, 3, 3\), .* modified by an inplace operation"):
        first.sum().backward()


def test_one_layer_s_graph_is_freed_by_its_backward():
    weight, alpha, beta = (tensor.requires_grad_() for tensor in parameters((2, 2, 3, 3)))
    loss = dirac_weight(weight, alpha, beta, backend="torch").sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_a_layer_that_differs_is_checked_again():
    """The third call is like the first in all but one thing, which makes it wrong or another."""
    weight, alpha, beta = parameters((4, 4, 3, 3))
    for _ in range(2):
        dirac_weight(weight, alpha, beta, backend="torch")
    with pytest.raises(ValueError, match="groups must be a positive integer"):
        dirac_weight(weight, alpha, beta, groups=1.0, backend="torch")
    with pytest.raises(ValueError, match="eps must be positive"):
        dirac_weight(weight, alpha, beta, eps=0.0, backend="torch")
    with pytest.raises(ValueError, match=r"alpha must have shape \(4,\) or \(1,\)"):
        dirac_weight(weight, alpha[:3], beta, backend="torch")
    without = dirac_weight(weight, alpha, beta, identity=False, backend="torch")
    assert_as_good_as_torch(
        "output", without, reference.dirac_weight(weight.double(), 0 * alpha.double(), beta.double())
    )
    assert dirac_weight(weight, alpha, beta, dtype=torch.bfloat16, backend="torch").dtype == torch.bfloat16


def test_second_derivatives_of_a_net():
    layers = [parameters((3, 2, 3, 3)), parameters((4, 4, 3))]
    leaves = [tensor.requires_grad_() for layer in layers for tensor in layer]
    upstream = [torch.randn(layer[0].shape) for layer in layers]

    def second(prepare, tensors):
        outputs = prepare(list(zip(tensors[::3], tensors[1::3], tensors[2::3], strict=True)))
        loss = sum((o.square() * u.to(o.dtype)).sum() for o, u in zip(outputs, upstream, strict=True))
        first = torch.autograd.grad(loss, tensors, create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in first), tensors)

    wide = [tensor.detach().double().requires_grad_() for tensor in leaves]
    plain = [tensor.detach().requires_grad_() for tensor in leaves]
    by_reference = lambda layers: [reference.dirac_weight(*layer) for layer in layers]  # noqa: E731
    for name, *tensors in zip(
        ("weight", "alpha", "beta") * 2,
        second(lambda layers: dirac_weights(layers, backend="torch"), leaves),
        second(by_reference, wide),
        second(by_reference, plain),
        strict=True,
    ):
        assert_as_good_as_torch(name, *tensors)


def test_a_net_that_differs_is_checked_again():
    layers = [parameters((4, 4, 3, 3)) for _ in range(2)]
    for _ in range(2):
        dirac_weights(layers, backend="torch")
    with pytest.raises(ValueError, match=r"layers\[1\]: alpha must have shape \(4,\) or \(1,\), got \(3,\)"):
        dirac_weights([layers[0], (layers[1][0], torch.ones(3), layers[1][2])], backend="torch")
    with pytest.raises(ValueError, match=r"layers\[1\]: groups must be a positive integer"):
        dirac_weights(layers, groups=[1, 3], backend="torch")
    with pytest.raises(ValueError, match=r"must be \(weight, alpha, beta\), got 2 items"):
        dirac_weights([layers[0], layers[1][:2]], backend="torch")
    with pytest.raises(ValueError, match=r"must be \(weight, alpha, beta\), got 2 items"):
        dirac_weights([layers[0][:2], (layers[0][2], *layers[1])], backend="torch")
    with pytest.raises(ValueError, match="backend must be one of"):
        dirac_weights(layers, backend="cuda")
    half = [tuple(tensor.half() for tensor in layer) for layer in layers]
    assert all(tensor.dtype == torch.float16 for tensor in dirac_weights(half, backend="torch"))
    assert all(
        tensor.is_contiguous(memory_format=torch.channels_last)
        for tensor in dirac_weights(layers, memory_format=torch.channels_last, backend="torch")
    )
