"""What bfloat16 leaves of small filters, materialised and split: accuracy only, nothing is timed."""

from __future__ import annotations

import pytest

from bench import precision
from bench.options import chosen
from bench.results import KINDS, Entries


@pytest.mark.parametrize("beta", precision.BETAS)
@pytest.mark.parametrize("of", precision.chosen_layers(), ids=lambda layer: f"{layer.net} {layer.name}")
def test_precision(benchmark, lab, of, beta):  # with ``benchmark``: else --benchmark-only leaves it out
    selection = lab.selection
    asked = (
        chosen(of.net, selection.nets)
        and chosen(of.name, selection.layers)
        and chosen("bfloat16", selection.dtypes)
        and selection.contenders is None
    )
    if not asked:
        pytest.skip("not selected")

    def measure() -> Entries:
        return {**{kind: [] for kind in KINDS}, "accuracy": precision.accuracy(of, beta)}

    entries = lab.once(precision.key(of, beta), precision.CONTENDERS, measure)
    for left_out in entries["not_run"]:
        pytest.skip(left_out["reason"])
    pytest.skip("accuracy only: there is nothing to time")
