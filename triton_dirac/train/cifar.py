"""CIFAR-10 and CIFAR-100 from the files they are published in: the Python version (pickles) or the binary one.

    cifar-10-batches-py/{data_batch_1..5, test_batch}      cifar-100-python/{train, test}
    cifar-10-batches-bin/{data_batch_1..5, test_batch}.bin cifar-100-binary/{train, test}.bin

A binary record is the label (CIFAR-100: coarse, then fine) and 3 x 32 x 32 bytes.
Source: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triton_dirac.train.data import Data, TensorSplit, moved_and_flipped

PIXELS = 3 * 32 * 32
FOLDERS = {10: ("cifar-10-batches-py", "cifar-10-batches-bin"), 100: ("cifar-100-python", "cifar-100-binary")}
TRAIN = {10: tuple(f"data_batch_{i}" for i in range(1, 6)), 100: ("train",)}
TEST = {10: ("test_batch",), 100: ("test",)}
# Of the training images in 0..255; those of the official training script, for both data sets.
MEAN, DEVIATION = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
# What a pickle of numpy arrays needs; anything else in a file would be executed.
HARMLESS = {
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}  # fmt: skip


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file does")
        return super().find_class(module, name)


def cifar(root: Path, classes: int) -> Data:
    """CIFAR-10 or CIFAR-100 in ``root``, which is one of the folders above or holds it.

    Raises:
        FileNotFoundError: a file is missing; ValueError: one is damaged.
    """
    folder = _folder(root, classes)
    train, test = (_read(folder, names, classes) for names in (TRAIN[classes], TEST[classes]))
    return Data(TensorSplit(*train, moved_and_flipped), TensorSplit(*test), classes, 32)


def _folder(root: Path, classes: int) -> Path:
    for folder in (root, *(root / name for name in FOLDERS[classes])):
        if any((folder / f"{TEST[classes][0]}{suffix}").is_file() for suffix in ("", ".bin")):
            return folder
    raise FileNotFoundError(
        f"root must be or hold {' or '.join(FOLDERS[classes])} of CIFAR-{classes}, unpacked, and {root} does not; "
        "the files are at https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def _read(folder: Path, names: tuple[str, ...], classes: int) -> tuple[Tensor, Tensor]:
    """(images, normalised, in float32; labels) of several files."""
    parts = [_read_file(folder / name, classes) for name in names]
    images = torch.cat([pixels for pixels, _ in parts]).view(-1, 3, 32, 32).float()
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    labels = torch.cat([labels for _, labels in parts]).long()
    if not len(labels) or int(labels.max()) >= classes or int(labels.min()) < 0:
        raise ValueError(f"the labels of {folder} must lie in 0..{classes - 1}: is it another CIFAR?")
    return (images - mean) / deviation, labels


def _read_file(path: Path, classes: int) -> tuple[Tensor, Tensor]:
    """((N, 3072), (N,)) bytes and labels."""
    if path.is_file():
        return _read_pickle(path, classes)
    path = path.with_name(f"{path.name}.bin")
    content = bytearray(path.read_bytes())
    ahead = 1 if classes == 10 else 2
    if not content or len(content) % (ahead + PIXELS):
        raise ValueError(f"{path} must hold records of {ahead + PIXELS} bytes, and has {len(content)} bytes")
    records = torch.frombuffer(content, dtype=torch.uint8).view(-1, ahead + PIXELS)
    return records[:, ahead:], records[:, ahead - 1]


def _read_pickle(path: Path, classes: int) -> tuple[Tensor, Tensor]:
    labels = b"labels" if classes == 10 else b"fine_labels"
    content: Any = path.read_bytes()
    try:
        content = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        pixels = torch.as_tensor(content[b"data"], dtype=torch.uint8)
        found = torch.as_tensor(content[labels])
        return pixels.view(len(found), PIXELS), found
    except Exception as error:  # whatever a damaged pickle runs into: a codec that is none, more memory than there is
        raise ValueError(f"{path} must be a CIFAR-{classes} file of the Python version: {error}") from error
