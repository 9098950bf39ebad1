"""Whole nets: their layers, their contenders, what is counted of them, who is timed and what is written down."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bench import counting, networks
from bench import test_weight_prep_nets as suite
from bench.accuracy import failures
from bench.allocator import keep_freed_memory
from bench.lab import Lab
from bench.networks import CONTENDERS, NETWORKS, PASSES, PLAIN, Checker, shapes
from bench.options import Selection
from bench.timing import Samples
from triton_dirac.runtime.launch import INTERPRETED

CPU, META = torch.device("cpu"), torch.device("meta")
SMALL = ((3, 4, 3, 3), (6, 3, 3, 3), (5, 5, 1, 1))
BY_NAME = {contender.name: contender for contender in CONTENDERS}


def work(direction="forward_backward", dtype="float32", of=SMALL, device=CPU):
    return networks.draw(of, direction, dtype, device)


@pytest.mark.parametrize(
    "net, layers, weights",
    [("DiracNet-28-10", 24, 36_403_200), ("DiracNet-34-2", 30, 1_843_200), ("DiracNet-34", 32, 21_086_208)],
)
def test_nets_have_the_published_layers(net, layers, weights):
    assert suite.described(shapes(net)) == {"layers": layers, "weights": weights}
    cropped = networks.crop(shapes(net))
    assert len(cropped) == layers
    assert max(max(shape[:2]) for shape in cropped) <= networks.CROPPED_CHANNELS


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("name", [contender.name for contender in PLAIN if contender.engine != "compile"])
def test_contenders_are_right(name, direction, device):
    checked = work(direction, device=device)
    results = BY_NAME[name].build(checked)()
    assert len(results) == len(SMALL) * (1 if direction == "forward" else 4)
    errors = Checker(checked).errors(results, direction)
    assert [error.tensor for error in errors] == list(PASSES[direction])
    assert failures(errors) is None


def test_the_worst_layer_decides():
    checked = work()
    results = list(BY_NAME["auto"].build(checked)())
    results[1] = results[1] * 1.01
    results[len(SMALL) + 3 * 2 + 1] = results[len(SMALL) + 3 * 2 + 1] + float("nan")
    errors = {error.tensor: error.passed for error in Checker(checked).errors(tuple(results), "forward_backward")}
    assert errors == {"output": False, "weight": True, "alpha": False, "beta": True}


def test_inputs_are_the_same_in_every_run_and_layout_is_the_device_s_own():
    first, second = work(), work("forward")
    for ours, theirs in zip(first.layers, second.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert first.layout == torch.contiguous_format
    assert replace(first, device=torch.device("cuda")).layout == torch.channels_last
    assert all(tensor.is_meta for layer in work(device=META).layers for tensor in layer)


def test_least_cost_is_one_read_and_one_write():
    elements = sum(torch.Size(shape).numel() for shape in SMALL)
    assert networks.cost(SMALL, torch.bfloat16, "forward")[1] == elements * (4 + 2)
    assert networks.cost(SMALL, torch.bfloat16, "forward_backward")[1] == elements * (4 + 2 + 4 + 2 + 4)


# --- counts -----------------------------------------------------------------------------------------------


def test_operations_are_counted_with_what_they_move():
    x, y = torch.ones(4, 8), torch.ones(8)
    assert counting.count_operations(lambda: x + y) == counting.Count(1, 4 * (32 + 8 + 32))
    assert counting.count_operations(lambda: x.view(8, 4)[1:].t()) == counting.Count(0, 0)
    assert counting.count_operations(lambda: x.add_(y.expand(4, 8))) == counting.Count(1, 4 * (32 + 8 + 32))
    assert counting.count_operations(lambda: torch.empty(9).copy_(torch.zeros(1).expand(9))).launches == 2
    assert counting.count_operations(lambda: x.sum().item()) == counting.Count(1, 4 * 33)


def test_gradients_are_counted_too():
    x = torch.ones(8, requires_grad=True)
    forward = counting.count_operations(lambda: (x * 2).sum())
    assert counting.count_operations(lambda: (x * 2).sum().backward()).launches > forward.launches == 2


def test_ours_is_counted_on_the_way_that_it_runs():
    """The counter is a dispatch mode, and under one our code would take another way."""
    forward, both = (counting.count_operations(BY_NAME["auto"].build(work(d))).launches for d in PASSES)
    assert forward == 2 * len(SMALL) + 2  # the norms of all layers are looked at together
    assert both == forward + 2 * len(SMALL)


@pytest.mark.parametrize("direction, launches", [("forward", 1), ("forward_backward", 2)])
def test_planned_launches(direction, launches):
    planned = work(direction, "bfloat16", shapes("DiracNet-34-2"), META)
    least = networks.cost(shapes("DiracNet-34-2"), torch.bfloat16, direction)[1]
    for name, count in (("triton-one-launch", launches), ("triton", 30 * launches)):
        found = counting.planned_launches(networks.call_of(BY_NAME[name].prepare(planned), planned))
        assert len(found) == count
        assert 1 < sum(networks.launch_bytes(launch, planned) for launch in found) / least < 1.005


# --- the suite --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, dtype, reason, executable",
    [
        ("auto", "float32", None, None),
        ("reference", "bfloat16", "emulated", True),
        ("triton", "float32", "no GPU", INTERPRETED),
        ("triton", "bfloat16", "cuts float32 off", False),
        ("triton-one-launch-graph", "float32", "a CUDA graph needs one", False),
        ("weight_norm-graph", "float32", "a CUDA graph needs one", False),
    ],
)
def test_obstacles(name, dtype, reason, executable):
    found = suite.obstacle(CPU, dtype, BY_NAME[name])
    if reason is None:
        assert found is None
    else:
        assert reason in found.reason
        assert found.executable == executable
    assert suite.obstacle(torch.device("cuda"), dtype, BY_NAME[name]) is None


def bench(**extra):
    return SimpleNamespace(enabled=False, group="", extra_info={}, pedantic=lambda call: call(), **extra)


@pytest.fixture
def lab(monkeypatch):
    monkeypatch.setattr(suite, "shapes", lambda net: SMALL)
    return suite.NetsLab(Lab(Selection(), CPU))


def test_rows_are_what_is_selected():
    def rows(**selected):
        return suite.NetsLab(Lab(Selection(**selected), CPU)).rows()

    assert len(rows()) == len(NETWORKS) * len(PASSES) * len(CONTENDERS)
    assert rows(layers=("*7x7",)) == []
    chosen = rows(nets=("DiracNet-34",), contenders=("triton*",), dtypes=("tf32", "float32"))
    assert {row[:2] for row in chosen} == {("DiracNet-34", "float32")}
    assert {row[3] for row in chosen} == {n + g for n in ("triton", "triton-one-launch") for g in ("", "-graph")}


def test_a_contender_is_checked_counted_and_described(lab):
    benchmark = bench()
    place = suite.Place("DiracNet-34", "float32", "forward")
    lab.lab.selection = Selection(contenders=("auto", "weight_norm"))
    lab.run(benchmark, place, BY_NAME["auto"])
    assert benchmark.extra_info["problem"] == {"layers": 3, "weights": 108 + 162 + 25}
    assert benchmark.extra_info["label"] == "measured"
    assert {row["contender"] for row in lab.lab.accuracy} == {"auto", "weight_norm"}
    assert all(row["passed"] and row["executed_by"] == "cpu" for row in lab.lab.accuracy)
    counts = {row["contender"]: row for row in lab.lab.counted}
    assert counts["auto"]["launches"] == 8
    assert counts["auto"]["bytes"] >= counts["auto"]["least_bytes"]
    assert {row["label"] for row in counts.values()} == {"counted"}


def test_what_is_wrong_is_not_timed(lab, monkeypatch):
    doubled = replace(BY_NAME["auto"], prepare=lambda work: lambda layers: [2 * w for w, _, _ in layers])
    monkeypatch.setattr(networks, "CONTENDERS", (doubled,))
    with pytest.raises(pytest.skip.Exception, match="failed the check"):
        lab.run(bench(), suite.Place("DiracNet-34", "float32", "forward"), doubled)
    assert "output off by" in lab.lab.not_run[0]["reason"]
    assert lab.lab.counted == []


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here, not interpreted")
def test_triton_is_checked_on_a_crop_and_counted_on_the_whole(lab):
    with pytest.raises(pytest.skip.Exception, match="no GPU"):
        lab.run(bench(), suite.Place("DiracNet-34", "float32", "forward_backward"), BY_NAME["triton-one-launch"])
    assert {row["executed_by"] for row in lab.lab.accuracy} == {"interpreter"}
    assert [row["launches"] for row in lab.lab.counted] == [2]
    assert lab.lab.counted[0]["counted_by"] == "planned launches"


def test_all_contenders_of_a_place_are_timed_together(lab, monkeypatch):
    timed = []

    def sampler(calls):
        timed.append(list(calls))
        return {name: Samples([1.0]) for name in calls}

    recorded = []
    monkeypatch.setattr(suite, "wall_samples", sampler)
    monkeypatch.setattr(suite, "keep_freed_memory", lambda: True)  # it would last beyond this test
    monkeypatch.setattr(suite, "record", lambda benchmark, samples: recorded.append(samples))
    lab.lab.selection = Selection(contenders=("reference", "normalize", "auto"))
    for name in ("reference", "normalize", "auto"):
        benchmark = bench()
        benchmark.enabled = True
        lab.run(benchmark, suite.Place("DiracNet-34", "float32", "forward"), BY_NAME[name])
    assert timed == [["reference", "normalize", "auto"]]
    assert len(recorded) == 3


def test_normalize_is_the_same_function():
    weight, alpha, beta = torch.randn(6, 4, 3, 3), torch.randn(6), torch.randn(6)
    found = networks.normalize_weight(weight, alpha, beta, torch.float32, torch.contiguous_format)
    expected = beta.view(-1, 1, 1, 1) * F.normalize(weight.flatten(1)).view_as(weight)
    expected[range(4), range(4), 1, 1] += alpha[:4]
    assert torch.allclose(found, expected)


def test_the_allocator_keeps_memory_only_where_it_can(monkeypatch):
    monkeypatch.setattr("bench.allocator.sys.platform", "darwin")
    assert keep_freed_memory() is False
    monkeypatch.setattr("bench.allocator.sys.platform", "linux")
    monkeypatch.setattr("bench.allocator.ctypes.CDLL", lambda name: SimpleNamespace())
    assert keep_freed_memory() is False
    calls = []
    libc = SimpleNamespace(mallopt=lambda key, value: calls.append((key, value)) or 1)
    monkeypatch.setattr("bench.allocator.ctypes.CDLL", lambda name: libc)
    assert keep_freed_memory() is True
    assert calls == [(-3, 32 * 2**20), (-1, 2**31 - 1)]
