"""Trainings of seconds: a few digits, a tiny net; also as a program that a test can kill."""

import os
import signal
import sys
from pathlib import Path

import torch

from triton_dirac.runtime import files
from triton_dirac.train import checkpoint
from triton_dirac.train.data import Data, TensorSplit, moved
from triton_dirac.train.loop import CHECKPOINT, Training
from triton_dirac.train.options import options_for
from triton_dirac.train.processes import Processes

CPU = Processes(torch.device("cpu"))


def few_images(count=40, tested=12):
    """Noise with a bright quarter: four classes of 8 x 8."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count + tested) % 4
    images = torch.randn(count + tested, 3, 8, 8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 1.5
    return Data(TensorSplit(images[:count], labels[:count], moved), TensorSplit(images[count:], labels[count:]), 4, 8)


def options(**changes):
    """Five steps in each of three epochs unless told otherwise."""
    given = {"net": "diracnet-10-1", "epochs": 3, "batch": 8, "lr": 0.05, "checkpoint_every": 2}
    return options_for("digits", **(given | changes))


def training(folder=None, resume=False, **changes):
    return Training(options(**changes), few_images(), CPU, folder, resume=resume)


def lasting(state):
    """All of a checkpoint but its clock."""
    rows = [
        {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}
        for row in state["rows"]
    ]
    return {**{name: value for name, value in state.items() if name != "seconds"}, "rows": rows}


def assert_same_state(actual, expected, place="state"):
    """Bit for bit."""
    assert type(actual) is type(expected), place
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), place
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), place
        for name, value in expected.items():
            assert_same_state(actual[name], value, f"{place}.{name}")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), place
        for index, (mine, theirs) in enumerate(zip(actual, expected, strict=True)):
            assert_same_state(mine, theirs, f"{place}.{index}")
    else:
        assert actual == expected, place


def final_state(folder):
    return lasting(checkpoint.load(folder / CHECKPOINT))


# --- killed while it writes ---------------------------------------------------------------------------------


def kill_in_write(number, stage):
    """From now on the process kills itself in the ``number``-th write of a checkpoint: "half" of it written, or all of
    it ("whole") and not yet in the old one's place."""
    writes = 0
    sync, replace = os.fsync, os.replace

    def counted(descriptor):
        nonlocal writes
        writes += 1
        if writes == number and stage == "half":
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    def last(part, place):
        if writes == number and str(place).endswith(CHECKPOINT):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(part, place)

    files.os.fsync, files.os.replace = counted, last


if __name__ == "__main__":
    torch.set_num_threads(1)
    kill_in_write(int(sys.argv[2]), sys.argv[3])
    training(Path(sys.argv[1])).run()
