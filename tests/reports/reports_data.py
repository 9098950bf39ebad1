"""Made-up results files for the report's tests. Nothing here was measured; the GPU says so in its name."""

from __future__ import annotations

import zlib

import numpy as np

SYNTHETIC_GPU = "SYNTHETIC GPU (made-up numbers, for tests)"
NETS = {
    "DiracNet-28-10": [(1, 160, 32, 160), (8, 160, 16, 320), (7, 320, 16, 320), (7, 640, 8, 640)],
    "DiracNet-34-2": [(1, 3, 32, 32), (10, 32, 32, 32), (9, 64, 16, 64), (9, 128, 8, 128)],
    "ImageNet DiracNet-18": [(1, 3, 224, 64), (4, 64, 56, 64), (3, 128, 28, 128), (3, 512, 7, 512)],
}
PASSES = {
    "weight_prep": ("forward", "forward_backward"),
    "conv": ("fprop", "dgrad", "wgrad"),
    "dirac_block": ("forward", "forward_backward"),
}
CPU_CONTENDERS = {
    "weight_prep": {"reference": 1.0, "weight_norm": 0.7, "compile": 0.6},
    "conv": {"torch": 1.0, "torch-nchw": 1.25},
    "dirac_block": {"reference": 1.0, "weight_norm": 0.97, "compile": 0.95},
}
GPU_CONTENDERS = {
    "weight_prep": {"reference": 3.0, "weight_norm": 1.6, "compile": 1.2, "triton-prep": 0.5},
    "conv": {"cudnn": 1.0, "cudnn-nchw": 1.4, "inductor": 1.3, "flag_gems": 2.1, "triton": 0.97,
             "triton-gather": 1.1, "triton-tile": 0.98},
    "dirac_block": {"reference": 1.4, "compile": 1.2, "triton-split": 0.98, "triton-materialised": 1.0,
                    "triton-prep+cudnn": 1.0},
}  # fmt: skip


def benchmark(suite, pass_, net, layer, dtype, contender, times, **extra):
    """One pytest-benchmark entry with the given samples in seconds."""
    info = {
        "suite": suite, "pass": pass_, "net": net, "layer": layer, "dtype": dtype, "contender": contender,
        "count": 1, "problem": {"N": 16, "C": 160, "H": 32, "W": 32, "K": 160, "R": 3, "S": 3},
        "published_batch": 128, "device": "cpu", "label": "measured", "clock": "wall clock",
        "flops": 10**9, "bytes": 10**7, "host_us": None,
    }  # fmt: skip
    name = f"test_{suite}[{pass_}-{net}-{layer}-{dtype}-{contender}]"
    return {"name": name, "extra_info": info | extra, "stats": {"data": list(times)}}


def check(suite, pass_, net, layer, dtype, contender, *, error=1e-6, passed=True, **extra):
    """One comparison with float64."""
    return {
        "suite": suite, "pass": pass_, "net": net, "layer": layer, "dtype": dtype, "contender": contender,
        "tensor": "output", "error": error, "scale": 4.0, "torch_error": 1e-6, "passed": passed,
        "executed_by": "cpu", "problem": {"N": 2, "C": 16, "H": 8, "W": 8, "K": 16, "R": 3, "S": 3},
    } | extra  # fmt: skip


def environment(**changes):
    return {
        "gpu": None, "driver": None, "clocks_before": None, "clocks_after": None, "torch": "2.13.0+cpu",
        "triton": "3.7.1", "cuda": None, "cpu": "Synthetic CPU @ 2.20GHz", "cores": 2, "python": "3.12.4",
        "platform": "Linux-6.1-x86_64", "commit": "6e1f659c0ffee", "dirty": False,
        "command": "pytest --benchmark-only", "date": "2026-11-24T03:04:05+00:00",
    } | changes  # fmt: skip


