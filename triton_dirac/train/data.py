"""Images and labels, and the order and changes that a training sees them in.

A ``Split`` gives batches for a list of ``Draw``s: which images, and a seed for what is random about them. So what a
step sees depends on its place in the training alone, and not on what ran before it in the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Batch = tuple[Tensor, Tensor]  # (N, 3, H, W) images of mean 0 and deviation 1 or so, (N,) labels
HELD_OUT = 5  # of the digits, every fifth is for testing


class Draw(NamedTuple):
    """One batch: the images' places in the split, and the seed of their crops and flips."""

    indices: Sequence[int]
    seed: int


class Split(Protocol):
    """Images of one kind, for training or for testing."""

    def __len__(self) -> int: ...

    def batches(self, draws: Sequence[Draw]) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Data:
    """A data set: both splits, the number of classes, the images' side."""

    train: Split
    test: Split
    classes: int
    size: int


class TensorSplit:
    """Images in memory. Args: images (N, 3, H, W) normalised, labels (N,), ``change`` of a batch at random or None."""

    def __init__(
        self, images: Tensor, labels: Tensor, change: Callable[[Tensor, torch.Generator], Tensor] | None = None
    ) -> None:
        self.images, self.labels, self.change = images, labels, change

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, draws: Sequence[Draw]) -> Iterator[Batch]:
        for indices, seed in draws:
            chosen = torch.as_tensor(indices, dtype=torch.long)
            images = self.images[chosen]
            if self.change is not None:
                images = self.change(images, torch.Generator().manual_seed(seed))
            yield images, self.labels[chosen]


# --- order --------------------------------------------------------------------------------------------------


def mixed_seed(*numbers: int) -> int:
    """One seed of several numbers, of which near ones give unlike ones."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "little")


def training_draws(images: int, batch: int, seed: int, epoch: int, rank: int = 0, ranks: int = 1) -> list[Draw]:
    """The batches of one epoch in a new order; images that fill no batch are left out, other ones in each epoch.

    Of several processes each takes its part of every batch.

    Raises:
        ValueError: batch is larger than the images are many, or no multiple of ``ranks``.
    """
    if batch > images:
        raise ValueError(f"batch must be at most the number of training images, {images}, got {batch}")
    if batch % ranks:
        raise ValueError(f"batch must be a multiple of the number of processes, {ranks}, got {batch}")
    order = torch.randperm(images, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch))).tolist()
    part = batch // ranks
    starts = range(rank * part, images - batch + 1 + rank * part, batch)
    return [Draw(order[a : a + part], mixed_seed(seed, epoch, step, rank)) for step, a in enumerate(starts)]


def evaluation_draws(images: int, batch: int, rank: int = 0, ranks: int = 1) -> list[Draw]:
    """Every image once, in order; of several processes each takes every so many-th."""
    own = range(rank, images, ranks)
    return [Draw(own[start : start + batch], 0) for start in range(0, len(own), batch)]


# --- changes at random --------------------------------------------------------------------------------------


def cropped(images: Tensor, generator: torch.Generator, margin: int, mode: str) -> Tensor:
    """Each image moved by up to ``margin`` pixels; what comes in from outside is padding of that mode."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (margin,) * 4, mode=mode)
    tops, lefts = torch.randint(2 * margin + 1, (2, count), generator=generator)
    rows = (tops[:, None] + torch.arange(height))[:, None, :, None]
    columns = (lefts[:, None] + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None], rows, columns]


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image or its mirror image."""
    mirrored = torch.randint(2, (len(images), 1, 1, 1), generator=generator).bool()
    return torch.where(mirrored, images.flip(3), images)


def moved_and_flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """CIFAR's: reflected margins of 4 pixels, crop, flip."""
    return flipped(cropped(images, generator, 4, "reflect"), generator)


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Digits': by up to a pixel. A mirrored digit is none."""
    return cropped(images, generator, 1, "replicate")


# --- digits, and the others by name ---------------------------------------------------------------------------


def digits() -> Data:
    """scikit-learn's 1,797 handwritten digits of 8 x 8, which come with it: every fifth is for testing.

    Source: E. Alpaydin and C. Kaynak, UCI Optical Recognition of Handwritten Digits; the test set of theirs.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ModuleNotFoundError("data 'digits' needs scikit-learn: pip install 'triton-dirac[train]'") from None
    pixels, classes = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8).expand(-1, 3, -1, -1)
    labels = torch.as_tensor(classes, dtype=torch.long)
    tested = torch.arange(len(labels)) % HELD_OUT == 0
    mean, deviation = images[~tested].mean(), images[~tested].std()
    images = ((images - mean) / deviation).contiguous()
    return Data(
        TensorSplit(images[~tested], labels[~tested], moved), TensorSplit(images[tested], labels[tested]), 10, 8
    )


def open_data(name: str, root: Path | None = None, workers: int = 0) -> Data:
    """The data set "digits", "cifar10", "cifar100" or "imagenet", from ``root``; ``workers``: that decode images.

    Raises:
        ValueError: the name is another, or root is missing where it is needed, or given where nothing is read.
        FileNotFoundError: what is expected in root is not there; the message says what.
    """
    from triton_dirac.train.cifar import cifar
    from triton_dirac.train.folders import imagenet

    if name == "digits":
        if root is not None:
            raise ValueError(f"root must be none for digits, which scikit-learn brings, got {str(root)!r}")
        return digits()
    if name not in ("cifar10", "cifar100", "imagenet"):
        raise ValueError(f"data must be one of digits, cifar10, cifar100, imagenet, got {name!r}")
    if root is None:
        raise ValueError(f"root must be the folder of {name}, got none")
    return imagenet(root, workers) if name == "imagenet" else cifar(root, 10 if name == "cifar10" else 100)
