"""What rows are measured on and by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from bench.clocks import ClockWatch
from bench.timing import Call, Outcomes

Sampler = Callable[[Mapping[str, Call]], Outcomes]


class DeviceLostError(Exception):
    """A contender, or "" the definition, has left the GPU in a state that only another process gets out of."""

    def __init__(self, contender: str, error: Exception) -> None:
        self.contender, self.reason = contender, f"{type(error).__name__}: {first_line(error)}"
        super().__init__(f"{contender or 'the definition'} lost the GPU: {self.reason}")


@dataclass
class Machine:
    """A device and how its time is told; without a ``sampler`` nothing is timed."""

    device: torch.device
    sampler: Sampler | None = None
    watch: ClockWatch | None = None
    compile_all: bool = False  # also on a CPU, where a graph takes 10 s and more
    only_times: bool = False  # what cannot be timed here is not checked either
    miniatures: dict[tuple, str | None] = field(default_factory=dict)  # what failed of each miniature that was checked

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def sample(self, calls: Mapping[str, Call], sampler: Sampler | None = None) -> Outcomes:
        """All calls' samples, by ``sampler`` where a suite has one of its own.

        Raises:
            DeviceLostError: one of them was the GPU's last; it is named.
        """
        assert self.sampler is not None
        try:
            outcomes = (sampler or self.sampler)(calls)
        except Exception as error:  # not a call's: the sampler's own
            return dict.fromkeys(calls, error)
        for contender, found in outcomes.items():
            if isinstance(found, Exception):  # of several, the first to raise stands first
                self.require_device(contender, found)
        return outcomes

    def require_device(self, contender: str, error: Exception) -> None:
        """Raise DeviceLostError if every call of the GPU fails now, as after an access outside its memory."""
        if not self.on_gpu:
            return
        try:
            torch.cuda.synchronize()
        except Exception:
            raise DeviceLostError(contender, error) from error


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
