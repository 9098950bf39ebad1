"""What bfloat16 leaves of small filters: the Dirac convolution's two forms, materialised and split.

A bfloat16 near 1 has neighbours at a distance of 2^-7, so that What = alpha * I + beta * u, rounded, keeps little
of beta * u where the identity stands. The split form rounds beta * u alone and adds alpha * x in float32.

Errors are max |y - y64|, against float64 on the same bfloat16 image and float32 parameters, and are shown as
a part of max |conv(x, beta * u)|, what the filters add to the output:

    output before rounding   y as the float32 accumulators hold it: what the form itself costs
    output in bfloat16       y rounded: 2^-9 |y| comes on top, the same for both forms

On the CPU, in torch operations: bfloat16 operands, float32 products and sums. (Triton's interpreter cuts off
where a GPU rounds.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import triton_dirac
from bench.accuracy import max_error
from bench.contenders import delta_of, eager_weight
from bench.layers import Layer, dirac_layers
from bench.nets import NETS
from bench.results import digits, sizes
from bench.test_weight_prep import parameters
from triton_dirac import reference
from triton_dirac.conv import torch_backend

SUITE = "precision"
BETAS = (0.01, 0.1, 1.0)
CONTENDERS = ("materialised", "split")
BATCH = 2
UNROUNDED, ROUNDED = "output before rounding", "output in bfloat16"


def chosen_layers() -> list[Layer]:
    """Of each net that has Dirac layers, and is run by default, the most frequent of them."""
    nets = [dirac_layers([name], BATCH) for name, net in NETS.items() if net.by_default]
    return [max(of_net, key=lambda layer: layer.count) for of_net in nets if of_net]


def key(layer: Layer, beta: float) -> tuple[str, ...]:
    """What the journal calls one of these measurements."""
    return (SUITE, "fprop", layer.net, f"{layer.name}, beta {beta:g}", "bfloat16")


def accuracy(layer: Layer, beta: float) -> list[dict[str, Any]]:
    """Rows for the results file's ``accuracy``, each with ``beta`` and ``filters_scale``, max |conv(x, beta * u)|."""
    problem = layer.problem
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    image = normal(*problem.input_shape).bfloat16()
    weight, alpha, _ = parameters(problem, normal).values()
    betas = torch.full((problem.K,), beta)
    truth, added = _truth(layer, image, weight, alpha, betas)
    plain = _by_torch(layer, image, weight, alpha, betas)
    rows = []
    for form in CONTENDERS:
        found = unrounded(layer, image, weight, alpha, betas, form)
        for tensor, result, by_torch in (
            (UNROUNDED, found, plain),
            (ROUNDED, found.bfloat16(), plain.bfloat16()),
        ):
            error, torch_error = max_error(result, truth), max_error(by_torch, truth)
            rows.append(
                {
                    "suite": SUITE,
                    "pass": "fprop",
                    "net": layer.net,
                    "layer": layer.name,
                    "dtype": "bfloat16",
                    "contender": form,
                    "tensor": tensor,
                    "error": digits(error, 4),
                    "scale": digits(truth.abs().max().item(), 4),
                    "torch_error": digits(torch_error, 4),
                    "passed": error <= 2 * torch_error,
                    "executed_by": "cpu",
                    "problem": sizes(problem),
                    "beta": beta,
                    "filters_scale": digits(added.abs().max().item(), 4),
                }
            )
    return rows


def unrounded(layer: Layer, image: Tensor, weight: Tensor, alpha: Tensor, beta: Tensor, form: str) -> Tensor:
    """The output in float32 of a form whose convolution takes bfloat16 weights."""
    prepared = triton_dirac.dirac_weight(
        weight, alpha, beta, identity=form == "materialised", dtype=torch.bfloat16, backend="torch"
    )
    identity = alpha if form == "split" else None
    return torch_backend.conv2d(image.float(), prepared.float(), None, identity, layer.problem)


def _truth(layer: Layer, image: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """(the output, what the filters add to it), in float64."""
    weight, alpha, beta = (tensor.double() for tensor in parameters)
    filters = reference.dirac_weight(weight, alpha, beta, identity=False)
    added = torch_backend.conv2d(image.double(), filters, None, None, layer.problem)
    output = torch_backend.conv2d(image.double(), filters, None, alpha, layer.problem)
    return output, added


def _by_torch(layer: Layer, image: Tensor, weight: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """As eager code does it: the filter bank as torch operations, then a bfloat16 convolution."""
    delta = delta_of(tuple(weight.shape))
    prepared = eager_weight(weight, alpha, beta, delta, torch.bfloat16, torch.contiguous_format)
    top, _, left, _ = layer.problem.padding
    return F.conv2d(image.float(), prepared.float(), None, layer.problem.stride, (top, left))
