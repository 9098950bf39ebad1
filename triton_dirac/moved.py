"""Modules under the names that they had up to 0.1.0: an import of one gives the module of today, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

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


class _Today(Loader):
    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.name)
        self.own = module.__spec__
        return module

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
