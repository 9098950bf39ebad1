"""ImageNet, or any images, as folders: train/CLASS/*.jpg and val/CLASS/*.jpg; classes in the order of their names.

Training: a random part of 8 to 100 % of the image and of aspect 3/4 to 4/3, as 224 x 224, mirrored or not. Testing:
the middle 224 x 224 of the image with its short side made 256. Source: the official training script.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from triton_dirac.train.data import Batch, Data, Draw, mixed_seed

SIZE, SHORT_SIDE = 224, 256
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp"}
Box = tuple[float, float, float, float]


class FolderSplit:
    """Images that ``workers`` processes decode as they are needed; 0: this process."""

    def __init__(self, images: Sequence[tuple[Path, int]], trained: bool, workers: int) -> None:
        self.files = _Files(images, trained)
        self.workers = workers

    def __len__(self) -> int:
        return len(self.files.images)

    def batches(self, draws: Sequence[Draw]) -> Iterator[Batch]:
        items = [[(index, mixed_seed(seed, index)) for index in indices] for indices, seed in draws]
        loader: DataLoader[Any] = DataLoader(
            self.files,
            batch_sampler=items,
            num_workers=self.workers,
            worker_init_fn=_leave_signals_to_the_training,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # not the process's own, whose state is part of a training's
        )
        yield from loader


def _leave_signals_to_the_training(worker: int) -> None:
    """Schedulers and Ctrl-C ask every process of a group to end: the training then needs a batch more, to save."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _Files(Dataset[tuple[Tensor, int]]):
    """An image and its label by (index, seed)."""

    def __init__(self, images: Sequence[tuple[Path, int]], trained: bool) -> None:
        self.images, self.trained = images, trained

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        from PIL import Image

        index, seed = item
        path, label = self.images[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except OSError as error:
            raise ValueError(f"{path} must be an image: {error}") from error
        mirrored = False
        width, height = image.size
        if self.trained:
            generator = torch.Generator().manual_seed(seed)
            box = random_box(width, height, generator)
            mirrored = bool(torch.randint(2, (), generator=generator))
        else:
            box = middle_box(width, height)
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3).permute(2, 0, 1)
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
        tensor = (pixels.float() / 255 - mean) / deviation
        return (tensor.flip(2) if mirrored else tensor), label


def middle_box(width: int, height: int) -> Box:
    """The square that is the middle 224 x 224 once the short side is 256."""
    side = min(width, height) * SIZE / SHORT_SIDE
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, generator: torch.Generator) -> Box:
    """A part of 8 to 100 % of the area and of aspect 3/4 to 4/3; after ten misfits, the largest in the middle."""
    for _ in range(10):
        share, aspect = torch.rand(2, generator=generator).tolist()
        area = width * height * (0.08 + 0.92 * share)
        ratio = math.exp(math.log(3 / 4) + aspect * 2 * math.log(4 / 3))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            x, y = torch.rand(2, generator=generator).tolist()
            left, top = x * (width - w), y * (height - h)
            return left, top, left + w, top + h
    ratio = min(max(width / height, 3 / 4), 4 / 3)
    w, h = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def imagenet(root: Path, workers: int = 0) -> Data:
    """Images in train/CLASS and val/CLASS of ``root``.

    Raises:
        FileNotFoundError: a folder is missing or empty. ValueError: the two have other classes.
        ModuleNotFoundError: Pillow is not installed.
    """
    try:
        import PIL  # noqa: F401 - said now, and not by a worker
    except ImportError:
        raise ModuleNotFoundError("data 'imagenet' needs Pillow: pip install 'triton-dirac[train]'") from None
    folders = {part: _classes(root / part) for part in ("train", "val")}
    if folders["train"] != folders["val"]:
        odd = sorted(set(folders["train"]) ^ set(folders["val"]))
        raise ValueError(f"train and val of {root} must have the same classes, and differ in {', '.join(odd[:3])}")
    splits = {part: _images(root / part, names) for part, names in folders.items()}
    train, test = (FolderSplit(images, part == "train", workers) for part, images in splits.items())
    return Data(train, test, len(folders["train"]), SIZE)


def _classes(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not names:
        raise FileNotFoundError(f"{folder} must hold a folder of images for every class")
    return names


def _images(folder: Path, names: Sequence[str]) -> list[tuple[Path, int]]:
    found = []
    for label, name in enumerate(names):
        files = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in SUFFIXES)
        if not files:
            raise FileNotFoundError(f"{folder / name} must hold images, and has none of {', '.join(sorted(SUFFIXES))}")
        found += [(path, label) for path in files]
    return found
