"""Whole nets: their layers, their contenders, what is counted of them, who is timed and what is written down."""

import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bench import counting, net_contenders
from bench.accuracy import failures
from bench.allocator import keep_freed_memory
from bench.checker import Checker
from bench.lab import Lab
from bench.net_contenders import NET_WEIGHT_PREP, PLAIN
from bench.net_weights import SHRUNK_CHANNELS, WHOLE_NETS, NetWeights, shapes, whole_nets
from bench.obstacles import obstacle
from bench.options import Selection
from bench.suite import Row
from bench.test_weight_prep_nets import SUITE
from bench.timing import Samples
from tests.bench.doubling import Benchmark
from triton_dirac.runtime.launch import INTERPRETED

CPU, META = torch.device("cpu"), torch.device("meta")
SMALL = ((3, 4, 3, 3), (6, 3, 3, 3), (5, 5, 1, 1))
SUBJECT = NetWeights("DiracNet-34", SMALL)
SMALL_SUITE = replace(SUITE, subjects=lambda nets, batch: [SUBJECT])
BY_NAME = {contender.name: contender for contender in NET_WEIGHT_PREP}


def work(direction="forward_backward", dtype="float32", of=SMALL, device=CPU):
    return SUITE.work(of, dtype, direction, device)


@pytest.mark.parametrize(
    "net, layers, weights",
    [("DiracNet-28-10", 24, 36_403_200), ("DiracNet-34-2", 30, 1_843_200), ("DiracNet-34", 32, 21_086_208)],
)
def test_nets_have_the_published_layers(net, layers, weights):
    (subject,) = whole_nets([net, "RepVGG-A0"])
    assert subject.sizes == {"layers": layers, "weights": weights}
    shrunk = subject.shrunk()
    assert shrunk.sizes["layers"] == layers
    assert max(max(shape[:2]) for shape in shrunk.problem) <= SHRUNK_CHANNELS


@pytest.mark.parametrize("direction", SUITE.passes)
@pytest.mark.parametrize("name", [contender.name for contender in PLAIN if contender.engine != "compile"])
def test_contenders_are_right(name, direction, device):
    checked = work(direction, device=device)
    results = BY_NAME[name].build(checked)()
    assert [len(of_layers) for of_layers in results] == [len(SMALL)] * len(SUITE.passes[direction])
    errors = Checker(SUITE, checked).errors(results)
    assert [error.tensor for error in errors] == list(SUITE.passes[direction])
    assert failures(errors) is None


def test_the_worst_layer_decides():
    checked = work()
    output, weight, alpha, beta = map(list, BY_NAME["auto"].build(checked)())
    output[1] = output[1] * 1.01
    alpha[2] = alpha[2] + float("nan")
    errors = Checker(SUITE, checked).errors(tuple(map(tuple, (output, weight, alpha, beta))))
    assert {error.tensor: error.passed for error in errors} == {
        "output": False, "weight": True, "alpha": False, "beta": True,
    }  # fmt: skip


def test_inputs_are_the_same_in_every_run_and_layout_is_the_device_s_own():
    first, second = work(), work("forward")
    for name in first.inputs:
        assert all(torch.equal(a, b) for a, b in zip(first.inputs[name], second.inputs[name], strict=True))
    assert net_contenders.layout_on(CPU) == torch.contiguous_format
    assert net_contenders.layout_on(torch.device("cuda")) == torch.channels_last
    assert all(tensor.is_meta for of_layers in work(device=META).inputs.values() for tensor in of_layers)


def test_least_cost_is_one_read_and_one_write():
    elements = sum(torch.Size(shape).numel() for shape in SMALL)
    assert SUITE.cost(SMALL, torch.bfloat16, "forward")[1] == elements * (4 + 2)
    assert SUITE.cost(SMALL, torch.bfloat16, "forward_backward")[1] == elements * (4 + 2 + 4 + 2 + 4)


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
    forward, both = (counting.count_operations(BY_NAME["auto"].build(work(d))).launches for d in SUITE.passes)
    assert forward == 2 * len(SMALL) + 2  # the norms of all layers are looked at together
    assert both == forward + 2 * len(SMALL)


@pytest.mark.parametrize("direction, launches", [("forward", 1), ("forward_backward", 2)])
def test_planned_launches(direction, launches):
    row = Row(SUITE, whole_nets(["DiracNet-34-2"])[0], "bfloat16", direction)
    least = SUITE.cost(shapes("DiracNet-34-2"), torch.bfloat16, direction)[1]
    for name, count in (("triton-one-launch", launches), ("triton", 30 * launches)):
        (entry,) = counting.of_plans(row, BY_NAME[name])
        assert (entry["launches"], entry["least_bytes"]) == (count, least)
        assert 1 < entry["bytes"] / least < 1.005


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
    row = Row(SUITE, SUBJECT, dtype, "forward")
    found = obstacle(CPU, row, BY_NAME[name], compile_all=False)
    if reason is None:
        assert found is None
    else:
        assert reason in found.reason
        assert found.executable == executable
    assert obstacle(torch.device("cuda"), row, BY_NAME[name], compile_all=False) is None


