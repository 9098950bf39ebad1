"""Training steps of whole nets, by the wall clock: every published DiracNet."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.net_training import (
    PARTS,
    TRAINING_STEP,
    Training,
    cost,
    definition,
    end_to_end,
    parameters_like,
    step_samples,
    trainings,
    with_filters_rounded_once,
    with_the_identity_apart,
)
from bench.suite import Suite

pytestmark = pytest.mark.network


def draw(problem: Training, normal, storage: torch.dtype) -> dict[str, Any]:
    """Images of size 1, each of a class of its own kind, as probabilities: so that all inputs are real numbers."""
    images = normal(*problem.image_shape).to(storage, memory_format=torch.channels_last)
    labels = torch.softmax(8 * normal(problem.batch, problem.classes), 1)
    return {"images": images, "labels": labels, "parameters": parameters_like(problem.net, normal)}


SUITE = Suite(
    name="training_step",
    passes={"step": ("loss", *PARTS)},
    draw=draw,
    definition=definition,
    rewritten=(with_filters_rounded_once, with_the_identity_apart),
    cost=cost,
    contenders=TRAINING_STEP,
    subjects=trainings,
    compared=end_to_end,
    sampler=step_samples,
)


def test_training_step(benchmark, lab, net, layer, dtype, direction, contender):
    lab.run(benchmark, SUITE, net, layer, dtype, direction, contender)
