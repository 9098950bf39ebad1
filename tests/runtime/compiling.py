"""What tests of compiling run in a process of its own, which does not interpret: prints a line of JSON.

python -m tests.runtime.compiling CASE [argument ...]
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import weakref
from contextlib import nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia_driver
from triton.runtime import driver

from tests.scripted_gpu import Clock, FakeGpu
from triton_dirac import DiracConv2d, functional, prepared, tuning
from triton_dirac.conv import dgrad_configs, fprop_configs, wgrad_configs
from triton_dirac.conv.dgrad import prepare_dgrad
from triton_dirac.conv.epilogue import Epilogue
from triton_dirac.conv.fprop import fprop, prepare_fprop
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.conv.wgrad import prepare_wgrad
from triton_dirac.runtime import autotune, compiled_cache, measure
from triton_dirac.runtime import compile_ahead as ahead
from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.targets import TARGETS
from triton_dirac.tuning import work
from triton_dirac.tuning.preparation import preparation_planners

H100 = TARGETS["cuda:90"]
PROBLEM = ConvProblem(128, 64, 4, 4, 64, 3, 3, padding=(1, 1, 1, 1))


@triton.jit
def copy(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + index, tl.load(x_ptr + index, mask=index < n), mask=index < n)


@triton.jit
def wrong(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    tl.store(y_ptr, tl.load(x_ptr) + no_such_name)  # noqa: F821


class Trap(int):
    """A number that does something to the process that is sent it."""


class Crash(Trap):
    def __reduce__(self):
        return _kill_self, (signal.SIGSEGV,)


class Killed(Trap):
    def __reduce__(self):
        return _kill_self, (signal.SIGKILL,)


class Hang(Trap):
    def __reduce__(self):
        return time.sleep, (60,)


def _kill_self(number):
    os.kill(os.getpid(), number)


def planned(kernel=copy, block=1024, n=4096, tensor=None):
    x = torch.empty(4096) if tensor is None else tensor
    return [Launch(kernel, (1,), {"x_ptr": x, "y_ptr": x, "n": n}, {"BLOCK": block}, {"num_warps": 1})]


def outcomes():
    """Compilers that refuse, crash, are killed and hang, among kernels that are all right."""
    plans = {
        "good": planned,
        "same": lambda: planned(n=32),
        "odd": lambda: planned(n=7),
        "wrong": lambda: planned(wrong),
        "crash": lambda: planned(block=Crash(512)),
        "killed": lambda: planned(block=Killed(256)),
        "hang": lambda: planned(block=Hang(128)),
        "unplanned": lambda: 1 / 0,
    }
    steps = []
    outcome = ahead.compile_ahead(plans, H100, timeout=10, progress=lambda done, total: steps.append((done, total)))
    ahead.cores = lambda: 0  # and no process would be made
    again = ahead.compile_ahead({name: plans[name] for name in ("good", "odd")}, H100, timeout=11)
    return {**asdict(outcome), "progress": steps, "again": again.compiled}


def launchers():
    """The launchers that a kernel compiled ahead has, by whether they look for the GPU's driver."""
    ahead.compile_ahead({"good": planned}, H100)
    built = list(compiled_cache.directory().glob("*/__triton_launcher*.so"))
    return {
        "of C": hasattr(nvidia_driver, "make_launcher"),
        "linked": [b"libcuda.so.1" in f.read_bytes() for f in built],
    }


def unstartable():
    """No process can be made."""
    python, sys.executable = sys.executable, "/no/such/python"
    try:
        return asdict(ahead.compile_ahead({"good": lambda: planned(block=2048)}, H100))
    finally:
        sys.executable = python


def holding():
    """The most tensors that live while many are planned."""
    alive, most = weakref.WeakSet(), [0]

    def plan():
        tensor = torch.empty(4096)
        alive.add(tensor)
        most[0] = max(most[0], len(alive))
        return planned(tensor=tensor)

    ask, ahead._ask = ahead._ask, lambda requests, *_: [{"ok": True}] * len(requests)
    try:
        ahead.compile_ahead(dict.fromkeys(range(20), plan), H100)
    finally:
        ahead._ask = ask
    return {"most": most[0]}


def small_cases():
    """Several in one process, which imports torch once; the last has Triton's driver replaced."""
    return {
        "launchers": launchers(),
        "unstartable": unstartable(),
        "holding": holding(),
        "not ahead": launched("not ahead", "1"),
    }


class Driver:
    """An H100 that takes kernels and does nothing."""

    class utils:
        @staticmethod
        def load_binary(*arguments):
            return 0, 0, 64, 0, 1024

        @staticmethod
        def get_device_properties(device):
            return {"max_shared_mem": H100.shared_bytes, "multiprocessor_count": 132, "warpSize": 32}

        @staticmethod
        def unload_module(*arguments): ...

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_device_capability(self, device=0):
        return 9, 0

    def map_python_to_cpp_type(self, ty):
        return ty

    def launcher_cls(self, source, metadata):
        return lambda *arguments: None


def on_a_driver_that_does_nothing():
    """Launches go there from now on; the list of them, whether their kernels were in Triton's cache."""
    driver.set_active(Driver())
    torch.cuda.current_device = lambda: None  # a CPU tensor's device index
    hits = []

    def listen(*, cache_hit, **rest):
        hits.append(cache_hit)

    triton.knobs.compilation.listener = listen
    return hits


