"""A convolution problem: the sizes that every kernel, tuner and bench agrees on, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConvProblem:
    """Sizes of one 2-D convolution, named as in cuDNN's papers and CUTLASS.

    ======= ==========================================================
    N, C    batch, input channels
    H, W    input height and width
    K       output channels
    R, S    filter height and width
    P, Q    output height and width
    ======= ==========================================================

    ``padding`` is ``(top, bottom, left, right)``: "same" padding of an even window is uneven.
    The input has shape (N, C, H, W), the weight (K, C / groups, R, S), the output (N, K, P, Q).
    """

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def P(self) -> int:
        top, bottom, _, _ = self.padding
        return (self.H + top + bottom - self.dilation[0] * (self.R - 1) - 1) // self.stride[0] + 1

    @property
    def Q(self) -> int:
        _, _, left, right = self.padding
        return (self.W + left + right - self.dilation[1] * (self.S - 1) - 1) // self.stride[1] + 1

    @property
    def label(self) -> str:
        """e.g. ``128x160x32x32-160x3x3 s1,1 p1,1,1,1 d1,1 g1``: what it is called in files and messages."""
        sizes = f"{self.N}x{self.C}x{self.H}x{self.W}-{self.K}x{self.R}x{self.S}"
        parts = zip("spd", (self.stride, self.padding, self.dilation), strict=True)
        return " ".join((sizes, *(f"{n}{','.join(map(str, v))}" for n, v in parts), f"g{self.groups}"))

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return (self.N, self.C, self.H, self.W)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.K, self.C // self.groups, self.R, self.S)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return (self.N, self.K, self.P, self.Q)

    @property
    def identity_per_group(self) -> int:
        """Filters of each group that have an identity term: min(K, C) / groups (``torch.nn.init.dirac_``)."""
        return min(self.K, self.C) // self.groups

    @property
    def inside(self) -> tuple[float, float]:
        """Share of (output pixel, tap) pairs that read inside the image, along its height and along its width."""
        top, _, left, _ = self.padding
        height = _inside(self.P, self.R, self.H, self.stride[0], top, self.dilation[0])
        return height, _inside(self.Q, self.S, self.W, self.stride[1], left, self.dilation[1])

    @property
    def elements(self) -> int:
        """Of both images and the weight: what each of the three passes reads or writes, once at least."""
        images = self.N * (self.C * self.H * self.W + self.K * self.P * self.Q)
        return images + self.K * (self.C // self.groups) * self.R * self.S

    @property
    def flops(self) -> int:
        """2 x multiply-adds of fprop; dgrad and wgrad do the same number."""
        return 2 * self.N * self.P * self.Q * self.K * (self.C // self.groups) * self.R * self.S


def _inside(outputs: int, window: int, size: int, stride: int, pad: int, dilation: int) -> float:
    reads = (o * stride - pad + tap * dilation for o in range(outputs) for tap in range(window))
    return sum(0 <= at < size for at in reads) / max(1, outputs * window)
