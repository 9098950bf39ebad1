"""All layers in one launch: the numbers of the per-layer path, and tables that follow their parameters."""

import gc
import itertools
import weakref

import pytest
import torch

import triton_dirac as td
from tests.tolerance import assert_as_good_as_torch
from triton_dirac.reference import dirac_weight
from triton_dirac.runtime.launch import Launch
from triton_dirac.weight_prep import address_tables
from triton_dirac.weight_prep import multi as weight_prep_multi
from triton_dirac.weight_prep.address_tables import DescriptorTables
from triton_dirac.weight_prep.layers import LAYER_ALIGNMENT, Flat, LayerSpec, PackedLayers, packed
from triton_dirac.weight_prep.multi import plan_weight_prep_multi, plan_weight_prep_multi_backward
from triton_dirac.weight_prep.single import PROGRAM_ELEMENTS, is_channels_last, weight_prep, weight_prep_backward

FORWARD, BACKWARD = weight_prep_multi.weight_prep_multi, weight_prep_multi.weight_prep_multi_backward


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch):
    """Flat outputs start as bytes 0xFF, which are NaN in every dtype."""
    original = Flat.empty
    monkeypatch.setattr(Flat, "empty", lambda self, device: original(self, device).fill_(0xFF))


def layer(*shape, dtype=torch.float32, last=False, shared=False, narrow=False):
    """Weight, alpha and beta; ``narrow``: alpha and beta have the weight's dtype, and not that of sums."""
    count = 1 if shared else shape[0]
    scales = dtype if narrow else torch.promote_types(dtype, torch.float32)
    weight = torch.randn(shape).to(dtype)
    weight = weight.movedim(1, -1).contiguous().movedim(-1, 1) if last else weight
    return weight, torch.randn(count).to(scales), torch.randn(count).to(scales)


def mixed(device):
    layers = [
        layer(8, 5, 3, 3),
        layer(5, 8, 3, 3, dtype=torch.bfloat16, last=True),
        layer(3, 2, 5, dtype=torch.float64, shared=True),
        layer(4, 3, 2, 3, 2, dtype=torch.float16),
        layer(7, 1, 1, 1),
        layer(2, 911, 3, 3, last=True),
        layer(140, 16, 3, 3, shared=True),
        layer(6, 129, 1),
        layer(5, 4, 3, dtype=torch.bfloat16, narrow=True),
        layer(6, 4, 3, dtype=torch.bfloat16, narrow=True, shared=True),
    ]
    layers[0][0][1] = 0
    layers[6][0][2] *= 1e18
    return [tuple(t.to(device) for t in each) for each in layers]


@pytest.mark.parametrize("channels_last", [False, True], ids=["OIHW", "OHWI"])
@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["own dtype", "bfloat16"])
def test_the_same_bits_as_layer_by_layer(channels_last, identity, dtype, device):
    layers = mixed(device)
    options = {"identity": identity, "eps": 1e-12}
    outs, norms = FORWARD(layers, dtype=dtype, channels_last=channels_last, **options)
    grads = [torch.randn(o.shape, device=device).to(o.dtype) for o in outs]
    backward = BACKWARD(grads, layers, norms, **options)
    for index, (parameters, out, grad, got) in enumerate(zip(layers, outs, grads, backward, strict=True)):
        alone, norm = weight_prep(*parameters, dtype=dtype, channels_last=channels_last, **options)
        assert is_channels_last(out) == is_channels_last(alone), f"layer {index}: layout of What"
        expected = weight_prep_backward(grad, *parameters, norm, **options)
        for name, actual, by_layer in zip(
            ("What", "dweight", "dalpha", "dbeta"), (out, *got), (alone, *expected), strict=True
        ):
            assert actual.dtype == by_layer.dtype, f"layer {index}: dtype of {name}"
            assert torch.equal(actual, by_layer), f"layer {index}: {name}"
        assert got[0].stride() == parameters[0].stride(), f"layer {index}: layout of dweight"


def test_against_the_definition(device):
    """Independent of the per-layer kernel, with groups of their own for each layer."""
    layers = [layer(12, 4, 3, 3), layer(6, 5, 3, 3), layer(33, 3, 3)]
    layers = [tuple(t.to(device) for t in each) for each in layers]
    groups = [3, 1, 11]
    outs, norms = FORWARD(layers, groups=groups)
    grads = [torch.randn(o.shape[1:], device=device).expand(o.shape) for o in outs]
    backward = BACKWARD(grads, layers, norms, groups=groups)
    for each, group, out, grad, got in zip(layers, groups, outs, grads, backward, strict=True):
        leaves = [t.double().requires_grad_() for t in each]
        expected = dirac_weight(*leaves, groups=group)
        assert_as_good_as_torch("What", out, expected.detach())
        exact = torch.autograd.grad(expected, leaves, grad.double())
        for name, actual, by_torch in zip(("dweight", "dalpha", "dbeta"), got, exact, strict=True):
            assert_as_good_as_torch(name, actual, by_torch)


