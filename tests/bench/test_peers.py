"""Other projects' kernels need a GPU: here they are stood in for, and what is asked of them is looked at."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F

from bench import peers
from bench.accuracy import failures
from bench.checker import Checker
from bench.compiled import compiled as compiled_afresh
from bench.contenders import CONV
from bench.layers import layers
from bench.obstacles import obstacle
from bench.suite import Row
from bench.test_conv import SUITE
from triton_dirac.conv.problem import ConvProblem

CPU = torch.device("cpu")
LAYER = layers("DiracNet-34-2", 2)[1]
SMALL = ConvProblem(2, 8, 5, 6, 12, 3, 3, stride=(2, 1), padding=(1, 1, 1, 1))
BY_NAME = {contender.name: contender for contender in CONV}


def assert_right(work, results):
    assert failures(Checker(SUITE, work).errors(results)) is None


@pytest.fixture
def compiled(monkeypatch):
    """torch.compile that compiles nothing; the options it was given, and the code that Inductor says it made."""
    asked = SimpleNamespace(options=None, codes=[f"import x\n{peers.GENERATED}(\n"])

    def compile(function, *, dynamic, options, fullgraph):
        assert fullgraph
        asked.options = options
        return function

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(
        "torch._inductor.utils.run_and_get_code", lambda function, *tensors: (function(*tensors), asked.codes)
    )
    return asked


@pytest.mark.parametrize("direction", SUITE.passes)
def test_inductor_is_left_its_template_alone(compiled, direction):
    work = SUITE.work(SMALL, "float32", direction, CPU)
    assert_right(work, peers.inductor(work)())
    assert compiled.options == {"max_autotune": True, peers.TEMPLATES[direction]: "TRITON", "fx_graph_cache": False}


def test_inductor_without_a_template_is_not_called_one(compiled):
    compiled.codes = ["extern_kernels.convolution(x)"]
    with pytest.raises(RuntimeError, match="takes no Triton template"):
        peers.inductor(SUITE.work(SMALL, "float32", "fprop", CPU))


def test_inductor_that_compiles_nothing_is_not_said_to_lack_a_template(compiled):
    compiled.codes = []
    with pytest.raises(RuntimeError, match="generated no code"):
        peers.inductor(SUITE.work(SMALL, "float32", "fprop", CPU))


def test_no_row_s_graphs_count_against_another_row():
    """Dynamo keeps eight graphs of a code object; the ninth size would run as eager code, and be timed as compiled."""
    count = torch._dynamo.testing.CompileCounter()

    def double(x):
        return 2 * x

    for size in range(20):
        compiled_afresh(double, dynamic=False, backend=count)(torch.ones(size + 3))
    assert count.frame_count == 20


def test_a_contender_that_meets_too_many_sizes_is_an_error_and_not_eager_code():
    call = compiled_afresh(lambda x: 2 * x, dynamic=False, backend="eager")
    sizes = iter(range(3, 23))
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        all(call(torch.ones(size)) is not None for size in sizes)
    assert next(sizes) == 12  # after eight


def test_inductor_knows_the_options(monkeypatch):
    """Real ones: a name that Inductor does not know is an error of torch.compile."""
    from torch._inductor import config

    options = {"max_autotune": True, peers.TEMPLATES["fprop"]: "TRITON", "fx_graph_cache": False}
    torch.compile(lambda x: x, options=options)
    backward = [peers.inductor_lacks(SMALL, "float32", direction, CPU) for direction in ("dgrad", "wgrad")]
    if backward == [None, None]:
        torch.compile(lambda x: x, options={peers.TEMPLATES[name]: "TRITON" for name in ("dgrad", "wgrad")})
    monkeypatch.setattr(peers, "TEMPLATES", {"dgrad": "no_such_option"})
    assert not hasattr(config, "no_such_option")
    assert "has no Triton template for dgrad" in peers.inductor_lacks(SMALL, "float32", "dgrad", CPU)


@pytest.fixture
def flag_gems(monkeypatch):
    module = ModuleType("flag_gems")
    module.conv2d = F.conv2d
    module.__spec__ = SimpleNamespace(name="flag_gems")
    monkeypatch.setitem(sys.modules, "flag_gems", module)


def test_flag_gems_is_asked_for_fprop(flag_gems):
    work = SUITE.work(SMALL, "float32", "fprop", CPU)
    assert_right(work, peers.flag_gems(work)())


@pytest.mark.parametrize(
    "dtype, direction, reason",
    [
        ("float16", "fprop", None),
        ("float16", "dgrad", "both gradients in one call"),
        ("float32", "wgrad", "both gradients in one call"),
        ("tf32", "fprop", "has no TF32"),
    ],
)
def test_what_flag_gems_lacks(flag_gems, dtype, direction, reason):
    found = peers.flag_gems_lacks(SMALL, dtype, direction, CPU)
    assert found is None if reason is None else reason in found


def test_flag_gems_may_be_absent(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert "triton-dirac[peers]" in peers.flag_gems_lacks(SMALL, "float16", "fprop", CPU)


@pytest.mark.parametrize("name", ["inductor", "flag_gems"])
def test_without_a_gpu_a_peer_is_a_row_with_a_reason(flag_gems, name):
    found = obstacle(CPU, Row(SUITE, LAYER, "float32", "fprop"), BY_NAME[name], compile_all=False)
    assert "no GPU: other projects" in found.reason
    assert not found.executable
    assert obstacle(SimpleNamespace(type="cuda"), Row(SUITE, LAYER, "float32", "fprop"), BY_NAME[name], False) is None