def launches():
    """Every config's launches of three passes, as plans by name, on CPU tensors of their real sizes."""
    p, dtype = PROBLEM, torch.bfloat16

    def tensor(shape):
        return torch.empty(shape, dtype=dtype).to(memory_format=torch.channels_last)

    x, w, dy, alpha = tensor(p.input_shape), tensor(p.weight_shape), tensor(p.output_shape), torch.empty(p.K)
    shifted = torch.empty(p.K + 1)[1:]  # 4 bytes past a multiple of 16
    passes = {
        "fprop": (fprop_configs, lambda c: prepare_fprop(x, w, p, Epilogue(alpha=alpha), config=c)),
        "fprop shifted": (fprop_configs, lambda c: prepare_fprop(x, w, p, Epilogue(shifted, alpha, "relu"), config=c)),
        "dgrad": (dgrad_configs, lambda c: prepare_dgrad(dy, w, alpha, p, config=c, target=H100)),
        "wgrad": (wgrad_configs, lambda c: prepare_wgrad(dy, x, p, dtype=dtype, config=c, target=H100)),
    }
    return {
        f"{name} {config.label}": lambda prepare=prepare, config=config: prepare(config)[1]
        for name, (table, prepare) in passes.items()
        for config in (table.offered(p, dtype, H100)[0], table.offered(p, dtype, H100)[-1])
    }


def launched(ahead_of_time, most="100"):
    """How many kernels are launched through Triton's JIT, and how many of them it compiles."""
    plans = dict(list(launches().items())[: int(most)])
    before = ahead.compile_ahead(plans, H100).compiled if ahead_of_time == "ahead" else 0
    hits = on_a_driver_that_does_nothing()
    for plan in plans.values():
        for launch in plan():
            launch.run()
    return {"ahead": before, "launched": len(hits), "compiled": hits.count(False)}


def tuned():
    """A layer's first call on a scripted GPU: which configs are timed, and how many kernels this process compiles."""
    problem = replace(PROBLEM, N=5)
    default = fprop_configs.default(problem, torch.bfloat16, H100)
    others = [config for config in fprop_configs.offered(problem, torch.bfloat16, H100) if config != default]
    fprop_configs.promising = lambda *_, **__: [default, *others[:3]]  # a kernel takes a second or two
    hits, timed = on_a_driver_that_does_nothing(), []
    clock = Clock()

    def measured(runs, entry):
        timed.extend(runs)
        return measure.measure(runs, entry, gpu=lambda: FakeGpu(clock), clock=clock)

    autotune.target_of = lambda device: H100
    autotune._can_measure = lambda device: True
    autotune.measure = measured
    x, w = (
        torch.randn(s).bfloat16().to(memory_format=torch.channels_last)
        for s in (problem.input_shape, problem.weight_shape)
    )
    fprop(x, w, problem)
    offered = [config.label for config in fprop_configs.promising()]
    return {"timed": timed, "offered": offered, "launched": len(hits), "compiled": hits.count(False)}


def model(layout=torch.contiguous_format, backend="auto"):
    """Two layers for images of 8 x 8."""
    layers = [DiracConv2d(64, 64, 3, padding=1, bias=False, backend=backend) for _ in range(2)]
    return torch.nn.Sequential(torch.nn.Conv2d(3, 64, 1), *layers).to(memory_format=layout)


def fill():
    """Compile ahead what the model launches where nothing is measured: each kernel with its default config."""
    for direction, table in work.TABLES.items():
        work.TABLES[direction] = SimpleNamespace(promising=lambda *_: [], default=table.default)
    preparations = preparation_planners(model().to("meta"), torch.bfloat16, "split")
    outcome = tuning.compile_works(tuning.works_of(model(), 8, 5), H100, preparations)
    return {"compiled": outcome.compiled, "failures": outcome.refused | outcome.lost}


def layers():
    """How many kernels a training step of the model launches, and how many Triton compiles, after the cache's paths
    were put right. bfloat16 by autocast, forward and backward, layer by layer and prepared in one launch."""
    groups = compiled_cache.relocate_if_moved()
    hits = on_a_driver_that_does_nothing()
    for module in (autotune, *(importlib.import_module(f"triton_dirac.conv.{name}") for name in ("dgrad", "wgrad"))):
        module.target_of = lambda device: H100
    functional.INTERPRETED = True  # lets CPU tensors through; nothing is interpreted
    for layout in (torch.contiguous_format, torch.channels_last):
        net = model(layout, "triton")
        images = torch.randn(5, 3, 8, 8).to(memory_format=torch.channels_last)
        for block in (nullcontext(), prepared(net)):
            with block, torch.autocast("cpu", dtype=torch.bfloat16):
                output = net(images)
            output.backward(torch.randn_like(output))
    return {"groups": groups, "launched": len(hits), "compiled": hits.count(False)}


if __name__ == "__main__":
    case, *arguments = sys.argv[1:]
    # Not this module, __main__: the compiling processes look its kernels up by name.
    print(json.dumps(getattr(importlib.import_module("tests.runtime.compiling"), case)(*arguments)))
