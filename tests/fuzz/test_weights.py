"""dirac_weight and dirac_weights on any layers: right against float64, forward and backward, alone or in one launch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import triton_dirac as td
from tests.fuzz.calls import EPS, backwards, make_leaves, per_filter, take_gradients
from tests.fuzz.expected import compare, of_filters
from tests.fuzz.tensors import specs

DTYPES = [torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64]
CONTENTS = ("normal", "normal", "zeros", "negative zeros", "a zero row", "subnormal", "huge", "infinite", "nan")


@st.composite
def layers(draw, ranks: tuple[int, ...] = (3, 4, 5)):
    """({name: spec}, groups) of one layer."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    filters, channels = groups * draw(st.integers(0, 5)), draw(st.integers(0, 6))
    window = draw(st.tuples(*[st.integers(1, 4)] * (draw(st.sampled_from(ranks)) - 2)))
    dtype = draw(st.sampled_from(DTYPES))
    tensors = {
        "weight": draw(specs((filters, channels, *window), dtype, CONTENTS)),
        "alpha": draw(per_filter(filters, dtype)),
        "beta": draw(per_filter(filters, dtype)),
    }
    if draw(st.sampled_from([False, False, True])):
        tensors["beta"] = "alpha"
    return tensors, groups


def results(outputs, leaves, before, backward, options, groups) -> None:
    """Each output against the definition; then the gradients of all, which share layers' tensors or not."""
    grads = [backward.grad(output) for output in outputs]
    expected = [
        of_filters(tensors, grad, output.dtype, groups=group, **options)
        for tensors, grad, output, group in zip(before, grads, outputs, groups, strict=True)
    ]
    for index, (output, layer) in enumerate(zip(outputs, leaves, strict=True)):
        trained = any(leaf.requires_grad for leaf in layer.values())
        assert output.requires_grad == trained, f"layers[{index}] requires_grad is {output.requires_grad}"
        compare(f"layers[{index}]", output.detach(), expected[index]["output"], layer["weight"].dtype)
    for index, (output, layer) in enumerate(zip(outputs, leaves, strict=True)):
        wanted = {id(leaf): leaf for leaf in layer.values() if leaf.requires_grad}
        if not wanted:
            continue
        got = take_gradients(output, list(wanted.values()), grads[index], backward, layer)
        if got is None:
            return
        for leaf, gradient in zip(wanted.values(), got, strict=True):
            names = [name for name, other in layer.items() if other is leaf]
            parts = [expected[index][name] for name in names]
            both = type(parts[0])(*(sum(of[1:], of[0]) for of in zip(*parts, strict=True)))
            # What is rounded on the way: the upstream gradient's own dtype is exact, sums are float32 at least.
            compare(f"layers[{index}] gradient of {' = '.join(names)}", gradient, both, leaf.dtype)


@pytest.mark.parametrize("backend", ["triton", "torch", "auto"])
@given(data=st.data())
def test_dirac_weight(data, backend, device):
    tensors, groups = data.draw(layers(), label="layer")
    own = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(tensors["weight"].shape))
    formats = [None, torch.contiguous_format, *([own] if own else [])]
    options = data.draw(st.fixed_dictionaries({"eps": EPS, "identity": st.booleans()}), label="options")
    dtype = data.draw(st.sampled_from([None, None, *DTYPES]), label="dtype")
    memory_format = data.draw(st.sampled_from(formats), label="memory_format")
    backward = data.draw(backwards(*tensors), label="backward")
    for round in range(data.draw(st.sampled_from([1, 2]), label="rounds")):
        leaves = make_leaves(tensors, device, round)
        before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        output = td.dirac_weight(**leaves, dtype=dtype, memory_format=memory_format, groups=groups, backend=backend,
                                 **options)  # fmt: skip
        assert output.dtype == (dtype or leaves["weight"].dtype)
        if memory_format is not None:
            assert output.is_contiguous(memory_format=memory_format)
        results([output], [leaves], [before], backward, options, [groups])


@pytest.mark.parametrize("backend", ["triton", "torch", "auto"])
@given(data=st.data())
def test_dirac_weights(data, backend, device):
    drawn = data.draw(st.lists(layers(), min_size=0, max_size=3), label="layers")
    shared = data.draw(st.booleans(), label="the last layer is the first again")
    options = data.draw(st.fixed_dictionaries({"eps": EPS, "identity": st.booleans()}), label="options")
    dtype = data.draw(st.sampled_from([None, None, *DTYPES]), label="dtype")
    memory_format = data.draw(st.sampled_from([None, torch.contiguous_format, torch.channels_last]), label="format")
    backward = data.draw(backwards("weight", "alpha", "beta"), label="backward")
    groups = [group for _, group in drawn]
    for round in range(data.draw(st.sampled_from([1, 2]), label="rounds")):
        leaves = [make_leaves(tensors, device, round) for tensors, _ in drawn]
        if shared and leaves:
            leaves, groups = [*leaves, leaves[0]], [*groups[: len(drawn)], groups[0]]
        before = [{name: leaf.detach().clone() for name, leaf in layer.items()} for layer in leaves]
        given_layers = [tuple(layer[name] for name in ("weight", "alpha", "beta")) for layer in leaves]
        outputs = td.dirac_weights(given_layers, dtype=dtype, memory_format=memory_format, groups=groups,
                                   backend=backend, **options)  # fmt: skip
        assert len(outputs) == len(leaves)
        results(outputs, leaves, before, backward, options, groups)
