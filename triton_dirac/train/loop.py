"""A whole training: epochs of steps, a test after each, a checkpoint, and an end that can be gone on from."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from triton_dirac.models import net_named
from triton_dirac.modules import DiracConv2d, parameter_groups
from triton_dirac.prepared import prepared
from triton_dirac.train import checkpoint
from triton_dirac.train.data import Data, evaluation_draws, training_draws
from triton_dirac.train.log import write_log
from triton_dirac.train.options import DTYPES, Options
from triton_dirac.train.processes import Processes
from triton_dirac.train.step import EagerStep, GraphedStep, Step, sums_of

CHECKPOINT = "checkpoint.pt"
AGREE_EVERY = 20  # steps between two looks at whether any of several processes is to stop, besides at an epoch's last
Row = dict[str, Any]  # an epoch: what log.csv and log.json have of it


class Watcher(Protocol):
    """Who looks on. ``sums``: of the epoch so far, (losses, right answers, images), on the device: reading it waits."""

    def step(self, epoch: int, step: int, sums: Tensor) -> None: ...

    def epoch(self, row: Row) -> None: ...


class Stopped(Exception):
    """The process was asked to end; its state is saved if it had a place to."""


class Training:
    """One training, from its start or from the checkpoint in ``folder``.

    Args:
        options, data: what to train, and on what.
        processes: those that train together, on which device.
        folder: where checkpoint and logs go; None: nowhere.
        resume: go on from the folder's checkpoint if there is one.
        net: in place of the net that the options name.

    Raises:
        ValueError: the options do not fit the data, the device or the checkpoint.
        FileExistsError: the folder has a checkpoint, and ``resume`` is False.
    """

    def __init__(
        self,
        options: Options,
        data: Data,
        processes: Processes,
        folder: Path | None = None,
        *,
        resume: bool = False,
        net: nn.Module | None = None,
    ) -> None:
        self.options, self.data, self.processes, self.folder = options, data, processes, folder
        if options.graph and processes.device.type != "cuda":
            raise ValueError("graph must be False without a GPU: CUDA graphs are a GPU's")
        if options.graph and processes.count > 1:
            raise ValueError(
                "graph must be False with several processes, whose gradients are exchanged while they come"
            )
        recipe = options.recipe
        self.steps = len(self._draws(0))
        torch.manual_seed(options.seed)
        random.seed(options.seed)
        self.net = build_net(options, data, processes.device) if net is None else net
        self.optimiser = torch.optim.SGD(
            parameter_groups(self.net, recipe.weight_decay), recipe.lr, momentum=recipe.momentum
        )
        drops = recipe.drop_steps(recipe.epochs * self.steps)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimiser, drops, recipe.factor)
        self.dtype = DTYPES[options.dtype]
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=options.dtype == "float16")
        self.epoch, self.step, self.seconds, self.lr = 0, 0, 0.0, recipe.lr
        self.rows: list[Row] = []
        self.sums = self._no_sums()
        if folder is not None and (folder / CHECKPOINT).exists():
            if not resume:
                raise FileExistsError(f"{folder / CHECKPOINT} is there already: resume it, or name another folder")
            state = checkpoint.load(folder / CHECKPOINT)
            try:
                self._restore(state)
            except (LookupError, TypeError, AttributeError, RuntimeError) as error:
                raise ValueError(f"{folder / CHECKPOINT} is no checkpoint of such a training: {error!r}") from error

    def run(self, watcher: Watcher | None = None) -> list[Row]:
        """Train to the end; the rows of all epochs.

        Raises:
            Stopped: on SIGTERM or SIGINT, once the state is saved.
        """
        step = self._step()
        with self._prepared(), stop_requests() as stop:
            while self.epoch < self.options.recipe.epochs:
                started = time.monotonic()
                self.net.train()
                draws = self._draws(self.epoch)[self.step :]
                for images, labels in self.data.train.batches(draws):
                    self.lr = self.optimiser.param_groups[0]["lr"]
                    self.sums += step(self._placed(images), labels.to(self.processes.device, non_blocking=True))
                    self.scheduler.step()
                    self.step += 1
                    if watcher is not None:
                        watcher.step(self.epoch, self.step, self.sums)
                    every = self.options.checkpoint_every
                    if self._is_to_stop(stop):
                        self._save_and_stop(started)
                    if every and self.step % every == 0 and self.step < self.steps:
                        started = self._save(started)
                self._end_epoch(started, stop, watcher)
        return self.rows

    # --- parts of it ----------------------------------------------------------------------------------------

    def _draws(self, epoch: int) -> list[Any]:
        here, recipe = self.processes, self.options.recipe
        return training_draws(len(self.data.train), recipe.batch, self.options.seed, epoch, here.rank, here.count)

    def _step(self) -> Step:
        model: nn.Module = self.net
        if self.processes.count > 1:
            own = [self.processes.device] if self.processes.device.type == "cuda" else None
            model = DistributedDataParallel(model, device_ids=own)
        if self.options.compile:
            model = torch.compile(model)  # type: ignore[assignment]
        step = EagerStep(model, self.optimiser, self.dtype, self.scaler)
        return GraphedStep(step) if self.options.graph else step

    def _prepared(self) -> AbstractContextManager[Any]:
        """One launch for all layers' weights; a compiled net prepares them layer by layer, for its compiler to see."""
        has_dirac = any(isinstance(module, DiracConv2d) and module.identity == "dirac" for module in self.net.modules())
        return prepared(self.net) if has_dirac and not self.options.compile else nullcontext()

    def _placed(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if is_channels_last(self.options, self.processes.device) else torch.preserve_format
        return images.to(self.processes.device, non_blocking=True, memory_format=layout)

    def _no_sums(self) -> Tensor:
        return torch.zeros(3, dtype=torch.float64, device=self.processes.device)

    def _end_epoch(self, started: float, stop: list[int], watcher: Watcher | None) -> None:
        loss, accuracy, images = self._means(self.sums)
        seconds = self.seconds + time.monotonic() - started
        before = self.rows[-1]["seconds"] if self.rows else 0.0
        test_loss, test_accuracy, _ = self._means(self._test(started, stop))
        alphas, betas = ([m.detach().abs().mean().item() for m in part] for part in dirac_factors(self.net))
        row: Row = {"epoch": self.epoch + 1, "lr": self.lr}
        row |= {"train_loss": loss, "train_accuracy": accuracy}
        row |= {"test_loss": test_loss, "test_accuracy": test_accuracy}
        row |= {"images_per_second": images / max(seconds - before, 1e-9), "seconds": seconds}
        row |= {"alpha": alphas, "beta": betas}
        self.rows.append(row)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, self._no_sums()
        self._save(started)
        if watcher is not None:
            watcher.epoch(row)

    def _means(self, sums: Tensor) -> tuple[float, float, float]:
        """(mean loss, accuracy in percent, images) of all processes' sums."""
        loss, right, count = self.processes.total(sums).tolist()
        return loss / count, 100 * right / count, count

    @torch.no_grad()
    def _test(self, started: float, stop: list[int]) -> Tensor:
        """Sums over all test images. One process ends within it if it is asked to, and tests anew when it goes on.

        All processes test the net that is saved: the first's, with its batch-norms' statistics.
        """
        self.net.eval()
        here, sums = self.processes, self._no_sums()
        here.take_from_first(self.net.buffers())
        batch = max(1, self.options.recipe.batch // here.count)
        for images, labels in self.data.test.batches(
            evaluation_draws(len(self.data.test), batch, here.rank, here.count)
        ):
            images, labels = self._placed(images), labels.to(here.device)
            with torch.autocast(here.device.type, self.dtype, enabled=self.dtype.itemsize == 2):
                logits = self.net(images)
            sums += sums_of(F.cross_entropy(logits.float(), labels), logits, labels)
            if stop and here.count == 1:
                self._save_and_stop(started)
        return sums

    def _is_to_stop(self, stop: list[int]) -> bool:
        if self.processes.count == 1:
            return bool(stop)
        if self.step % AGREE_EVERY and self.step < self.steps:
            return False
        asked = torch.tensor([float(bool(stop))], device=self.processes.device)
        return bool(self.processes.total(asked).item())

    # --- state ------------------------------------------------------------------------------------------------

    def _save(self, started: float) -> float:
        """Write checkpoint and logs; the moment from which seconds count on."""
        now = time.monotonic()
        self.seconds += now - started
        sums = self.processes.total(self.sums)
        random_states = self.processes.gathered(checkpoint.random_state(self.processes.device))
        if self.folder is not None and self.processes.is_first:
            state: dict[str, Any] = {"net": self.net.state_dict(), "optimiser": self.optimiser.state_dict()}
            state |= {"scheduler": self.scheduler.state_dict(), "scaler": self.scaler.state_dict()}
            state |= {"epoch": self.epoch, "step": self.step, "lr": self.lr, "sums": sums.tolist()}
            state |= {
                "seconds": self.seconds,
                "rows": self.rows,
                "random": random_states,
                "options": self.options.plain(),
            }
            checkpoint.save(self.folder / CHECKPOINT, state | {"processes": self.processes.count})
            write_log(self.folder, self.options, self.rows)
        self.processes.wait()
        return now

    def _save_and_stop(self, started: float) -> NoReturn:
        self._save(started)
        raise Stopped

    def _restore(self, state: dict[str, Any]) -> None:
        self.options.require_same(state["options"])
        if state["processes"] != self.processes.count:
            raise ValueError(f"the checkpoint is of {state['processes']} processes, now {self.processes.count}")
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.lr = state["epoch"], state["step"], state["lr"]
        self.seconds = state["seconds"]
        self.rows = state["rows"]
        if len(self.rows) != self.epoch:
            raise ValueError(f"the checkpoint is of {self.epoch} epochs, and has rows of {len(self.rows)}")
        if self.processes.is_first:  # the others' share is in it
            self.sums += torch.tensor(state["sums"], dtype=torch.float64, device=self.sums.device)
        checkpoint.restore_random_state(state["random"][self.processes.rank], self.processes.device)


def build_net(options: Options, data: Data, device: torch.device) -> nn.Module:
    """The net, on its device and in its layout. Raises ValueError if it is not for images of that size."""
    net = net_named(options.net, data.classes, backend=options.backend)
    for module in net.modules():
        if isinstance(module, DiracConv2d):
            module.form = options.form
    try:
        with torch.device("meta"), torch.no_grad():
            without_data = net_named(options.net, data.classes).eval()
            without_data(torch.empty(1, 3, data.size, data.size))
    except RuntimeError as error:
        side = f"{data.size} x {data.size}"
        raise ValueError(f"net must be for images of {side}, which {options.net} is not: {error}") from error
    layout = torch.channels_last if is_channels_last(options, device) else torch.preserve_format
    return net.to(device).to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def is_channels_last(options: Options, device: torch.device) -> bool:
    return device.type == "cuda" if options.channels_last is None else options.channels_last


def dirac_factors(net: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """alpha and beta of every Dirac layer, in order."""
    layers = [module for module in net.modules() if isinstance(module, DiracConv2d)]
    return [layer.alpha for layer in layers], [layer.beta for layer in layers]


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Within it, SIGTERM and SIGINT are noted in the list, for the loop to end at its next step; a second one of them
    does what it did before. Elsewhere than in the main thread, where signals cannot be taken, it stays empty."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
    except ValueError:
        pass
    try:
        yield asked
    finally:
        for taken, handler in before.items():
            signal.signal(taken, handler)
