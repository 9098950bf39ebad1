"""Calls as users make them, against float64: prepared filters, layers done again on other tensors, nets in one launch,
CUDA graphs, side streams, torch.compile, misaligned and NCHW images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import triton_dirac as td
from bench.accuracy import Error, check, max_error
from triton_dirac import reference
from triton_dirac.conv.epilogue import ACTIVATIONS
from triton_dirac.tuning.work import STORAGE

Run = Callable[[torch.device], list[Error]]
LAST = torch.channels_last
FILTERS = ((64, 64, 3, 3), (17, 5, 3, 3), (3, 1, 1, 1), (320, 160, 3, 3), (10, 2048, 3, 3), (33, 147, 1, 1))
NET = (*((16 * k, 16 * c, 3, 3) for k in (1, 4, 10) for c in (1, 3, 10)), (7, 3, 1, 1), (9, 11, 5, 5))
INTERPRETED_FILTERS, INTERPRETED_NET = FILTERS[1:3], NET[-2:]
PARAMETERS = ("weight", "alpha", "beta", "bias")


@dataclass(frozen=True)
class CallCheck:
    """``run(device)`` does the call and compares; ``family`` names what is wrong if it errs."""

    family: str
    name: str
    run: Run


def call_checks(device: torch.device) -> Iterator[CallCheck]:
    on_gpu = device.type == "cuda"
    dtypes = ("float32", "bfloat16", "float16") if on_gpu else ("float32", "float16")
    for shape in FILTERS if on_gpu else INTERPRETED_FILTERS:
        for dtype in dtypes:
            yield CallCheck("weight_prep", f"weight_prep {dtype} {shape}", _filters([shape], dtype, False))
    for dtype in dtypes:
        shapes = NET if on_gpu else INTERPRETED_NET
        yield CallCheck("weight_prep net", f"dirac_weights {dtype}, twice", _filters(shapes, dtype, True))
    for dtype in dtypes:
        for form in ("split", "materialised"):
            yield CallCheck("layer", f"layer {dtype} {form}, done again on other tensors", _layer(dtype, form))
        for activation in ACTIVATIONS:
            yield CallCheck("layer", f"layer {dtype} with {activation}", _layer(dtype, "split", activation=activation))
    dtype = dtypes[1]
    yield CallCheck("layer", "layer, misaligned image", _layer(dtype, "split", _misaligned))
    yield CallCheck("layer", "layer, NCHW image", _layer(dtype, "split", lambda image: image.contiguous()))
    yield CallCheck(
        "layer", "layer of odd channels", _layer(dtype, "split", sizes=(5, 17, 33, 9) if on_gpu else (1, 5, 7, 4))
    )
    yield CallCheck("prepared", "net in one launch", _net(dtype))
    if on_gpu:
        yield CallCheck("layer", "layer on a side stream", _on_a_side_stream)
        yield CallCheck("graph", "training step of layers in a CUDA graph", _in_a_graph(one_launch=False))
        yield CallCheck("graph", "training step of a prepared net in a CUDA graph", _in_a_graph(one_launch=True))
        yield CallCheck("compile", "layer under torch.compile", _compiled)


def _filters(shapes: tuple | list, dtype: str, one_launch: bool) -> Run:
    def run(device: torch.device) -> list[Error]:
        options = {"dtype": STORAGE[dtype], "memory_format": LAST, "backend": "triton"}
        found = []
        for _ in range(2):
            layers = [[_leaf(s, device), _leaf(s[:1], device), _leaf(s[:1], device)] for s in shapes]
            leaves = [tensor for layer in layers for tensor in layer]
            if one_launch:
                outputs = td.dirac_weights([tuple(layer) for layer in layers], **options)  # type: ignore[misc, arg-type]
            else:
                outputs = [td.dirac_weight(*layer, **options) for layer in layers]  # type: ignore[arg-type]
            grads = [torch.randn_like(output) for output in outputs]
            results = [*outputs, *torch.autograd.grad(outputs, leaves, grads)]
            names = [f"{i}" for i in range(len(results))]

            def by_definition(wide: torch.dtype, leaves=leaves, grads=grads) -> list[Tensor]:
                again = [tensor.detach().to(wide).requires_grad_() for tensor in leaves]
                # Stored as the kernel stores it: the gradient that arrives is of what was stored.
                theirs = [reference.dirac_weight(*again[i : i + 3]) for i in range(0, len(again), 3)]
                stored = [output.to(grads[0].dtype if wide != torch.float64 else wide) for output in theirs]
                return [*stored, *torch.autograd.grad(theirs, again, [grad.to(wide) for grad in grads])]

            rounded = {
                f"{len(shapes) + 3 * i}": _cancelled(weight, beta, grad)
                for i, ((weight, _, beta), grad) in enumerate(zip(layers, grads, strict=True))
            }
            found += _compare(names, results, by_definition, dtype, rounded)
        return [max(found, key=lambda error: (not error.passed, error.error))]

    return run


def _cancelled(weight: Tensor, beta: Tensor, grad: Tensor) -> float:
    """What rounding leaves of the weight's gradient, a difference of two terms of size beta |grad| / ||W||: of one
    element nothing else is left."""
    norm = weight.detach().flatten(1).norm(dim=1)
    return (torch.finfo(torch.float32).eps * (beta / norm).abs() * grad.flatten(1).abs().amax(1)).max().item()


def _leaf(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, device=device).requires_grad_()


def _compare(
    names: list[str],
    results: list[Tensor],
    by_definition: Callable[[torch.dtype], list[Tensor]],
    dtype: str,
    rounded: Mapping[str, float] | None = None,
) -> list[Error]:
    """``rounded``: how far rounding alone may take a result, where torch's own error may be less by chance."""
    with torch.backends.cudnn.flags(enabled=False):
        truth = dict(zip(names, by_definition(torch.float64), strict=True))
        plain = dict(zip(names, by_definition(torch.float32), strict=True))
    torch_errors = {name: max_error(plain[name], truth[name]) for name in names}
    for name, least in (rounded or {}).items():
        torch_errors[name] = max(torch_errors[name], least)
    return check(dict(zip(names, results, strict=True)), truth, torch_errors, dtype)