def test_one_launch_each_way(monkeypatch, device):
    launches = []
    run = Launch.run
    monkeypatch.setattr(Launch, "run", lambda self: (launches.append(self.kernel), run(self)))
    layers = mixed(device)
    outs, norms = FORWARD(layers)
    BACKWARD(outs, layers, norms)
    assert launches == [
        weight_prep_multi.weight_prep_multi_kernel,
        weight_prep_multi.weight_prep_multi_backward_kernel,
    ]


def test_no_layers():
    outs, norms = FORWARD([])
    assert outs == []
    assert BACKWARD([], [], norms) == []


def test_deterministic(device):
    layers = mixed(device)
    (first, norms), (second, again) = FORWARD(layers), FORWARD(layers)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for one, two in zip(BACKWARD(first, layers, norms), BACKWARD(first, layers, again), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


class CountingTables(DescriptorTables):
    """Counts how often a table had to be made."""

    def __init__(self, capacity=32):
        super().__init__(capacity)
        self.made = 0

    def get(self, key, device, words):
        def counted():
            self.made += 1
            return words()

        return super().get(key, device, counted)


def same_as_alone(layers, tables):
    outs, _ = FORWARD(layers, tables=tables)
    return all(torch.equal(out, weight_prep(*each)[0]) for each, out in zip(layers, outs, strict=True))


def test_tables_are_made_once(device):
    tables, layers = CountingTables(), [layer(4, 3, 3, 3), layer(5, 4, 3, 3)]
    layers = [tuple(t.to(device) for t in each) for each in layers]
    outs, norms = FORWARD(layers, tables=tables)
    assert tables.made == 2, "addresses and tiles"
    BACKWARD(outs, layers, norms, tables=tables)
    assert tables.made == 4
    for _ in range(3):
        layers[0][0].add_(1)
        _, norms = FORWARD(layers, tables=tables)
        BACKWARD(outs, layers, norms, tables=tables)
    assert tables.made == 4, "a step in place made tables again"


def test_tables_follow_their_parameters(device):
    tables = CountingTables()
    layers = [tuple(torch.nn.Parameter(t.to(device)) for t in layer(4, 3, 3, 3)) for _ in range(2)]
    with torch.no_grad():
        assert same_as_alone(layers, tables)
        layers[0][0].data = torch.randn(4, 3, 3, 3, device=device)
        assert same_as_alone(layers, tables), "weight replaced in place"
        layers[1] = (layers[1][0], torch.randn(4, device=device), layers[1][2])
        assert same_as_alone(layers, tables), "alpha replaced"
        layers[0][0].data = layers[0][0].data.bfloat16()
        assert same_as_alone(layers, tables), "weight cast"
        layers[0][0].data = layers[0][0].data.to(memory_format=torch.channels_last)
        assert same_as_alone(layers, tables), "weight in another layout"
        memory = torch.randn(4 * 27, device=device)
        layers[1] = (memory.view(4, 3, 3, 3), *layers[1][1:])
        assert same_as_alone(layers, tables)
        layers[1] = (memory.view(4, 27, 1, 1), *layers[1][1:])
        assert same_as_alone(layers, tables), "another shape at the same address"


def test_tables_keep_no_parameter_alive(device):
    tables, layers = DescriptorTables(), [tuple(t.to(device) for t in layer(4, 3, 3, 3))]
    FORWARD(layers, tables=tables)
    watched = weakref.ref(layers[0][0])
    layers.clear()
    gc.collect()
    assert watched() is None


def test_old_tables_are_dropped():
    tables = CountingTables(capacity=2)
    cpu = torch.device("cpu")
    for key in (1, 2, 1, 3, 1):
        assert tables.get(key, cpu, lambda key=key: [key]).tolist() == [key]
    assert tables.made == 3
    tables.get(2, cpu, lambda: [2])
    assert tables.made == 4, "2 was the least recently used"


class FakeStream:
    """Stands in for a CUDA stream."""

    def __init__(self):
        self.waited = 0

    def wait_event(self, event):
        self.waited += 1

    def record_event(self):
        return object()


class FakeCudaTables(DescriptorTables):
    """The CUDA path on a CPU: 'uploads' are copies."""

    def __init__(self):
        super().__init__()
        self.pinned = []

    def _pinned(self, words):
        self.pinned.append(words)
        return torch.empty(words, dtype=torch.int64)

    def _upload(self, pinned, device):
        return pinned.clone()


@pytest.fixture
def cuda(monkeypatch):
    """Switches: ``capturing`` and ``stream`` of a CUDA device that is not there."""

    class State:
        capturing, stream = False, FakeStream()

    monkeypatch.setattr(address_tables.torch.cuda, "is_current_stream_capturing", lambda: State.capturing)
    monkeypatch.setattr(address_tables.torch.cuda, "current_stream", lambda device: State.stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    return State


def test_a_capture_allocates_no_pinned_memory(cuda):
    """And what it builds is kept for its graph, but not offered outside, where it is not filled yet."""
    tables, device = FakeCudaTables(), torch.device("cuda", 0)
    tables.get("warm-up", device, lambda: [1, 2])
    pinned = len(tables.pinned)
    cuda.capturing = True
    captured = tables.get("capture", device, lambda: [3, 4])
    assert captured.tolist() == [3, 4]
    assert len(tables.pinned) == pinned
    watched = weakref.ref(captured)
    del captured
    assert watched() is not None, "the graph's table was freed"
    cuda.capturing = False
    assert tables.get("capture", device, lambda: [3, 4]) is not watched()


def test_a_table_used_in_a_capture_outlives_the_cache(cuda):
    tables, device = FakeCudaTables(), torch.device("cuda", 0)
    watched = weakref.ref(tables.get("key", device, lambda: [1]))
    cuda.capturing = True
    assert tables.get("key", device, lambda: [1]) is watched()
    cuda.capturing = False
    for other in range(100):
        tables.get(other, device, lambda: [2])
    assert watched() is not None


def test_another_stream_waits_for_the_upload(cuda):
    tables, device = FakeCudaTables(), torch.device("cuda", 0)
    tables.get("key", device, lambda: [1])
    tables.get("key", device, lambda: [1])
    assert cuda.stream.waited == 0
    cuda.stream = FakeStream()
    tables.get("key", device, lambda: [1])
    assert cuda.stream.waited == 1


def spec(*shape, aligned=True):
    dtypes = (torch.float32,) * 4
    return LayerSpec(shape, 1, *dtypes, False, False, False, False, aligned)


@pytest.mark.parametrize("shapes", [[(32, 32, 3, 3), (640, 640, 3, 3)], [(33, 1, 1, 1), (3, 2000, 3, 3), (5, 7, 3)]])
def test_every_row_is_in_one_tile_and_tiles_are_alike(shapes):
    layers = PackedLayers(tuple(spec(*shape) for shape in shapes), backward=False)
    rows = set()
    for tile in layers.tiles:
        index, kind, first = tile & 0xFFFF, tile >> 16 & 0xFFFF, tile >> 32
        *_, per_program, block, loop = layers.kinds[kind]
        assert loop or PROGRAM_ELEMENTS <= per_program * block <= 8192
        taken = {(index, row) for row in range(first, min(first + per_program, shapes[index][0]))}
        assert taken
        assert not rows & taken
        rows |= taken
    assert len(rows) == sum(shape[0] for shape in shapes)


def test_one_layer_that_is_not_aligned_does_not_slow_the_others():
    layers = PackedLayers((spec(8, 16, 3, 3), spec(8, 16, 3, 3, aligned=False), spec(4, 16, 3, 3)), backward=True)
    assert [tile >> 16 & 0xFFFF for tile in layers.tiles] == [0, 1, 0]


def test_parameters_that_are_not_aligned(device):
    memory = torch.randn(2 * 4 * 16 * 9 + 1, device=device)
    rest = [tuple(t.to(device) for t in layer(4, 16, 3, 3)[1:]) for _ in range(2)]
    layers = [(memory[:576].view(4, 16, 3, 3), *rest[0]), (memory[577:].view(4, 16, 3, 3), *rest[1])]
    assert same_as_alone(layers, DescriptorTables())


def test_outputs_do_not_overlap(device):
    outs, _ = FORWARD(mixed(device))
    spans = sorted((o.data_ptr(), o.data_ptr() + o.numel() * o.element_size()) for o in outs)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert all((start - spans[0][0]) % LAYER_ALIGNMENT == 0 for start, _ in spans)


def test_plans_take_meta_tensors():
    vector = torch.empty(64, device="meta")
    layers = [(torch.empty(64, 64, 3, 3, device="meta"), vector, vector)] * 30
    launches, outs, norms = plan_weight_prep_multi(layers, dtype=torch.bfloat16, channels_last=True)
    assert len(launches) == 1
    launches, dweights, drows = plan_weight_prep_multi_backward(outs, layers, norms)
    assert len(launches) == 1
    assert len(dweights) == 30
    assert len(drows) == 60


def test_outputs_may_be_changed_in_place(device):
    """Each as a single layer's may: nobody else's numbers change, and gradients are those of what was changed."""
    layers = [tuple(torch.randn(s, device=device).requires_grad_() for s in ((4, 3, 3, 3), (4,), (4,))) for _ in "ab"]
    first, second = td.dirac_weights(layers, backend="triton")
    before = second.detach().clone()
    first.mul_(2)
    assert torch.equal(second, before)
    (together,) = torch.autograd.grad(first.sum() + second.sum(), layers[0][2], retain_graph=True)
    (alone,) = torch.autograd.grad(2 * td.dirac_weight(*layers[0], backend="triton").sum(), layers[0][2])
    assert torch.allclose(together, alone)


@pytest.mark.cpu
def test_what_a_word_does_not_hold_is_refused():
    assert packed(3, 5) == 3 | 5 << 32
    assert packed(2**15 - 1, 2, 16) == 0x2_7FFF
    for numbers in ((2**31, 0), (0, 2**31), (-1, 0)):
        with pytest.raises(ValueError, match=f"got {numbers[0]} and {numbers[1]}"):
            packed(*numbers)
    with pytest.raises(ValueError, match="16 bits"):
        packed(2**15, 0, 16)
