"""Convolutions of one to three dimensions that have an output: small, odd, lopsided."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st


class Geometry(NamedTuple):
    image: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int | tuple[int, ...]
    padding: int | str | tuple[int, ...]
    dilation: int | tuple[int, ...]
    groups: int

    @property
    def arguments(self) -> dict:
        return self._asdict() | {"image": None, "weight": None}

    @property
    def window(self) -> tuple[int, ...]:
        return self.weight[2:]


@st.composite
def geometries(draw, dims: int = 2, most_channels: int = 5) -> Geometry:
    def each(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * dims))

    def short(sizes: tuple[int, ...]) -> int | tuple[int, ...]:
        """Equal sizes may be given as one number."""
        return sizes[0] if len(set(sizes)) == 1 and draw(st.booleans()) else sizes

    window, dilation, stride = each(1, 4 if dims < 3 else 3), each(1, 2), each(1, 3)
    padding = draw(st.one_of(st.tuples(*[st.integers(0, 3)] * dims), st.sampled_from(["same", "valid"])))
    if padding == "same":
        stride = (1,) * dims
    image = []
    for axis in range(dims):
        reach = dilation[axis] * (window[axis] - 1) + 1
        covered = 2 * padding[axis] if isinstance(padding, tuple) else reach - 1 if padding == "same" else 0
        image.append(max(1, reach - covered) + draw(st.integers(0, 4 if dims < 3 else 2)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, filters = (groups * draw(st.integers(1, most_channels)) for _ in "cf")
    return Geometry(
        (draw(st.sampled_from([1, 1, 2, 3, 0])), channels, *image),
        (filters, channels // groups, *window),
        short(stride),
        short(padding) if isinstance(padding, tuple) else padding,
        short(dilation),
        groups,
    )
