"""Run by ``test_direct`` in a process of its own: kernels compiled for a GPU that a stub stands for.

Each check prints a line; what C is given by a direct launch is compared with what Triton's JIT gives it, byte by byte.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial

import torch
import triton

from bench import stub_driver

stub = stub_driver.install()

from triton_dirac import conv2d, dirac_conv2d, dirac_weight  # noqa: E402
from triton_dirac.runtime import autotune, direct  # noqa: E402
from triton_dirac.runtime.launch import Launch  # noqa: E402
from triton_dirac.runtime.plan import Plan  # noqa: E402

stream = 0
triton.runtime.driver.active.get_current_stream = lambda device: stream
compiled: dict[int, object] = {}


def sizes(signature) -> list[int]:
    """Bytes of a compiled kernel's parameters; of a descriptor the map, sizes and strides; two for scratch memory."""
    found = []
    for kind in signature.values():
        if kind.startswith("tensordesc"):
            rank = kind.split("[")[1].split("]")[0].count(",") + 1
            found += [128, *[4] * rank, *[8] * rank]
        elif kind != "constexpr":
            found.append({"*": 8, "i64": 8, "i32": 4, "fp32": 4}[kind[0] if kind[0] == "*" else kind])
    return [*found, 8, 8]


def compare(step, tensors, addresses, stream) -> None:
    """Direct and by the JIT, in place of the one launch."""
    name, launch = step.kernel.__name__, Launch.run
    assert step.direct is not None, f"{name} is not launched directly"
    Launch.run = lambda self: compiled.setdefault(id(step), launch(self))
    step.by_jit(tensors)
    Launch.run = launch
    stub.note(sizes(compiled[id(step)].src.signature))
    step.by_jit(tensors)
    expected, before = stub.noted(), stub.launches
    assert step.direct(addresses, stream)
    assert stub.launches == before + 1
    assert stub.noted() == expected, name
    stub.note([])
    kernels.append(name)


def half(*shape):
    return torch.randn(shape).half().to(memory_format=torch.channels_last).requires_grad_()


def step_of_training(channels=64, dtype=torch.float16, images=128, size=8):
    x = torch.randn(images, channels, size, size, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    w, a, b = (torch.randn(s).requires_grad_() for s in ((channels, channels, 3, 3), (channels,), (channels,)))
    y = dirac_conv2d(x, w, a, b, None, 1, 1, backend="triton")
    torch.autograd.grad(y, (x, w, a, b), torch.randn_like(y))
    y = conv2d(x, w.to(dtype), None, 1, 1, backend="triton")
    torch.autograd.grad(y, x, torch.randn_like(y))
    dirac_weight(w, a, b, backend="triton")


kernels: list[str] = []
kinds = [
    (64, torch.float16, 128),
    (64, torch.float16, 128, 28),
    (40, torch.bfloat16, 3, 4),
    (32, torch.float32, 2, 4),
    (6, torch.float16, 2, 4),
]
for kind in kinds:
    step_of_training(*kind)
stream = 77
run = Plan.run


def compared(self, tensors, addresses):
    """Acts are bound when a plan is finished."""
    plans.append(self)
    acts = self._acts
    own = {launched.act: partial(compare, launched) for launched in self.launches}
    self._acts = [own.get(act, act) for act in acts]
    try:
        return run(self, tensors, addresses)
    finally:
        self._acts = acts


plans: list[Plan] = []
Plan.run = compared
for kind in kinds * 2:
    step_of_training(*kind)
Plan.run = run
expected = {"weight_prep_kernel", "weight_prep_backward_kernel", "tile_gemm", "persistent_gemm", "gather_gemm"}
expected |= {"wgrad_tile_kernel", "wgrad_pixel_kernel", "reduce_kernel"}
assert expected <= set(kernels), set(kernels)
print(f"{len(kernels)} launches of {len(set(kernels))} kernels are the JIT's, byte by byte, on stream {stream}")

hooked = []
knobs = triton.knobs.runtime
before = stub.launches
knobs.launch_enter_hook.add(lambda metadata: hooked.append(metadata.get()["name"]))
step_of_training()
assert len(hooked) == stub.launches - before > 0
assert {"tile_gemm", "weight_prep_kernel", "weight_prep_backward_kernel"} <= set(hooked), hooked
knobs.launch_enter_hook.calls.clear()
print(f"hooks heard of {len(hooked)} launches")

knobs.debug = True
assert not direct.undisturbed()
knobs.debug = False
assert direct.undisturbed()

# Addresses that are not aligned are launched as kernels that were compiled for them.
flat = torch.randn(64 * 64 * 9 + 1)
odd = flat[1:].view(64, 64, 3, 3)
a = torch.ones(64)
for weight in (flat[:-1].view(64, 64, 3, 3), odd, odd, flat[:-1].view(64, 64, 3, 3)):
    stub.note([8, 8, 8, 8, 8])
    dirac_weight(weight, a, a, backend="triton")
    found = stub.noted()
    assert int.from_bytes(found[5][:8], "little") == weight.data_ptr()
    assert found[5][8:16] == found[5][16:24] == a.data_ptr().to_bytes(8, "little")
stub.note([])
print("odd addresses arrive")

# A Triton that is not as known: launched by the JIT, and said once.
autotune.forget()
direct._c_function = lambda launch: (_ for _ in ()).throw(direct.NotAsKnown("another launcher"))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    plans.clear()
    Plan.run = lambda self, *arguments: plans.append(self) or run(self, *arguments)
    for _ in range(3):
        step_of_training()
ways = [launched.direct for plan in plans for launched in plan.launches]
assert ways
assert not any(ways)
assert [str(w.message) for w in said if "JIT" in str(w.message)] == [
    f"Triton {triton.__version__}'s JIT launches all kernels, at several times the host time: another launcher"
]
print("an unknown Triton is left to its JIT")
sys.exit(0)
