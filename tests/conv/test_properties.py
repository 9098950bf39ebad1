"""Any convolution that torch accepts: a property-based sample of problems, all three passes against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import triton_dirac as td
from tests.tolerance import ABSOLUTE, assert_as_good_as_torch
from triton_dirac import reference
from triton_dirac.conv.epilogue import ACTIVATIONS

EXAMPLES, DISTINCT = 16, 12  # of each of the twelve kinds below, which have no problem in common
DTYPES = [torch.float32, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@st.composite
def problems(draw, groups: int) -> dict:
    """Arguments of ``conv2d`` whose output is not empty: small, odd, lopsided."""
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    window, dilation, stride = draw(pair(1, 4)), draw(pair(1, 2)), draw(pair(1, 3))
    padding = draw(st.one_of(pair(0, 3), st.just("same"), st.just("valid")))
    if padding == "same":
        stride = (1, 1)
    reach = [d * (w - 1) + 1 for d, w in zip(dilation, window, strict=True)]
    least = [
        max(1, r - (2 * p if isinstance(p, int) else r - 1 if padding == "same" else 0))
        for r, p in zip(reach, padding if isinstance(padding, tuple) else (None, None), strict=True)
    ]
    image = [draw(st.integers(size, size + 4)) for size in least]
    channels = groups * draw(st.integers(1, 5))
    return {
        "image": (draw(st.integers(0, 2)), channels, *image),
        "weight": (groups * draw(st.integers(1, 5)), channels // groups, *window),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
        "alpha": draw(st.sampled_from([None, "each", "one"])),
        "activation": draw(st.sampled_from([None, *ACTIVATIONS])),
    }


def check(problem: dict, dtype: torch.dtype, layout: torch.memory_format) -> None:
    filters = problem["weight"][0]
    leaves = {
        "input": torch.randn(problem["image"]).to(dtype, memory_format=layout),
        "weight": torch.randn(problem["weight"]).to(dtype, memory_format=layout),
        "bias": torch.randn(filters).to(dtype) if problem["bias"] else None,
        "alpha": torch.randn(1 if problem["alpha"] == "one" else filters) if problem["alpha"] else None,
    }
    rest = {name: problem[name] for name in ("stride", "padding", "dilation", "groups", "activation")}
    narrow, grad = dtype, []

    def run(function, dtype, **options):
        tensors = {
            name: None if t is None else t.detach().to(t.dtype if dtype is None else dtype).requires_grad_()
            for name, t in leaves.items()
        }
        output = function(**tensors, **rest, **options)
        if not grad:
            grad.append(torch.randn(output.shape).to(narrow))  # exact in every run's dtype
        output.backward(grad[0].to(output.dtype))
        return {"output": output.detach()} | {k: t.grad for k, t in tensors.items() if t is not None}

    expected = run(reference.conv2d, torch.float64)
    in_dtype = run(reference.conv2d, dtype)
    actual = run(td.conv2d, None, backend="triton", precision="ieee")
    for name, theirs in expected.items():
        atol = None
        if name == "alpha":  # its terms are entries of the weight's gradient, each rounded to the weight's dtype
            terms = filters if problem["alpha"] == "one" else 1
            entries = expected["weight"].abs().max().item() if expected["weight"].numel() else 0.0
            atol = ABSOLUTE[dtype] * terms * entries
        assert_as_good_as_torch(f"{name} of {problem}", actual[name], theirs, in_dtype[name], atol)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_any_problem(groups, dtype, layout):
    seen: set[str] = set()

    @seed(groups * 4 + DTYPES.index(dtype) * 2 + LAYOUTS.index(layout))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(problems(groups))
    def sample(problem: dict) -> None:
        seen.add(repr(problem))
        torch.manual_seed(len(seen))
        check(problem, dtype, layout)

    sample()
    assert len(seen) >= DISTINCT
