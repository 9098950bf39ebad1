"""Timings kept across processes: one JSON file per GPU and Triton version.

    {"format": 1, "gpu": "NVIDIA H100", "triton": "3.7.1", "timings": {entry: {config: milliseconds or null}}}

null is a config that failed. The file is read anew for each unknown problem, written by rename, and merged under a
lock, so that processes that tune at once lose nothing of each other's. A file that cannot be read or is not of this
format, GPU and Triton is left out of account with a warning, and replaced by the next write.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import triton

FORMAT = 1  # raised when kernels change so much that their old timings mislead
CACHE_DIR = "TRITON_DIRAC_CACHE_DIR"


def cache_dir() -> Path:
    """TRITON_DIRAC_CACHE_DIR, else ~/.cache/triton_dirac."""
    return Path(os.environ.get(CACHE_DIR) or Path.home() / ".cache" / "triton_dirac")


def open_store(device: torch.device) -> Store:
    """The store of the device's model; devices of one model share it."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{gpu}-triton-{triton.__version__}")
    return Store(cache_dir() / f"{name}.json", gpu, triton.__version__)


@dataclass(frozen=True)
class Store:
    """The timings of one GPU model under one Triton version."""

    path: Path
    gpu: str
    triton: str

    def read(self, entry: str) -> dict[str, float]:
        """Milliseconds by config name; infinity for one that failed."""
        times = self._load().get(entry, {})
        return {name: math.inf if time is None else time for name, time in times.items()}

    def write(self, entry: str, times: Mapping[str, float]) -> None:
        """Add the times to the file; a directory that cannot be written is warned of."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock():
                timings = self._load(warn=False)
                kept = {name: time if math.isfinite(time) else None for name, time in times.items()}
                timings[entry] = {**timings.get(entry, {}), **kept}
                document = {"format": FORMAT, "gpu": self.gpu, "triton": self.triton, "timings": timings}
                self._replace(json.dumps(document, indent=1))
        except OSError as error:
            warnings.warn(f"timings are not kept: {error}", stacklevel=2)

    def _load(self, warn: bool = True) -> dict[str, dict[str, float | None]]:
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            header = {"format": FORMAT, "gpu": self.gpu, "triton": self.triton}
            if any(document[name] != value for name, value in header.items()):
                raise ValueError(f"not timings of {header}")
            timings = document["timings"]
            for times in timings.values():
                if not all(time is None or isinstance(time, (int, float)) for time in times.values()):
                    raise ValueError("times that are not numbers")
            return timings
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if warn:
                warnings.warn(f"{self.path} is ignored: {error!r}", stacklevel=3)
            return {}

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.path.with_suffix(".lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _replace(self, text: str) -> None:
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, suffix=".tmp")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(name, self.path)
        except BaseException:
            os.unlink(name)
            raise