def _channels_last(image: Tensor) -> Tensor:
    return image.to(memory_format=LAST)


def _misaligned(image: Tensor) -> Tensor:
    """The same values, channels-last, beginning in the middle of a 16-byte line."""
    n, c, h, w = image.shape
    view = image.new_empty(image.numel() + 1)[1:].view(n, h, w, c).permute(0, 3, 1, 2)
    return view.copy_(image)


def _layer(
    dtype: str,
    form: str,
    arrange: Callable[[Tensor], Tensor] = _channels_last,
    sizes: tuple[int, int, int, int] | None = None,
    activation: str | None = None,
) -> Run:
    def run(device: torch.device) -> list[Error]:
        n, c, k, side = sizes or ((128, 64, 64, 8) if device.type == "cuda" else (2, 3, 4, 4))
        layer = td.DiracConv2d(c, k, 3, padding=1, form=form, backend="triton").to(device)
        call = partial(_fused, layer, activation=activation) if activation else layer
        found = []
        for _ in range(3):
            image = arrange(torch.randn(n, c, side, side, device=device).to(STORAGE[dtype]))
            found += _training_errors(call, [layer], image, dtype, activation=activation)
        return found

    return run


def _fused(layer: td.DiracConv2d, image: Tensor, activation: str) -> Tensor:
    """The layer's convolution of a padding of 1, with an activation, which the layer has not."""
    parameters = layer.alpha, layer.beta, layer.bias
    how: dict[str, Any] = {"form": layer.form, "activation": activation, "backend": layer.backend}
    return td.dirac_conv2d(image, layer.weight, *parameters, padding=1, **how)


def _net(dtype: str) -> Run:
    def run(device: torch.device) -> list[Error]:
        n, c, side = (128, 64, 8) if device.type == "cuda" else (2, 4, 3)
        layers = [td.DiracConv2d(c, c, 3, padding=1, backend="triton").to(device) for _ in range(3)]
        net = nn.Sequential(*layers)
        found = []
        with td.prepared(net):
            for _ in range(3):
                image = torch.randn(n, c, side, side, device=device).to(STORAGE[dtype], memory_format=LAST)
                found += _training_errors(net, layers, image, dtype)
        return found

    return run


