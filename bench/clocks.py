"""The GPU's clocks, temperature and power while rows are measured, and a warning where a clock fell.

By NVML (nvidia-ml-py) through torch, in about a millisecond; without it by nvidia-smi, in some thirty.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench import environment

State = dict[str, float | None]  # sm_mhz, temperature_c, power_w

FALL = 0.03  # of the SM clock, below the highest seen


def by_nvml() -> State | None:
    try:
        return {
            "sm_mhz": float(torch.cuda.clock_rate()),
            "temperature_c": float(torch.cuda.temperature()),
            "power_w": torch.cuda.power_draw() / 1000,
        }
    except Exception:  # not installed, or a GPU or driver that does not tell: nothing depends on it
        return None


class ClockWatch:
    """Reads the GPU's state; remembers the highest SM clock and says where a later one is lower."""

    def __init__(self, read: Callable[[], State | None] = by_nvml) -> None:
        self._read = read
        self._highest = 0.0

    def state(self) -> State | None:
        found = self._read()
        if found is None:
            self._read = environment.clocks
            found = self._read()
        return found

    def fall(self, state: State | None) -> str | None:
        """How far the SM clock has fallen; None where it has not, or is not known."""
        clock = (state or {}).get("sm_mhz")
        if not clock or state is None:
            return None
        self._highest = max(self._highest, clock)
        if clock >= (1 - FALL) * self._highest:
            return None
        power, heat = (state.get(name) for name in ("power_w", "temperature_c"))
        beside = [f"{value:.0f} {unit}" for value, unit in ((power, "W"), (heat, "°C")) if value is not None]
        fall = f"the SM clock fell from {self._highest:.0f} to {clock:.0f} MHz"
        return f"{fall}, at {' and '.join(beside)}" if beside else fall
