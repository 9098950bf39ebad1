"""Two processes train to the weights of one: DistributedDataParallel and FSDP2, with and without ``prepared``."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from triton_dirac import DiracConv2d, parameter_groups, prepared

STEPS = 3
# Float32 sums of two halves against one sum of all; observed 6e-8.
TOLERANCE = 1e-6
VARIANTS = list(itertools.product(["ddp", "fsdp", "fsdp-layers"], [False, True]))


def small_net() -> nn.Sequential:
    """No batch-norm: its statistics are of each process's own half of the batch."""
    torch.manual_seed(0)
    return nn.Sequential(
        DiracConv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        DiracConv2d(8, 6, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 6, 6, generator=generator), torch.arange(8) % 4


def train(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, one_launch: bool) -> None:
    optimiser = torch.optim.SGD(parameter_groups(net, 1e-2), lr=0.5, momentum=0.9)
    with prepared(net) if one_launch else contextlib.nullcontext():
        for _ in range(STEPS):
            nn.functional.cross_entropy(net(images), labels).backward()
            optimiser.step()
            optimiser.zero_grad()


def wrapped(wrapper: str) -> nn.Module:
    net = small_net()
    if wrapper == "ddp":
        return DistributedDataParallel(net)
    if wrapper == "fsdp-layers":  # every Dirac layer is a shard of its own, gathered when its turn comes
        for layer in net:
            if isinstance(layer, DiracConv2d):
                fully_shard(layer)
    return fully_shard(net)


def worker(rank: int, folder: str) -> None:
    """Train every variant; process 0 saves the weights."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    images, labels = batch()
    half = slice(4 * rank, 4 * rank + 4)
    for wrapper, one_launch in VARIANTS:
        net = wrapped(wrapper)
        train(net, images[half], labels[half], one_launch)
        weights = {
            name.removeprefix("module."): (p.full_tensor() if hasattr(p, "full_tensor") else p).detach()
            for name, p in net.named_parameters()
        }
        if rank == 0:
            torch.save(weights, Path(folder, f"{wrapper}-{one_launch}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes, started once for all variants, left their weights."""
    path = tmp_path_factory.mktemp("distributed")
    spawn(worker, (str(path),), nprocs=2)
    return path


@pytest.mark.parametrize("wrapper, one_launch", VARIANTS)
def test_two_processes_train_like_one(folder, wrapper, one_launch):
    expected = small_net()
    train(expected, *batch(), one_launch=False)
    weights = torch.load(folder / f"{wrapper}-{one_launch}.pt")
    assert weights.keys() == dict(expected.named_parameters()).keys()
    for name, weight in expected.named_parameters():
        error = (weights[name] - weight).abs().max().item()
        assert error <= TOLERANCE, f"{name}: {error:.1e} after {STEPS} steps"
