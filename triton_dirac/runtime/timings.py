"""Timings kept across processes: one JSON file per GPU and Triton version.

    {"format": 1, "gpu": "NVIDIA H100", "triton": "3.7.1", "timings": {entry: {config: milliseconds or null}}}

null is a config that failed. The file is read anew for each unknown problem, replaced in one step, and merged under
a lock, so that processes that tune at once lose nothing of each other's. A file that cannot be read or is not of this
format, GPU and Triton is left out of account with a warning, and replaced by the next write. Where nothing can be
kept (no home directory, a full disk, a directory that cannot be written) that is warned of, and each process
measures for itself.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from triton_dirac.runtime import files

FORMAT = 1  # raised when kernels change so much that their old timings mislead
CACHE_DIR = "TRITON_DIRAC_CACHE_DIR"


def cache_dir() -> Path:
    """TRITON_DIRAC_CACHE_DIR, else ~/.cache/triton_dirac. Raises OSError where home or a variable in it is unknown.

    ``~`` and variables are expanded: no shell does it for a Dockerfile, a service or an IDE.
    """
    named = os.environ.get(CACHE_DIR)
    expanded = os.path.expandvars(named) if named else "~/.cache/triton_dirac"
    if unset := re.search(r"\$(\w+|\{[^}]*\})", expanded):
        raise FileNotFoundError(f"{CACHE_DIR} is {named!r}, and {unset[0]} is not set; accepted is a directory")
    try:
        return Path(expanded).expanduser()
    except RuntimeError:
        where = f"{CACHE_DIR} is {named!r}" if named else f"{CACHE_DIR} is not set"
        raise FileNotFoundError(f"no home directory is known, and {where}; accepted is a directory") from None


def open_store(device: torch.device) -> Store:
    """The store of the device's model; devices of one model share it."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{gpu}-triton-{triton.__version__}")
    try:
        return Store(cache_dir() / f"{name}.json", gpu, triton.__version__)
    except OSError as error:
        return Store(None, gpu, triton.__version__, str(error))


@dataclass(frozen=True)
class Store:
    """The timings of one GPU model under one Triton version; without a path none are kept, for a reason."""

    path: Path | None
    gpu: str
    triton: str
    reason: str = ""

    def read(self, entry: str) -> dict[str, float]:
        """Milliseconds by config name; infinity for one that failed."""
        times = self._load().get(entry, {})
        return {name: math.inf if time is None else time for name, time in times.items()}

    def write(self, entry: str, times: Mapping[str, float]) -> None:
        """Add the times to the file; what stands in the way is warned of."""
        try:
            if self.path is None:
                raise FileNotFoundError(self.reason)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with files.locked(self.path.with_suffix(".lock")) as alone:
                timings = self._load(warn=False)
                kept = {name: time if math.isfinite(time) else None for name, time in times.items()}
                timings[entry] = {**timings.get(entry, {}), **kept}
                document = {"format": FORMAT, "gpu": self.gpu, "triton": self.triton, "timings": timings}
                files.replace(self.path, json.dumps(document, indent=1), alone=alone)
        except OSError as error:
            warnings.warn(f"timings are not kept: {error}", stacklevel=2)

    def _load(self, warn: bool = True) -> dict[str, dict[str, float | None]]:
        if self.path is None:
            return {}
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            header = {"format": FORMAT, "gpu": self.gpu, "triton": self.triton}
            if any(document[name] != value for name, value in header.items()):
                raise ValueError(f"not timings of {header}")
            timings = document["timings"]
            if not all(_is_time(time) for times in timings.values() for time in times.values()):
                raise ValueError("times that are not milliseconds or null")
            return timings
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if warn:
                warnings.warn(f"{self.path} is ignored: {error!r}", stacklevel=3)
            return {}


def _is_time(value: Any) -> bool:
    """A truth value, a NaN or a number below zero would be the fastest, or break the comparison, in every process."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0 <= value <= sys.float_info.max
    return value is None
