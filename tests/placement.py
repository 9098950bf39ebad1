"""Where tests' tensors lie: where kernels run, on a GPU machine the GPU, so that one test serves both kinds of machine.

A default device (``torch.set_default_device``) would do it too, but it is a mode of torch, under which calls are not
remembered: what most needs testing on a GPU would not run there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _device

from triton_dirac.runtime.launch import Launch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")  # for numbers that are the same on all machines, and are moved to DEVICE then
FACTORIES = (
    *("arange", "empty", "empty_strided", "eye", "full", "linspace", "ones"),
    *("rand", "randint", "randn", "randperm", "tensor", "zeros"),
)
MACHINERY = (__name__, "tests.memory")  # whose functions stand between a factory and its caller

_is_on = True


def place(device: torch.device = DEVICE) -> None:
    """From now on what tests make without naming a device lies on ``device``, also when they are imported, and all
    modules' parameters do; what else the package makes is its own."""
    _device._device_constructors()  # what ``with torch.device(...)`` concerns: noted once, and as torch's own functions
    for name in FACTORIES:
        _replace(name, _placed(getattr(torch, name), device))


@contextmanager
def as_it_is() -> Iterator[None]:
    """Within it the machine is as torch has it."""
    global _is_on
    _is_on = False
    try:
        yield
    finally:
        _is_on = True


def _replace(name: str, factory: Callable[..., Tensor]) -> None:
    torch.jit._builtins._register_builtin(factory, f"aten::{name}")  # torch scripts some of its own functions
    setattr(torch, name, factory)


def _placed(make: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    def placed(*args: Any, **kwargs: Any) -> Tensor:
        is_unsaid = _is_on and kwargs.get("device") is None and not _in_a_device_context()
        if is_unsaid and (_in_a_module_s_init() or not _called_by("triton_dirac")):
            generator = kwargs.get("generator")
            kwargs["device"] = device if generator is None else generator.device
        return make(*args, **kwargs)

    return placed


_by_name: list[Tensor] = []  # held, so that their memory is nobody else's


def _kept(make: Callable[..., Tensor], is_by_name: Callable[..., bool]) -> Callable[..., Tensor]:
    def making(*args: Any, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        if is_by_name(*args, **kwargs) and _called_by("tests"):
            _by_name.append(tensor)
        return tensor

    return making


def _on_the_cpu(*_: Any, device: Any = None, **__: Any) -> bool:
    return isinstance(device, str) and device == "cpu"


_KEPT = {name: _kept(getattr(torch, name), _on_the_cpu) for name in FACTORIES}


def watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU: a launch fails if a test put one of its tensors on the CPU by name, which no GPU could read.

    It is what a machine with a GPU would say, as far as one without can tell.
    """
    _device._device_constructors()
    _by_name.clear()
    for name, factory in _KEPT.items():
        monkeypatch.setattr(torch, name, factory)
        torch.jit._builtins._register_builtin(factory, f"aten::{name}")
    monkeypatch.setattr(Tensor, "cpu", _kept(Tensor.cpu, lambda *_: True))
    run = Launch.run

    def watched(launch: Launch) -> Any:
        named = {tensor.untyped_storage().data_ptr() for tensor in _by_name}
        for argument, value in launch.args.items():
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in named and value.numel():
                raise AssertionError(f"a kernel gets {argument}, which the test put on the CPU by name")
        return run(launch)

    monkeypatch.setattr(Launch, "run", watched)


def _in_a_device_context() -> bool:
    """Whether a ``with torch.device(...)`` says where things lie."""
    return any(isinstance(mode, _device.DeviceContext) for mode in _get_current_function_mode_stack())


def _called_by(package: str) -> bool:
    """Whether the nearest caller that is neither the tests' machinery nor torch is a module of ``package``."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name not in MACHINERY and name.partition(".")[0] != "torch":
            return name.partition(".")[0] == package
        frame = frame.f_back
    return False


def _in_a_module_s_init() -> bool:
    """Whether a module is being made, whoever makes it: its parameters lie where it is told, or where all lies."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "__init__" and isinstance(frame.f_locals.get("self"), torch.nn.Module):
            return True
        frame = frame.f_back
    return False
