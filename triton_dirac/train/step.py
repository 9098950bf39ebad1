"""One training step, in whatever way it is run: forward, cross-entropy, backward, optimiser."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EAGER_STEPS = 3  # before a capture: they compile, tune, and make the optimiser's momentum
Step = Callable[[Tensor, Tensor], Tensor]  # of (images, labels): sums of (losses, right answers, images), float64


class EagerStep:
    """Args: model, optimiser; ``dtype`` of the forward pass, by autocast if it has 16 bits; ``scaler`` of the loss."""

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        dtype: torch.dtype,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.model, self.optimiser, self.dtype, self.scaler = model, optimiser, dtype, scaler

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype.itemsize == 2):
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
        self.optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return sums_of(loss.detach(), logits, labels)


def sums_of(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """(sum of the losses, right answers, images), of a batch and its mean loss, on its device: nobody waits for it."""
    count = torch.full((), float(len(labels)), dtype=torch.float64, device=labels.device)
    right = (logits.detach().argmax(1) == labels).sum().double()
    return torch.stack([loss.double() * count, right, count])


class GraphedStep:
    """The same step captured in a CUDA graph and replayed; captured anew when the learning rate has changed.

    The first steps run eagerly, on a stream of their own as captures need it.
    """

    def __init__(self, step: EagerStep) -> None:
        self.step = step
        self.ran = 0
        self.lr: float | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.ran < EAGER_STEPS:
            self.ran += 1
            aside, here = torch.cuda.Stream(), torch.cuda.current_stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                sums = self.step(images, labels)
            here.wait_stream(aside)
            return sums
        lr = float(self.step.optimiser.param_groups[0]["lr"])
        if lr != self.lr:
            self._capture(images, labels, lr)
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.sums.clone()

    def _capture(self, images: Tensor, labels: Tensor, lr: float) -> None:
        """The graph's calls are recorded and not run: no parameter changes."""
        self.images, self.labels, self.lr = images.clone(), labels.clone(), lr
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph):
            self.sums = self.step(self.images, self.labels)
