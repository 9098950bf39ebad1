"""The operators: schemas, fakes, gradients and compilation, as PyTorch itself checks them."""

import copy

import pytest
import torch
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import triton_dirac as td
from tests.placement import DEVICE
from tests.tolerance import assert_as_good_as_torch
from triton_dirac import reference
from triton_dirac.conv import op as conv
from triton_dirac.conv.epilogue import ACTIVATIONS, convolves_again
from triton_dirac.runtime import autotune

OPS = torch.ops.triton_dirac
GEOMETRY = {
    "3x3": ([1, 1], [1, 1, 1, 1], [1, 1], 1),
    "strided": ([2, 1], [0, 1, 2, 0], [1, 2], 1),
    "grouped": ([1, 2], [1, 1, 0, 0], [1, 1], 2),
}


def image_and_weight(groups, dtype, requires_grad):
    image = torch.randn(1, 4, 5, 4).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(6, 4 // groups, 3, 3).to(dtype, memory_format=torch.channels_last)
    return image.requires_grad_(requires_grad), weight.requires_grad_(requires_grad)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRY.values(), ids=GEOMETRY)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_opcheck_conv2d_with_every_epilogue(activation, geometry, requires_grad):
    image, weight = image_and_weight(geometry[-1], torch.float32, requires_grad)
    bias, alpha = (torch.randn(6, requires_grad=requires_grad) for _ in range(2))
    opcheck(OPS.conv2d.default, (image, weight, bias, alpha, *geometry, activation, "ieee", False))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_opcheck_dirac_conv2d(activation, split, requires_grad):
    image, weight = image_and_weight(2, torch.float32, requires_grad)
    alpha, beta, bias = (torch.randn(6, requires_grad=requires_grad) for _ in range(3))
    parameters = (weight, alpha, beta, bias, 1e-12, split)
    opcheck(OPS.dirac_conv2d.default, (image, *parameters, *GEOMETRY["grouped"], activation, "ieee", False))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_conv2d_with_none(requires_grad):
    image, weight = image_and_weight(1, torch.bfloat16, requires_grad)
    opcheck(OPS.conv2d.default, (image, weight, None, None, *GEOMETRY["3x3"], None, "default", True))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRY.values(), ids=GEOMETRY)
def test_opcheck_conv_gradients(geometry, requires_grad):
    image, weight = image_and_weight(geometry[-1], torch.float32, requires_grad)
    grad = torch.randn(OPS.conv2d(image, weight, None, None, *geometry, None, "ieee", False).shape)
    grad.requires_grad_(requires_grad)
    alpha = torch.randn(6, requires_grad=requires_grad)
    # The double backward of torch 2.11's own convolution refuses symbolic sizes: no dynamic shapes there.
    old = requires_grad and torch.__version__.startswith("2.11.")
    static = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    utils = static if old else (*static[:3], "test_aot_dispatch_dynamic")
    dgrad = (grad, weight, alpha, list(image.shape), *geometry, "ieee", False)
    wgrad = (grad, image, list(weight.shape), torch.float32, *geometry, "ieee", False)
    opcheck(OPS.conv_dgrad.default, dgrad, test_utils=utils)
    opcheck(OPS.conv_wgrad.default, wgrad, test_utils=utils)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    "shape, channels_last",
    [((6, 4, 3), False), ((6, 4, 3, 3), True), ((4, 1, 3, 3), True), ((4, 6, 2, 3, 1), True)],
    ids=str,
)
def test_opcheck_weight_prep(shape, channels_last, requires_grad):
    weight, alpha, beta = (torch.randn(size).requires_grad_(requires_grad) for size in (shape, shape[:1], (1,)))
    opcheck(OPS.weight_prep.default, (weight, alpha, beta, 1e-12, True, torch.bfloat16, channels_last, 1))
    norm = weight.detach().flatten(1).norm(dim=1)
    grad = torch.randn(shape).requires_grad_(requires_grad)
    opcheck(OPS.weight_prep_backward.default, (grad, weight, alpha, beta, norm, 1e-12, True, 1))


def test_double_backward_of_the_weight_preparation():
    weight = torch.randn(2, 2, 1, 3, dtype=torch.float64, requires_grad=True)
    alpha, beta = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for backend in ("torch", "triton"):
        assert torch.autograd.gradgradcheck(
            lambda *t, backend=backend: td.dirac_weight(*t, groups=2, backend=backend), (weight, alpha, beta)
        )


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_double_backward_of_conv2d(activation):
    """Gradient penalties: the gradient of a gradient's norm, against torch in float64."""
    image, weight = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3)

    def penalty(function, dtype, **options):
        x, w = (t.to(dtype).requires_grad_() for t in (image, weight))
        output = function(x, w, padding=1, stride=2, activation=activation, **options)
        first = torch.autograd.grad(output.pow(2).sum(), (x, w), create_graph=True)
        sum(g.pow(2).sum() for g in first).backward()
        return x.grad, w.grad

    expected = penalty(reference.conv2d, torch.float64)
    actual = penalty(td.conv2d, torch.float32, backend="triton", precision="ieee")
    for name, mine, theirs in zip(("input", "weight"), actual, expected, strict=True):
        assert_as_good_as_torch(f"double backward {name}", mine, theirs)