def _sweep(contenders, dtypes, *, device, clock, executed_by, samples):
    benchmarks, accuracy = [], []
    for suite, passes in PASSES.items():
        for pass_ in passes:
            for net, layers in NETS.items():
                for count, c, h, k in layers:
                    layer = f"{c}x{h}x{h}-{k} 3x3"
                    problem = {"N": 16, "C": c, "H": h, "W": h, "K": k, "R": 3, "S": 3, "groups": 1}
                    flops = 2 * 16 * h * h * c * k * 9
                    for dtype in dtypes:
                        for contender, factor in contenders[suite].items():
                            place = (suite, pass_, net, layer, dtype, contender)
                            rng = np.random.default_rng(zlib.crc32(repr(place).encode()))
                            true = flops / 2e11 * factor * np.exp(0.12 * rng.standard_normal())
                            times = true * np.exp(0.02 * np.abs(rng.standard_normal(samples)))
                            benchmarks.append(
                                benchmark(
                                    *place, np.round(times, 9), count=count, problem=problem, flops=flops,
                                    bytes=flops // 50, device=device, clock=clock,
                                    host_us=12.5 if device == "cuda" else None,
                                )
                            )  # fmt: skip
                            error = 1e-6 * (1 if contender in ("torch", "cudnn") else float(rng.uniform(0.3, 1.8)))
                            accuracy.append(check(*place, error=error, executed_by=executed_by))
    return benchmarks, accuracy


def cpu_results():
    """A machine without a GPU: torch timed, Triton kernels checked in the interpreter and not timed."""
    benchmarks, accuracy = _sweep(
        CPU_CONTENDERS,
        ["float32"],
        device="cpu",
        clock="wall clock",
        executed_by="cpu",
        samples=9,
    )
    accuracy += [
        check(
            suite,
            pass_,
            "DiracNet-28-10",
            "160x32x32-160 3x3",
            dtype,
            name,
            error=error,
            executed_by="interpreter",
        )
        for suite, pass_, name in [("conv", "fprop", "triton"), ("weight_prep", "forward", "triton-prep")]
        for dtype, error in [("float32", 7e-7), ("bfloat16", 9e-7)]
    ]
    not_run = [
        {"suite": suite, "pass": pass_, "net": net, "layer": f"{c}x{h}x{h}-{k} 3x3", "dtype": dtype,
         "contender": name, "reason": reason}
        for suite, pass_, name, reason in [
            ("conv", "fprop", "triton", "no GPU: the interpreter's time means nothing"),
            ("conv", "fprop", "cudnn", "no GPU: cuDNN needs one"),
            ("dirac_block", "forward", "triton-split", "no GPU: the interpreter's time means nothing"),
        ]
        for net, layers in NETS.items() for _, c, h, k in layers for dtype in ("float32", "bfloat16")
    ]  # fmt: skip
    return {"environment": environment(), "benchmarks": benchmarks, "accuracy": accuracy, "not_run": not_run}


def gpu_like_results():
    """What a GPU machine's file will look like: losses, one wrong kernel, clocks that drop. All made up."""
    benchmarks, accuracy = _sweep(
        GPU_CONTENDERS, ["float16", "bfloat16"], device="cuda", clock="device events, cold L2",
        executed_by="gpu", samples=30,
    )  # fmt: skip
    place = ("conv", "wgrad", "DiracNet-28-10", "640x8x8-640 3x3", "float16", "triton")
    keys = ("suite", "pass", "net", "layer", "dtype", "contender")
    benchmarks = [entry for entry in benchmarks if tuple(entry["extra_info"][key] for key in keys) != place]
    for row in accuracy:
        if tuple(row[key] for key in keys) == place:
            row.update(error=float("nan"), passed=False, tensor="weight")
    del benchmarks[0]["extra_info"]["host_us"], benchmarks[1]["extra_info"]["published_batch"]
    return {
        "environment": environment(
            gpu=SYNTHETIC_GPU, driver="000.00", cuda="13.0", torch="2.13.0", dirty=True,
            clocks_before={"sm_mhz": 1980, "memory_mhz": 2619, "power_w": 90.5},
            clocks_after={"sm_mhz": 1755, "memory_mhz": 2619, "power_w": 412.0},
        ),
        "benchmarks": benchmarks, "accuracy": accuracy, "not_run": [], "tuned": landscapes(),
    }  # fmt: skip


def landscapes():
    """What tuning would have measured of three passes of each layer, one config of each failing. Made up."""
    configs = [f"{m}x{n}x64 w8 s3 {loader} g8" for m in (64, 128) for n in (64, 128) for loader in ("gather", "tile")]
    found = []
    for kernel in ("conv_fprop", "conv_dgrad", "conv_wgrad"):
        for net, layers in NETS.items():
            for _, c, h, k in layers:
                rng = np.random.default_rng(zlib.crc32(repr((kernel, net, c)).encode()))
                times = dict(zip(configs, np.round(0.1 * np.exp(rng.exponential(0.4, len(configs))), 4), strict=True))
                found.append(tuned(kernel, net, f"{c}x{h}x{h}-{k} 3x3", {**times, configs[3]: None}, configs[1]))
    return found


