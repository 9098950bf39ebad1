"""Inference of whole nets, by the wall clock: every published DiracNet, unfolded and folded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.net_inference import NET_INFERENCE, cost, definition
from bench.net_training import Training, step_samples, trainings
from bench.suite import Suite
from bench.test_training_step import draw

pytestmark = pytest.mark.network


def inferences(nets, batch: int | None = None) -> list[Training]:
    return [replace(training, name="inference") for training in trainings(nets, batch)]


SUITE = Suite(
    name="inference",
    passes={"forward": ("logits",)},
    draw=draw,
    definition=definition,
    cost=cost,
    contenders=NET_INFERENCE,
    subjects=inferences,
    sampler=step_samples,
)


def test_inference(benchmark, lab, net, layer, dtype, direction, contender):
    lab.run(benchmark, SUITE, net, layer, dtype, direction, contender)
