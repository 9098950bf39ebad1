"""A training as it is seen in a terminal: a bar with loss, accuracy, images a second and the time left."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

REFRESH = 0.5  # seconds: losses are read from the device no more often, since that waits for it


class Bar:
    """A ``Watcher``: a bar for all steps, and a line for each epoch. Where no terminal is, the lines alone."""

    def __init__(self, epochs: int, steps: int, done: int, images: int) -> None:
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[state]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.epochs, self.steps, self.images = epochs, steps, images
        self.task = self.progress.add_task("epoch", total=epochs * steps, completed=done, state="")
        self.seen, self.last, self.rate = done, time.monotonic(), 0.0

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def step(self, epoch: int, step: int, sums: Tensor) -> None:
        now, done = time.monotonic(), epoch * self.steps + step
        if self.progress.disable or now - self.last < REFRESH:
            return
        self.rate = (done - self.seen) * self.images / (now - self.last)
        self.seen, self.last = done, now
        loss, right, count = sums.tolist()
        state = f"loss {loss / count:.3f}  accuracy {100 * right / count:.1f} %  {self.rate:,.0f} images/s"
        description = f"epoch {epoch + 1} of {self.epochs}"
        self.progress.update(self.task, completed=done, description=description, state=state)

    def epoch(self, row: dict[str, Any]) -> None:
        self.progress.update(self.task, completed=row["epoch"] * self.steps)
        self.console.print(
            f"epoch {row['epoch']:>3} of {self.epochs}  lr {row['lr']:.3g}  train: loss {row['train_loss']:.3f}, "
            f"{row['train_accuracy']:.2f} %  test: loss {row['test_loss']:.3f}, {row['test_accuracy']:.2f} %  "
            f"{row['images_per_second']:,.0f} images/s",
            highlight=False,
            soft_wrap=True,
        )
