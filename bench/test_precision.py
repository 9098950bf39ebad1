"""What bfloat16 leaves of small filters, materialised and split: accuracy only, nothing is timed."""

from __future__ import annotations

import pytest

from bench import precision
from bench.conftest import lab_of
from bench.options import chosen


@pytest.mark.parametrize("beta", precision.BETAS)
@pytest.mark.parametrize("layer", precision.chosen_layers(), ids=lambda layer: f"{layer.net} {layer.name}")
def test_precision(benchmark, pytestconfig, layer, beta):  # with ``benchmark``: else --benchmark-only leaves it out
    lab = lab_of(pytestconfig)
    selection = lab.selection
    asked = (
        chosen(layer.net, selection.nets)
        and chosen(layer.name, selection.layers)
        and chosen("bfloat16", selection.dtypes)
        and selection.contenders is None
    )
    if not asked:
        pytest.skip("not selected")
    lab.accuracy += precision.accuracy(layer, beta)
    pytest.skip("accuracy only: there is nothing to time")