def _training_errors(
    net: Callable[[Tensor], Tensor],
    layers: list[td.DiracConv2d],
    image: Tensor,
    dtype: str,
    activation: str | None = None,
) -> list[Error]:
    """Output and all gradients of one call of ``net``, which is ``layers`` one after the other."""
    image = image.detach().requires_grad_()
    mixed = torch.autocast(image.device.type, STORAGE[dtype]) if dtype != "float32" else nullcontext()
    with mixed:
        output = net(image)
    grad = torch.randn_like(output)
    leaves = [image, *(getattr(layer, name) for layer in layers for name in PARAMETERS)]
    names = ["output", "image", *(f"{name} {i}" for i in range(len(layers)) for name in PARAMETERS)]
    results = [output, *torch.autograd.grad(output, leaves, grad)]

    def by_definition(wide: torch.dtype) -> list[Tensor]:
        # Rounded where the kernels round: between layers.
        storage = torch.float64 if wide == torch.float64 else STORAGE[dtype]
        again = [tensor.detach().to(wide).requires_grad_() for tensor in leaves]
        x = again[0].to(storage)
        for i in range(len(layers)):
            weight, alpha, beta, bias = again[1 + 4 * i : 5 + 4 * i]
            filters = reference.dirac_weight(weight, alpha, beta).to(storage)
            x = F.conv2d(x, filters, bias.to(storage), padding=1)
            x = getattr(F, activation)(x) if activation else x
        return [x, *torch.autograd.grad(x, again, grad.to(x.dtype))]

    return _compare(names, results, by_definition, dtype)


def _same(names: tuple[str, ...], ours: list[Tensor], theirs: list[Tensor], dtype: str) -> list[Error]:
    truth = {name: tensor.double() for name, tensor in zip(names, theirs, strict=True)}
    return check(dict(zip(names, ours, strict=True)), truth, dict.fromkeys(names, 0.0), dtype)


def _on_a_side_stream(device: torch.device) -> list[Error]:
    layer = td.DiracConv2d(64, 64, 3, padding=1, backend="triton").to(device)
    image = torch.randn(128, 64, 8, 8, device=device).to(memory_format=LAST)
    here, aside = layer(image), torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        there = layer(image)
    torch.cuda.current_stream().wait_stream(aside)
    return _same(("output",), [there], [here], "float32")


def _in_a_graph(one_launch: bool) -> Run:
    """What a graph captured on one image gives for other images and other parameters."""

    def run(device: torch.device) -> list[Error]:
        net = nn.Sequential(*(td.DiracConv2d(64, 64, 3, padding=1, bias=False, backend="triton") for _ in range(3)))
        net.to(device)
        image = torch.randn(128, 64, 8, 8, device=device).to(memory_format=LAST)

        def step() -> Tensor:
            net.zero_grad()
            with td.prepared(net) if one_launch else nullcontext(), torch.autocast("cuda", torch.bfloat16):
                output = net(image)
                output.float().square().mean().backward()
            return output

        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        image.copy_(torch.randn_like(image))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.5)
        graph.replay()
        replayed = [captured.clone(), *(p.grad.clone() for p in net.parameters())]  # type: ignore[union-attr]
        eager = [step(), *(p.grad for p in net.parameters())]
        names = ("output", *(name for name, _ in net.named_parameters()))
        return _same(names, replayed, eager, "bfloat16")  # type: ignore[arg-type]

    return run


def _compiled(device: torch.device) -> list[Error]:
    layer = td.DiracConv2d(64, 64, 3, padding=1, bias=False, backend="triton").to(device)
    image = torch.randn(128, 64, 8, 8, device=device).to(memory_format=LAST)
    names = ("output", *(name for name, _ in layer.named_parameters()))

    def step(call: Callable[[Tensor], Tensor]) -> list[Tensor]:
        layer.zero_grad()
        output = call(image)
        output.square().mean().backward()
        return [output.detach(), *(p.grad.clone() for p in layer.parameters())]  # type: ignore[union-attr]

    return _same(names, step(torch.compile(layer, fullgraph=True)), step(layer), "float32")
