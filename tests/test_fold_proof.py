"""fold is right or refuses: forwards that take other paths than a trace, or read what folding changes.

Each of these models was folded into another function, or broke, when fold believed the trace of torch.fx.
"""

import copy
import functools
import gc
import warnings

import pytest
import torch
from torch import Tensor, nn

from tests.folded import assert_same, block, kinds, randomised
from tests.placement import DEVICE
from triton_dirac import DiracConv2d, fold

X, Y = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
KINDS = pytest.mark.parametrize("kind", [DiracConv2d, nn.Conv2d], ids=["Dirac", "plain"])


class Pair(nn.Module):
    """A convolution and a batch-norm; ``forward`` is given by the test, and called as a method."""

    last, calls = None, 0

    def __init__(self, conv, run):
        super().__init__()
        self.conv, self.bn, self.run = conv, nn.BatchNorm2d(4), run

    def forward(self, *arguments):
        raise NotImplementedError


def model_of(forward, kind=DiracConv2d):
    """A Pair of a class of its own, with that forward."""
    made = type(forward.__name__, (Pair,), {"forward": forward})
    return randomised(made(kind(4, 4, 3, padding=1), None)).requires_grad_(False)


def assert_folds_or_stays(model, calls, **options):
    """Whatever was folded, each call gives what it gave; in the order of the calls, in both gradient modes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        folded = fold(model, **options)
    assert "DiracConv2d" not in kinds(folded)
    for enabled in (False, True):
        twin, same = copy.deepcopy(model), copy.deepcopy(folded)
        with torch.set_grad_enabled(enabled):
            for call in calls:
                assert_same(same(*call), twin(*call))
    return folded


# --- other paths ------------------------------------------------------------------------------------------


def is_none(self, x, residual=None):
    y = self.conv(x)
    if residual is None:
        residual = y
    return self.bn(y) + residual


def gated_unless_none(self, x, gate=None):
    y = self.conv(x)
    return self.bn(y.relu() if gate is not None else y)


def is_list(self, x):
    if isinstance(x, (list, tuple)):
        return self.bn(self.conv(x[0]).relu())
    return self.bn(self.conv(x))


def is_tensor(self, x):
    y = self.conv(x)
    return self.bn({True: torch.relu, False: torch.neg}[isinstance(y, Tensor)](y))


def type_of(self, x):
    y = self.conv(x)
    return self.bn(y.relu() if type(y) is Tensor else y)


def has_attribute(self, x):
    y = self.conv(x)
    return self.bn(y if hasattr(y, "node") else y.relu())


def in_try(self, x):
    y = self.conv(x)
    try:
        return self.bn(y.relu() * len(y))
    except TypeError:
        return self.bn(y)


@functools.singledispatch
def softened(y):
    return y


softened.register(Tensor)(torch.relu)


def dispatched(self, x):
    return self.bn(softened(self.conv(x)))


def helped(self, x, relu=None):
    def pick(y, relu):
        return y.relu() if relu is None else y

    return self.bn(pick(self.conv(x), relu))


def matched(self, x, mode=None):
    y = self.conv(x)
    match mode:
        case None:
            y = y.relu()
    return self.bn(y)


def gradient_mode(self, x):
    enabled = torch.is_grad_enabled()
    y = self.conv(x)
    return self.bn(y.relu() if enabled else y)


def every_other_call(self, x):
    self.calls += 1
    y = self.conv(x)
    return self.bn(y.relu() if self.calls % 2 == 0 else y)


def keeps_its_last_input(self, x):
    y = self.conv(x)
    if self.last is not None:
        y = y + self.last.relu()
    self.last = x
    return self.bn(y)


def flagged(self, x, relu=False):
    y = self.conv(x)
    return self.bn(y.relu() if relu else y)


def in_place(self, x):
    y = self.conv(x)
    y.relu_()
    return self.bn(y)


PATHS = {
    is_none: [(X,), (X, Y)],
    gated_unless_none: [(X,), (X, Y)],
    is_tensor: [(X,)],
    type_of: [(X,)],
    has_attribute: [(X,)],
    in_try: [(X,)],
    dispatched: [(X,)],
    helped: [(X,), (X, 1)],
    matched: [(X,), (X, 1)],
    gradient_mode: [(X,)],
    every_other_call: [(X,), (Y,), (X,)],
    keeps_its_last_input: [(X,), (Y,), (X,)],
    flagged: [(X,), (X, True)],
    in_place: [(X,)],
}


@pytest.mark.parametrize("example", [False, True], ids=["alone", "example"])
@pytest.mark.parametrize("forward", PATHS, ids=lambda forward: forward.__name__)
@KINDS
def test_other_paths_than_the_traced_one(kind, forward, example):
    options = {"example": X} if example else {}
    folded = assert_folds_or_stays(model_of(forward, kind), PATHS[forward], **options)
    assert kinds(folded) == ["Conv2d", "BatchNorm2d"]


def test_a_branch_on_types_without_an_example():
    assert_folds_or_stays(model_of(is_list), [(X,), ([X],)])


def straight(self, x):
    return self.bn(self.conv(x))


def by_its_own_state(self, x):
    y = self.conv(x)
    return self.bn(y.relu()) if self.run is not None else self.bn(y)


@pytest.mark.parametrize("forward", [straight, by_its_own_state], ids=["straight", "state"])
def test_branches_that_are_the_models_own_are_proof(forward):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folded = fold(model_of(forward))
    assert kinds(folded) == ["Conv2d", "Identity"]


def test_batch_norms_that_stay_for_want_of_proof_are_warned_of_once():
    with pytest.warns(
        UserWarning, match=r"left batch-norms in it, bn among .*test_fold_proof.py:\d+: .*residual is N"
    ) as w:
        fold(model_of(is_none))
    assert len(w) == 1
    assert w[0].filename == __file__


# --- with an example --------------------------------------------------------------------------------------


def depends_on_data(self, x):
    return self.bn(self.conv(x)) if x.sum() > -1e9 else x


def unusable_defaults(self, x, scale=1.0):
    y = self.conv(x)
    return self.bn(y) * scale if scale != 0 else x


@pytest.mark.parametrize("forward", [depends_on_data, unusable_defaults, is_list])
@KINDS
def test_an_example_proves_by_numbers_what_a_trace_does_not(kind, forward):
    model = model_of(forward, kind)
    assert kinds(assert_folds_or_stays(model, [(X,)])) == ["Conv2d", "BatchNorm2d"]
    assert kinds(assert_folds_or_stays(model, [(X,), (Y,)], example=X)) == ["Conv2d", "Identity"]


@pytest.mark.parametrize("example", [(X, Y), {"x": X, "residual": Y}], ids=["tuple", "dict"])
def test_examples_of_several_arguments(example):
    def added(self, x, residual):
        return self.bn(self.conv(x)) + residual if x.sum() > -1e9 else x

    assert kinds(assert_folds_or_stays(model_of(added), [(X, Y)], example=example)) == ["Conv2d", "Identity"]


def test_outputs_of_every_structure_are_compared():
    class Result:
        def __init__(self, **fields):
            self.__dict__.update(fields)

    def several(self, x):
        y = self.conv(x) if x.sum() > -1e9 else x
        return Result(main=[self.bn(y)], index=x.argmax(), aux={"last": y * 1e-6, "text": "y"})

    folded = fold(model_of(several), example=X)
    assert kinds(folded) == ["Conv2d", "BatchNorm2d"]  # a millionth of the convolution's own output is seen


def test_only_the_pair_that_is_wrong_stays():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.pairs = nn.ModuleList(block(DiracConv2d(4, 4, 3, 1), nn.BatchNorm2d(4)) for _ in range(5))

        def forward(self, x):
            for index, (conv, norm) in enumerate(self.pairs):
                y = conv(x)
                x = norm(y) + (conv.bias.sum() if index == 3 else 0) if x.sum() > -1e9 else x
            return x

    model = randomised(Several()).requires_grad_(False)
    folded = fold(model, example=X)
    assert [type(norm).__name__ for _, norm in folded.pairs] == [*["Identity"] * 3, "BatchNorm2d", "Identity"]
    assert_same(folded(Y), model(Y))


def test_a_model_that_takes_its_own_dtype_only():
    def half(self, x):
        return self.bn(self.conv(x.float())) if x.dtype == torch.float32 else None + 1

    assert kinds(assert_folds_or_stays(model_of(half), [(X,)], example=X)) == ["Conv2d", "Identity"]


def test_examples_that_show_nothing_are_refused():
    def noisy(self, x):
        return self.bn(self.conv(x)) + torch.rand(())

    with pytest.raises(ValueError, match="example must give the same output twice"):
        fold(model_of(noisy), example=X)
    with pytest.raises(ValueError, match="there is no tensor with data to compare"):
        fold(model_of(straight).to("meta"), example=X.to("meta"))

    def nothing(self, x):
        self.bn(self.conv(x))

    with pytest.raises(ValueError, match="there is no tensor with data to compare"):
        fold(model_of(nothing), example=X)
    with pytest.raises(ValueError, match="input has 2 channels"):  # the model's own error
        fold(model_of(straight), example=X[:, :2])


def test_the_model_stays_as_it_was():
    model = model_of(every_other_call)
    state = copy.deepcopy(model.state_dict())
    fold(model, example=X)
    assert model.calls == 0
    assert not model.conv._forward_hooks
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_no_module_is_named():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        fold(straight)


@pytest.mark.parametrize(
    "mode",
    [
        torch.inference_mode,
        lambda: torch.autocast(DEVICE.type, dtype=torch.bfloat16),
        lambda: torch.set_grad_enabled(True),
        lambda: torch.device("meta"),
    ],
    ids=["inference", "autocast", "gradients", "default device"],
)
def test_fold_in_any_mode(mode):
    model, image = model_of(depends_on_data), X.clone()
    with mode():
        if torch.is_inference_mode_enabled():
            image = image * 1
        folded = fold(model, example=image)
    assert kinds(folded) == ["Conv2d", "Identity"]
    assert not folded.conv.weight.is_inference()
    assert_same(folded(X), model(X))


def test_a_model_that_was_made_in_inference_mode():
    with torch.inference_mode():
        model = model_of(depends_on_data)
        folded = fold(model, example=X)
        assert kinds(folded) == ["Conv2d", "Identity"]
        assert_same(folded(X), model(X))


def test_a_forward_that_narrows_on_its_way():
    def narrow(self, x):
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            return self.bn(self.conv(x)) if x.sum() > -1e9 else x

    model = model_of(narrow)
    folded = fold(model, example=X)
    assert kinds(folded) == ["Conv2d", "Identity"]
    assert_same(folded(X), model(X), 3e-2)


def test_a_compiled_model():
    net = block(randomised(block(DiracConv2d(4, 4, 3), nn.BatchNorm2d(4))))
    expected = net(X)
    for options in ({}, {"example": X}):
        compiled = torch.compile(net.eval(), backend="eager")
        folded = fold(compiled, **options)
        assert kinds(folded) == ["Conv2d", "Identity"]
        assert_same(folded(X), expected)


def test_what_the_garbage_collector_calls_is_no_part_of_a_forward():
    """Hypothesis and others count collections, in globals that they change: a forward that is traced meanwhile is
    proved all the same."""
    seen = []

    def note(phase, info):
        global COLLECTED
        COLLECTED = phase
        seen.append(phase)

    class Collecting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            [[] for _ in range(2000)]  # enough for the youngest generation
            return self.bn(self.conv(x))

    gc.callbacks.append(note)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            folded = fold(Collecting().eval())
    finally:
        gc.callbacks.remove(note)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert gc.isenabled()
