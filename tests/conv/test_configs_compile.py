"""The tuning tables as a compiler sees them: no offered config spills or exceeds its target's shared memory.

``python -m bench.compile --configs`` compiles them all, for half an hour. Of each target, kernel, dtype and loader one
config is the heaviest, with the most accumulators a thread, and the first to spill: of these so many are compiled here
that each target and each kernel meets each dtype, and each kernel each loader.
"""

from __future__ import annotations

from itertools import groupby

import pytest
import torch

from bench.compile import configs
from bench.compile.jobs import Job
from bench.compile.run import rows_of
from triton_dirac.conv import configs as conv_configs
from triton_dirac.conv import wgrad_configs as wgrad
from triton_dirac.runtime.targets import TARGETS


def heaviest(jobs: list[Job]) -> list[Job]:
    """Of each target, kernel, dtype and loader one job; of configs that are equally heavy another problem each time."""

    def kind(job: Job) -> tuple[str, ...]:
        return (job.target, job.kernel, job.dtype, job.arguments["config"]["loader"])

    def weight(job: Job) -> tuple[float, int]:
        config = job.arguments["config"]
        threads = config["num_warps"] * TARGETS[job.target].warp_size
        return config["block_m"] * config["block_n"] / threads, config["block_k"]

    chosen: list[Job] = []
    for _, group in groupby(sorted(jobs, key=kind), kind):
        of_kind = list(group)
        most = max(map(weight, of_kind))
        equal = [job for job in of_kind if weight(job) == most]
        chosen.append(equal[len(chosen) % len(equal)])
    return chosen


def covering(jobs: list[Job]) -> list[Job]:
    """As few as meet each of these pairs, the one with most that are new first."""

    def pairs(job: Job) -> set[tuple[str, str]]:
        loader = job.arguments["config"]["loader"]
        return {(job.target, job.dtype), (job.kernel, job.dtype), (job.kernel, loader)}

    missing = set().union(*map(pairs, jobs))
    chosen = []
    while missing:
        chosen.append(max(jobs, key=lambda job: len(pairs(job) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


@pytest.mark.slow
def test_the_heaviest_configs_fit_and_do_not_spill():
    every = configs.jobs_of(dtypes=("bfloat16", "float32"))
    jobs = covering(heaviest(every))
    assert {job.target for job in jobs} == set(TARGETS)
    assert {(job.kernel, job.dtype) for job in jobs} == {(job.kernel, job.dtype) for job in every}
    rows = rows_of(jobs, workers=1, timeout=120, counted=False)
    assert len(rows) >= len(jobs)
    assert all(row["registers"] > 0 for row in rows)
    assert not configs.faults(rows), "\n".join(configs.faults(rows))


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
@pytest.mark.parametrize("dtype", ["float16", "float32", "tf32", "tf32x3"])
def test_the_command_compiles_every_config_of_the_tables(target, dtype):
    torch_dtype = torch.float16 if dtype == "float16" else torch.float32
    precision = target.precision("ieee" if torch_dtype.itemsize == 2 else dtype)
    for kernel, tables in (("fprop", conv_configs), ("dgrad", conv_configs), ("wgrad", wgrad)):
        jobs = configs.jobs_of([target.name], [dtype], [kernel])
        compiled = {tuple(job.arguments["config"].values()) for job in jobs}
        table = [c for vectors in (True, False) for c in tables.configs(torch_dtype, vectors, target, precision)]
        assert compiled == {tuple(vars(config).values()) for config in table}
