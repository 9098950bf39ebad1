"""Time one layer by yourself, with the clock and the checks that the suites use.

    python tests/examples/bench_layer.py

The same layer with all contenders, confidence intervals and a report:

    nox -s bench -- --nets DiracNet-28-10 --layers '160x32x32-160 3x3'
"""

import torch

from bench.accuracy import failures
from bench.checker import Checker
from bench.layers import layers
from bench.test_conv import SUITE
from bench.timing import Gpu, device_samples, wall_samples

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ENGINES = ("cudnn", "eager", "triton") if DEVICE.type == "cuda" else ("cpu", "eager")


def main() -> None:
    layer = next(known for known in layers("DiracNet-28-10", batch=2) if known.name == "160x32x32-160 3x3")
    work = SUITE.work(layer.problem, "float32", "fprop", DEVICE)
    check, calls = Checker(SUITE, work), {}
    for contender in SUITE.contenders:
        if contender.engine in ENGINES and not contender.lacks(layer.problem, "float32", "fprop", DEVICE):
            call = contender.build(work)
            if wrong := failures(check.errors(call())):  # who errs is given no time
                print(f"{contender.name}: {wrong}")
            else:
                calls[contender.name] = call
    times = device_samples(calls, Gpu(DEVICE)) if DEVICE.type == "cuda" else wall_samples(calls)
    flops, _ = SUITE.cost(layer.problem, work.storage, "fprop")
    print(f"{layer.name}, batch {layer.problem.N}, float32, forward, on {DEVICE.type}")
    for name, samples in times.items():
        if isinstance(samples, Exception):
            raise samples
        print(f"{name:16}{1e3 * samples.median:8.3f} ms {flops / samples.median / 1e9:10.0f} GFLOP/s")


if __name__ == "__main__":
    main()