@pytest.mark.parametrize("form", ["split", "materialised"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_double_backward_of_dirac_conv2d(activation, form):
    """As above, for all five gradients of the fused operator."""
    leaves = [torch.randn(1, 3, 5, 5), torch.randn(4, 3, 3, 3), *(torch.rand(4) for _ in range(3))]

    def penalty(function, dtype, **options):
        tensors = [t.to(dtype).requires_grad_() for t in leaves]
        output = function(*tensors, padding=1, activation=activation, **options)
        first = torch.autograd.grad(output.pow(2).sum(), tensors, create_graph=True)
        sum(g.pow(2).sum() for g in first).backward()
        return [t.grad for t in tensors]

    expected = penalty(reference.dirac_conv2d, torch.float64)
    actual = penalty(td.dirac_conv2d, torch.float32, backend="triton", precision="ieee", form=form)
    names = ("input", "weight", "alpha", "beta", "bias")
    for name, mine, theirs in zip(names, actual, expected, strict=True):
        assert_as_good_as_torch(f"double backward {name}", mine, theirs)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_the_dispatcher_and_the_short_cut_give_the_same_bits(activation):
    geometry = GEOMETRY["3x3"]
    image, weight = image_and_weight(1, torch.float32, True)
    grad = torch.randn(1, 6, 5, 4)
    results = []
    tensors, settings = (image, weight, None, None), conv.ConvSettings(*geometry, activation, "ieee", False)
    for output in (conv.conv2d(tensors, settings), OPS.conv2d(*tensors, *settings)):
        results.append((output, *torch.autograd.grad(output, (image, weight), grad)))
    for short, full in zip(*results, strict=True):
        assert torch.equal(short, full)


def test_flops_are_counted():
    net = td.DiracConv2d(4, 6, 3, padding=1, bias=False, backend="triton")
    with FlopCounterMode(display=False) as counter:
        net(torch.randn(2, 4, 5, 5, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 5 * 5) * 6 * (4 * 9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_of_the_operator_keeps_alpha(dtype):
    image, weight = image_and_weight(1, torch.float32, False)
    alpha = torch.full((6,), 1 + 2**-12)
    with torch.autocast(DEVICE.type, dtype=dtype):
        output = OPS.conv2d(image, weight, None, alpha, *GEOMETRY["3x3"], None, "ieee", False)
    assert output.dtype == dtype


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("form", ["split", "materialised"])
def test_compile_fullgraph_and_dynamic_batch(backend, form):
    torch._dynamo.reset()
    layer = td.DiracConv2d(4, 6, 3, padding=1, form=form, backend=backend)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3, 5):
        image = torch.randn(batch, 4, 6, 7)
        x, y = image.clone().requires_grad_(), image.clone().requires_grad_()
        with torch._dynamo.config.patch(error_on_recompile=batch > 2):
            compiled(x).square().sum().backward()
        twin(y).square().sum().backward()
        assert_as_good_as_torch("input", x.grad, y.grad)
    for (name, mine), theirs in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert_as_good_as_torch(name, mine.grad, theirs.grad)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compile_with_an_activation(activation):
    torch._dynamo.reset()
    tensors = [t.requires_grad_() for t in dirac_tensors()]

    def run(image, weight, alpha, beta):
        output = td.dirac_conv2d(image, weight, alpha, beta, padding=1, activation=activation, backend="triton")
        return td.conv2d(output, weight[:, :1].expand(4, 4, 3, 3), alpha, activation=activation, backend="triton")

    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        output = function(*tensors)
        results.append([output, *torch.autograd.grad(output.square().sum(), tensors)])
    for compiled, eager in zip(results[1], results[0], strict=True):
        assert_as_good_as_torch("compiled", compiled.detach(), eager.detach().double())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("chosen", ["triton", "torch"])
def test_auto_takes_what_measured_faster_for_each_pass(chosen, activation, monkeypatch):
    """With the measurement scripted: both candidates give the right numbers, and the chosen one is run."""
    asked = []

    def scripted(name, *args, candidates, default, **options):
        assert default == "triton"
        assert set(candidates()) == {"triton", "torch"}
        asked.append(name)
        return chosen

    autotune.forget()  # and with it the plans that were made by other picks
    monkeypatch.setattr(conv, "choose", scripted)
    if chosen == "torch":
        for kernel in ("fprop", "dgrad", "wgrad"):
            monkeypatch.setattr(conv, kernel, lambda *args, **options: pytest.fail("the slower one was run"))
    geometry = ((1, 2), (1, 1, 0, 2), (1, 1), 1)
    image, weight = image_and_weight(1, torch.float32, True)
    alpha = torch.randn(6, requires_grad=True)
    output = conv.conv2d((image, weight, None, alpha), conv.ConvSettings(*geometry, activation, "default", True))
    assert output.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn(output.shape)
    results = (output, *torch.autograd.grad(output, (image, weight, alpha), grad))
    x, w, a = (t.detach().double().requires_grad_() for t in (image, weight, alpha))
    padded = torch.nn.functional.pad(x, (0, 2, 1, 1))
    expected = reference.conv2d(padded, w, None, (1, 2), 0, alpha=a, activation=activation)
    for name, mine, theirs in zip(
        ("output", "input", "weight", "alpha"),
        results,
        (expected, *torch.autograd.grad(expected, (x, w, a), grad.double())),
        strict=True,
    ):
        assert_as_good_as_torch(f"{chosen} {name}", mine.detach(), theirs.detach())
    again = ["conv_fprop+alpha backend"] if convolves_again(activation) else []  # for z, where the gradient is taken
    backward = [*again, "conv_dgrad+alpha backend", "conv_wgrad backend"]
    assert asked == [f"conv_fprop+alpha+{activation} backend", *backward]


def dirac_tensors(seed=0):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    shapes = [(1, 3, 4, 4), (4, 3, 3, 3), (4,), (4,)]
    image, *rest = (torch.randn(shape, generator=generator) for shape in shapes)
    return [image.to(memory_format=torch.channels_last), *rest]


def test_a_view_with_the_negative_bit_is_read_with_its_sign():
    image, weight, *_ = dirac_tensors()
    negative = torch._neg_view(image)
    assert_as_good_as_torch(
        "output",
        td.conv2d(negative, weight, padding=1, backend="triton", precision="ieee"),
        -torch.nn.functional.conv2d(image.double(), weight.double(), padding=1),
    )


@pytest.mark.parametrize("place", range(4), ids=["image", "weight", "alpha", "beta"])
@pytest.mark.parametrize("call", ["dirac_weight", "dirac_weights", "conv2d", "dirac_conv2d"])
def test_gradients_of_calls_on_views_with_the_negative_bit(call, place):
    def run(tensors, backend):
        image, weight, alpha, beta = tensors
        if call == "dirac_weights":
            return td.dirac_weights([tensors[1:]], backend=backend)[0]
        if call == "dirac_weight":
            return td.dirac_weight(*tensors[1:], backend=backend)
        if call == "conv2d":
            return td.conv2d(image, weight, beta, padding=1, alpha=alpha, backend=backend)
        return td.dirac_conv2d(*tensors, padding=1, backend=backend)

    def results(backend, dtype):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in dirac_tensors()]
        given = [torch._neg_view(leaf) if i == place else leaf for i, leaf in enumerate(leaves)]
        output = run(given, backend)
        grads = torch.autograd.grad(output, leaves, torch.ones_like(output), allow_unused=True)
        return [output.detach(), *(grad for grad in grads if grad is not None)]

    for mine, exact in zip(results("triton", torch.float32), results("torch", torch.float64), strict=True):
        assert_as_good_as_torch("result", mine, exact)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_symbolic_tracing_outside_the_compiler(backend):
    from torch.fx.experimental.proxy_tensor import make_fx

    tensors = dirac_tensors()

    def run(*tensors):
        return td.dirac_conv2d(*tensors, padding=1, backend=backend)

    graph = make_fx(run, tracing_mode="symbolic")(*tensors)
    assert_as_good_as_torch("traced", graph(*tensors), td.dirac_conv2d(*tensors, padding=1).double())


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_autocast_is_the_same_compiled(backend):
    torch._dynamo.reset()
    image, weight = torch.full((1, 1, 1, 1), -1.0), torch.ones(1, 1, 1, 1)
    bias = torch.full((1,), 1.003)

    def run(x):
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            return td.conv2d(x, weight, bias, backend=backend)

    assert torch.equal(run(image), torch.compile(run, fullgraph=True, backend="aot_eager")(image))


def test_auto_takes_float32_bias_to_cudnn_and_keeps_an_explicit_precision(monkeypatch):
    monkeypatch.setattr(conv, "choose", lambda *args, **options: "torch")
    image, weight, *_ = dirac_tensors()
    settings = conv.ConvSettings((1, 1), (1, 1, 1, 1), (1, 1), 1, None, "default", True)
    bias = torch.randn(4)
    output = conv.conv2d((image.bfloat16(), weight.bfloat16(), bias, None), settings)
    assert output.dtype == torch.bfloat16
    other = "ieee" if conv._launched_precision("default", image) == "tf32" else "tf32"
    monkeypatch.setattr(conv, "choose", lambda *args, **options: pytest.fail("torch multiplies otherwise"))
    conv.conv2d((image, weight, bias, None), settings._replace(precision=other))