def run(lab, name, direction="forward", suite=SMALL_SUITE, benchmark=None):
    lab.run(benchmark or Benchmark(enabled=False), suite, SUBJECT.net, SUBJECT.name, "float32", direction, name)


def test_rows_are_what_is_selected():
    def rows(**selected):
        return [(*row.key, name) for row, name in Lab(Selection(**selected), CPU).rows(SUITE)]

    assert len(rows(dtypes=("float32",))) == len(WHOLE_NETS) * len(SUITE.passes) * len(NET_WEIGHT_PREP)
    assert rows(layers=("*7x7*",)) == []
    chosen = rows(nets=("DiracNet-34",), contenders=("triton*",), dtypes=("tf32", "float32"))
    assert {(row[2], row[4]) for row in chosen} == {("DiracNet-34", "float32")}
    assert {row[5] for row in chosen} == {n + g for n in ("triton", "triton-one-launch") for g in ("", "-graph")}


def test_a_contender_is_checked_counted_and_described():
    benchmark, lab = Benchmark(enabled=False), Lab(Selection(contenders=("auto", "weight_norm")), CPU)
    run(lab, "auto", benchmark=benchmark)
    assert benchmark.extra_info["problem"] == {"layers": 3, "weights": 108 + 162 + 25}
    assert (benchmark.extra_info["net"], benchmark.extra_info["layer"]) == ("DiracNet-34", "all Dirac layers")
    assert benchmark.extra_info["label"] == "measured"
    assert {row["contender"] for row in lab.results["accuracy"]} == {"auto", "weight_norm"}
    assert all(row["passed"] and row["executed_by"] == "cpu" for row in lab.results["accuracy"])
    counts = {row["contender"]: row for row in lab.results["counted"]}
    assert counts["auto"]["launches"] == 8
    assert counts["auto"]["bytes"] >= counts["auto"]["least_bytes"]
    assert {row["label"] for row in counts.values()} == {"counted"}


def test_what_is_wrong_is_not_timed():
    def build(work):
        return net_contenders.call_of(lambda layers: [2 * weight for weight, _, _ in layers], work)

    lab = Lab(Selection(), CPU)
    with pytest.raises(pytest.skip.Exception, match="failed the check"):
        run(lab, "auto", suite=replace(SMALL_SUITE, contenders=[replace(BY_NAME["auto"], build=build)]))
    assert "output off by" in lab.results["not_run"][0]["reason"]
    assert lab.results["counted"] == []


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here, not interpreted")
def test_triton_is_checked_on_a_miniature_and_counted_on_the_whole():
    lab = Lab(Selection(contenders=("triton-one-launch",)), CPU)
    with pytest.raises(pytest.skip.Exception, match="no GPU"):
        run(lab, "triton-one-launch", "forward_backward")
    assert {row["executed_by"] for row in lab.results["accuracy"]} == {"interpreter"}
    assert [row["launches"] for row in lab.results["counted"]] == [2]
    assert lab.results["counted"][0]["counted_by"] == "planned launches"


def test_all_contenders_of_a_net_are_timed_together():
    timed = []

    def sampler(calls):
        timed.append(list(calls))
        return {name: Samples([1.0]) for name in calls}

    names = ("reference", "normalize", "auto")
    lab = Lab(Selection(contenders=names), CPU, sampler)
    for name in names:
        run(lab, name, benchmark=Benchmark())
    assert timed == [list(names)]
    assert [entry["stats"]["data"] for entry in lab.results["benchmarks"]] == [[1.0]] * 3


def test_normalize_is_the_same_function():
    weight, alpha, beta = torch.randn(6, 4, 3, 3), torch.randn(6), torch.randn(6)
    found = net_contenders.normalize_weight(weight, alpha, beta, torch.float32, torch.contiguous_format)
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


def test_a_captured_call_s_tensors_live_as_long_as_its_graph(monkeypatch):
    """A graph reads them where they were: of a step's net nothing else was left, and the GPU was lost."""
    graphs = []

    class Graph:
        def __init__(self):
            self.replays = 0
            graphs.append(self)

        def replay(self):
            self.replays += 1

    class Parameter: ...

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: stream)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    alive = []

    def build(work):
        parameter = Parameter()
        alive.append(weakref.ref(parameter))
        return lambda: (type(parameter).__name__,)

    replay = net_contenders.replayed(build)(None)
    gc.collect()
    assert alive[0]() is not None
    assert replay() == ("Parameter",)
    assert graphs[0].replays == 1