def tuned(kernel, net, layer, milliseconds, default, **extra):
    """What tuning measured of one problem."""
    return {
        "kernel": kernel, "net": net, "layer": layer, "dtype": "bfloat16", "label": "measured", "default": default,
        "problem": {"N": 16, "C": 160, "H": 32, "W": 32, "K": 160, "R": 3, "S": 3, "padding": [1, 1, 1, 1]},
        "unmeasured": 0, "milliseconds": milliseconds,
    } | extra  # fmt: skip


def compiled(kernel, net, layer, target, gpu, **extra):
    """One compiled kernel."""
    return {
        "kernel": kernel, "net": net, "layer": layer, "dtype": "float16", "target": target, "gpu": gpu,
        "config": "128x64x32 w4 s3 gather", "ok": True, "error": None, "registers": 128, "spills": 0,
        "shared_bytes": 49152, "mma": "mma.sync", "mma_count": 32, "loop_instructions_per_mma": 3.5,
        "loops_with_mma": 1, "compile_seconds": 0.8, "label": "counted",
    } | extra  # fmt: skip


def loop_table():
    """Main loops at equal tiles beside a GEMM's, one of them with a spill."""
    rows = []
    for target, gpu, floor in (("cuda:80", "A100", 2.8), ("cuda:90", "H100 SXM", 22.0)):
        for kernel, ratio in (
            ("GEMM, no masks", 1.0),
            ("conv_fprop gather", 1.08),
            ("Inductor template", 1.4),
        ):
            for tile in ("128x128x64 w8 s3", "128x64x64 w4 s4"):
                spills = 16 if kernel == "Inductor template" and tile.startswith("128x64") else 0
                loop = compiled(
                    kernel, "DiracNet-18", "128x28x28-128 3x3", target, gpu, tile=tile, config=tile,
                    spills=spills, loop_instructions_per_mma=floor * ratio, ratio_to_floor=ratio,
                )  # fmt: skip
                rows.append(loop)
    return {
        "kind": "compile",
        "environment": environment(command="python -m bench.compile --loops"),
        "rows": rows,
    }


def compile_table():
    """Compiled kernels with a spill and a failure among them."""
    rows = []
    targets = {"cuda:80": ("A100", "mma.sync", 3.2), "cuda:90": ("H100 SXM", "wgmma", 24.0),
               "cuda:100": ("B200", "tcgen05", 40.0), "cuda:120": ("RTX 5090", "mma.sync", 3.5),
               "hip:gfx942": ("MI300X", "mfma", 5.0), "hip:gfx950": ("MI355X", "mfma", 4.6)}  # fmt: skip
    for kernel in ("weight_prep_forward", "conv_fprop", "conv_dgrad", "conv_wgrad"):
        for net, layers in NETS.items():
            for _, c, h, k in layers:
                for target, (gpu, mma, floor) in targets.items():
                    rng = np.random.default_rng(zlib.crc32(repr((kernel, net, c, target)).encode()))
                    layer = f"{c}x{h}x{h}-{k} 3x3"
                    row = compiled(kernel, net, layer, target, gpu, mma=None, loop_instructions_per_mma=None)
                    if kernel != "weight_prep_forward":
                        ratio = round(floor * float(rng.uniform(1, 1.5)), 2)
                        row.update(mma=mma, mma_count=32, loop_instructions_per_mma=ratio, loops_with_mma=1)
                    row.update(registers=int(rng.integers(60, 255)), shared_bytes=int(rng.integers(2, 98)) * 1024)
                    if kernel == "conv_dgrad" and c == 640:
                        row.update(spills=48)
                    if kernel == "conv_wgrad" and target == "cuda:120" and c == 512:
                        nothing = dict.fromkeys(("registers", "spills", "shared_bytes", "mma", "mma_count"))
                        row.update(nothing, ok=False, error="OutOfResources: shared memory, 110592 > 101376")
                        row.update(loop_instructions_per_mma=None)
                    rows.append(row)
    return {"kind": "compile", "environment": environment(command="python -m bench.compile"), "rows": rows}
