"""Modules under the names that they had up to 0.1.0: an import of one gives the module of today, with a warning.

Functions that took bias, alpha and relu where they take an ``Epilogue`` today still do under the module's former name.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "triton_dirac"
FORMER_ROOM = "kernels"  # an empty package, whose modules are all among these
MOVED = {
    "problem": "conv.problem",
    "tracing": "runtime.tracing",
    "kernels.conv_direct": "conv.direct",
    "kernels.conv_dgrad": "conv.dgrad",
    "kernels.conv_fprop": "conv.fprop",
    "kernels.conv_wgrad": "conv.wgrad",
    "kernels.descriptors": "weight_prep.address_tables",
    "kernels.launch": "runtime.launch",
    "kernels.weight_prep": "weight_prep.single",
    "kernels.weight_prep_multi": "weight_prep.multi",
    "tuning.config": "conv.config",
    "tuning.picks": "runtime.autotune",
    "tuning.targets": "runtime.targets",
    "tuning.timings": "runtime.timings",
}
# By today's module: functions that took (so many tensors, bias, alpha, problem, relu=False).
FORMER_CALLS = {
    "conv.direct": {"direct_fprop": 2, "plan_direct_fprop": 3},
    "conv.fprop": {"fprop": 2, "prepare_fprop": 2, "plan_fprop": 3},
}


def _former_call(function: Callable[..., Any], tensors: int) -> Callable[..., Any]:
    from triton_dirac.conv.epilogue import Epilogue

    def call(*arguments: Any, relu: bool = False, **options: Any) -> Any:
        bias, alpha, problem = arguments[tensors:]
        epilogue = Epilogue(bias, alpha, "relu" if relu else None)
        return function(*arguments[:tensors], problem, epilogue, **options)

    return call


class _Today(Loader):
    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.name)
        self.own = module.__spec__
        calls = FORMER_CALLS.get(self.name.removeprefix(f"{PACKAGE}."))
        if calls is None:
            return module
        former = ModuleType(self.name)
        vars(former).update(vars(module))
        vars(former).update({name: _former_call(getattr(module, name), tensors) for name, tensors in calls.items()})
        return former

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed under its own name, and keeps it."""
        module.__spec__ = self.own


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package == PACKAGE and name == FORMER_ROOM:
            return ModuleSpec(fullname, None, is_package=True)
        if package != PACKAGE or name not in MOVED:
            return None
        today = f"{PACKAGE}.{MOVED[name]}"
        warnings.warn(f"{fullname} is {today} now", DeprecationWarning, stacklevel=2)
        return ModuleSpec(fullname, _Today(today))


def install() -> None:
    """Behind all other finders: nothing that exists is shadowed."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
