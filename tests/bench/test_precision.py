"""The bfloat16 figure: what each form loses, measured against float64."""

import pytest
import torch
import torch.nn.functional as F

from bench import precision
from bench.layers import Layer
from bench.nets import NETS
from triton_dirac.conv.problem import ConvProblem

LAYER = Layer({"DiracNet-34-2": 10}, True, True, 128, ConvProblem(2, 16, 8, 8, 24, 3, 3, padding=(1, 1, 1, 1)))


def errors(beta):
    rows = precision.accuracy(LAYER, beta)
    assert all(row["passed"] and row["beta"] == beta and row["executed_by"] == "cpu" for row in rows)
    return {(row["contender"], row["tensor"]): row["error"] / row["filters_scale"] for row in rows}


@pytest.mark.parametrize("beta, closer", [(0.01, 10), (0.1, 5), (1.0, 1)])
def test_the_split_form_is_closer_the_smaller_the_filters(beta, closer):
    found = errors(beta)
    assert found["split", precision.UNROUNDED] * closer <= found["materialised", precision.UNROUNDED]
    assert found["split", precision.UNROUNDED] < 2**-8  # the filters' own rounding, whatever beta


def test_rounding_the_output_costs_both_forms_alike():
    """Said beside the figure: a bfloat16 output of about 1 cannot hold what a filter of 0.01 adds."""
    found = errors(0.01)
    assert found["split", precision.ROUNDED] > 10 * found["split", precision.UNROUNDED]
    assert found["split", precision.ROUNDED] < found["materialised", precision.ROUNDED]


@pytest.mark.parametrize("form", precision.CONTENDERS)
def test_forms_are_what_they_are_called(form):
    image, weight = torch.randn(2, 16, 8, 8).bfloat16(), torch.randn(24, 16, 3, 3)
    alpha, beta = torch.randn(24), torch.randn(24)
    found = precision.unrounded(LAYER, image, weight, alpha, beta, form)
    filters = beta.view(-1, 1, 1, 1) * F.normalize(weight.flatten(1)).view_as(weight)
    if form == "split":
        expected = F.conv2d(image.float(), filters.bfloat16().float(), padding=1)
        expected[:, :16] += alpha[:16].view(-1, 1, 1) * image.float()
    else:
        filters[range(16), range(16), 1, 1] += alpha[:16]
        expected = F.conv2d(image.float(), filters.bfloat16().float(), padding=1)
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


def test_each_net_with_dirac_layers_has_one_layer():
    chosen = precision.chosen_layers()
    assert [layer.net for layer in chosen] == [name for name, net in NETS.items() if net.by_default]
    assert all(layer.has_identity and layer.problem.N == precision.BATCH for layer in chosen)
