"""Calls of a known kind, done by an earlier one's plan, give what they would have given without it."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import triton_dirac as td
from tests.placement import DEVICE
from tests.tolerance import assert_as_good_as_torch
from triton_dirac import dirac_op, reference
from triton_dirac.conv import op as conv
from triton_dirac.runtime import autotune, launch, signature_cache
from triton_dirac.runtime.plan import Plan, _Launched
from triton_dirac.runtime.planned import Planned
from triton_dirac.runtime.signature_cache import SignatureCache

PLANNED = (dirac_op._planned, conv._planned)


@pytest.fixture
def replays(monkeypatch):
    """The forward plans that are run again, one by one; nothing is known beforehand."""
    for planned in PLANNED:
        monkeypatch.setattr(planned, "_plans", SignatureCache())
    found: list = []
    run = Plan.run

    def noted(self, tensors, addresses):
        if isinstance(self.settings, (dirac_op.DiracSettings, conv.ConvSettings)):
            found.append(self)
        return run(self, tensors, addresses)

    monkeypatch.setattr(Plan, "run", noted)
    return found


def tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """image, weight, alpha, beta, bias"""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    shapes = [(1, 3, 4, 4), (4, 3, 3, 3), (4,), (4,), (4,)]
    image, *rest = (torch.randn(shape, generator=generator) for shape in shapes)
    return [image.to(dtype, memory_format=torch.channels_last), *rest]


def assert_right(inputs, output, **options) -> None:
    wide = [tensor.detach().double() for tensor in inputs]
    expected = reference.dirac_conv2d(*wide, padding=1, **options)
    assert_as_good_as_torch("output", output.detach(), expected)


def run(inputs, **options) -> torch.Tensor:
    return td.dirac_conv2d(*inputs, padding=1, backend="triton", precision="ieee", **options)


def test_a_repeated_layer_is_replayed_on_the_tensors_of_the_moment(replays):
    for seed in range(3):
        inputs = [tensor.requires_grad_() for tensor in tensors(seed)]
        output = run(inputs)
        assert_right(inputs, output)
        grads = torch.autograd.grad(output.square().sum(), inputs)
        wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
        expected = reference.dirac_conv2d(*wide, padding=1).square().sum()
        names = ("input", "weight", "alpha", "beta", "bias")
        for name, mine, theirs in zip(names, grads, torch.autograd.grad(expected, wide), strict=True):
            assert_as_good_as_torch(name, mine, theirs)
    assert len(replays) == 2


def test_conv2d_is_replayed_with_each_of_its_epilogues(replays):
    image, weight, alpha, _, bias = tensors()
    for _ in range(2):
        for rest in ({}, {"bias": bias}, {"alpha": alpha}, {"bias": bias, "alpha": alpha, "activation": "relu"}):
            output = td.conv2d(image, weight, padding=1, backend="triton", precision="ieee", **rest)
            wide = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in rest.items()}
            expected = reference.conv2d(image.double(), weight.double(), wide.pop("bias", None), padding=1, **wide)
            assert_as_good_as_torch("output", output, expected)
    assert len(replays) == 4


@pytest.mark.parametrize("change", ["shape", "dtype", "strides", "trained", "options", "switch", "scalar alpha"])
def test_a_call_that_differs_is_not_taken_for_the_same(change, replays):
    inputs, options = tensors(), {}
    run(inputs)
    if change == "shape":
        inputs[0] = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    elif change == "dtype":
        inputs[0] = inputs[0].half()
    elif change == "strides":
        inputs[1] = inputs[1].to(memory_format=torch.channels_last)
    elif change == "trained":
        inputs[1].requires_grad_()
    elif change == "scalar alpha":
        inputs[2] = inputs[2][:1].clone()
    elif change == "options":
        options = {"activation": "relu"}
    if change == "switch":
        torch.use_deterministic_algorithms(True)
    try:
        assert_right(inputs, run(inputs, **options), **options)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not replays


def test_images_of_another_layout_are_copied_and_replayed_and_their_gradient_arrives(replays):
    for seed in range(2):
        inputs = tensors(seed)
        inputs[0] = inputs[0].contiguous().requires_grad_()
        output = run(inputs)
        assert_right(inputs, output)
        assert torch.autograd.grad(output.sum(), inputs[0])[0].abs().sum() > 0
    assert len(replays) == 1


def test_autocast_of_another_dtype_is_not_taken_for_the_same(replays):
    inputs = tensors(dtype=torch.float16)
    for dtype in (torch.float16, torch.bfloat16, torch.float16, torch.bfloat16):
        with torch.autocast(DEVICE.type, dtype=dtype):
            assert run(inputs).dtype == dtype
    assert run(inputs).dtype == torch.float16
    assert len(replays) == 2


def test_a_call_with_one_tensor_twice_is_not_replayed_for_two(replays):
    """Which of the two an argument was cannot be told from it."""
    image, weight, alpha, beta, bias = tensors()
    for a, b in [(alpha, alpha), (alpha, alpha.detach()), (alpha, beta), (alpha, beta)]:
        inputs = (image, weight, a, b, bias)
        assert_right(inputs, run(inputs))


@pytest.mark.parametrize("how", ["strided", "expanded", "shifted"])
def test_alpha_and_bias_of_any_strides_are_read_right(how, replays):
    image, weight, alpha, beta, bias = tensors()
    odd = {
        "strided": lambda t: torch.stack([t, t + 1], dim=1)[:, 0],
        "expanded": lambda t: t[:1].expand(4),
        "shifted": lambda t: torch.cat([t[:1], t])[1:],
    }[how]
    for _ in range(2):
        inputs = [image.clone().requires_grad_(), weight, odd(alpha), odd(beta), odd(bias)]
        output = run(inputs)
        assert_right(inputs, output)
        wide = [image.double().requires_grad_(), *(tensor.double() for tensor in inputs[1:])]
        expected = torch.autograd.grad(reference.dirac_conv2d(*wide, padding=1).sum(), wide[0])[0]
        assert_as_good_as_torch("input", torch.autograd.grad(output.sum(), inputs[0])[0], expected)
    depthwise = [t.double() for t in (weight[:, :1], odd(bias), odd(alpha))]
    image = torch.randn(1, 4, 5, 5)
    found = td.conv2d(image, weight[:, :1], odd(bias), 1, 1, 1, 4, alpha=odd(alpha), backend="triton", precision="ieee")
    expected = reference.conv2d(image.double(), *depthwise[:2], 1, 1, 1, 4, alpha=depthwise[2])
    assert_as_good_as_torch("depthwise", found, expected)


def test_picks_that_are_forgotten_are_not_replayed(replays):
    inputs = tensors()
    run(inputs)
    autotune.forget()
    run(inputs)
    assert not replays


def test_where_torch_convolves_it_is_a_step_as_others(replays, monkeypatch):
    monkeypatch.setattr(conv, "choose", lambda *arguments, **options: "torch")
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
    settings = dirac_op.DiracSettings(1e-12, True, *geometry, None, "default", True)
    for seed in range(3):
        inputs = tensors(seed)
        if seed:
            output = dirac_op.dirac_conv2d_again(tuple(inputs), ("options",))
        else:
            output = dirac_op.dirac_conv2d(tuple(inputs), settings, ("options",))
        assert_right(inputs, output)
    assert len(replays) == 2


def test_a_warm_call_answers_like_a_cold_one_to_transforms_and_wrong_groups():
    inputs = tensors()
    for _ in range(2):
        run(inputs)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0]))
        with pytest.raises(RuntimeError, match="backend 'triton' has no rules"):
            run([dual, *inputs[1:]])
    with pytest.raises(RuntimeError, match="backend 'triton' has no rules"):
        torch.vmap(lambda scale: run([inputs[0], *inputs[1:]]) * scale)(torch.ones(2))
    for groups in ([1], 1.0):
        with pytest.raises(ValueError, match="groups must be a positive integer"):
            run(inputs, groups=groups)
    with pytest.raises(ValueError, match=r"activation must be None or one of .*'silu'.*, got 'gelu'"):
        run(inputs, activation="gelu")
    for index, name in enumerate(("input", "weight", "alpha", "beta")):
        for other in (None, [1.0]):
            with pytest.raises(TypeError, match=f"{name} must be a torch.Tensor, got"):
                run([*inputs[:index], other, *inputs[index + 1 :]])


def test_one_image_alone_is_replayed_as_a_batch_of_one(replays):
    for seed in range(2):
        inputs = tensors(seed)
        inputs[0] = inputs[0][0]
        output = run(inputs)
        assert output.shape == (4, 4, 4)
        assert_right([inputs[0][None], *inputs[1:]], output[None])
    assert len(replays) == 1


def test_a_torch_whose_guard_is_another_remembers_nothing(monkeypatch, replays):
    class Other:
        def __init__(self, *tensors):
            pass

    monkeypatch.setattr("torch._C._dynamo.guards.TensorGuards", Other)
    assert signature_cache._make_guard_of() is None
    monkeypatch.setattr(signature_cache, "guard_of", None)
    for seed in range(2):
        inputs = tensors(seed)
        assert_right(inputs, run(inputs))
    assert not replays


def test_of_one_key_the_oldest_is_forgotten_first(monkeypatch):
    monkeypatch.setattr(signature_cache, "MOST_ALIKE", 2)
    kept = SignatureCache()
    images = [torch.zeros(size) for size in (1, 2, 3)]
    for image in images:
        kept.keep("key", [image], image.shape)
        kept.keep("key", [image], image.shape)
    kept.keep("another", images, "all")
    assert [kept.find("key", [image]) for image in images] == [None, images[1].shape, images[2].shape]
    assert kept.find("another", images) == "all"


def test_many_calls_are_forgotten_in_time(replays, monkeypatch):
    monkeypatch.setattr(signature_cache, "MOST_KEYS", 3)
    for batch in range(1, 9):
        inputs = tensors()
        inputs[0] = inputs[0].expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        assert_right(inputs, run(inputs))
        assert len(dirac_op._planned) <= 3


def test_tensor_descriptors_are_made_again_for_the_tensors_of_the_moment(replays, monkeypatch):
    from triton_dirac.conv.config import Config
    from triton_dirac.conv.problem import ConvProblem

    problem = ConvProblem(16, 16, 4, 4, 16, 3, 3, padding=(1, 1, 1, 1))
    config = Config(16, 16, 16, 4, 2, "tile")
    monkeypatch.setattr("triton_dirac.conv.fprop.pick", lambda *arguments, **options: config)
    for seed in range(3):
        generator = torch.Generator(DEVICE).manual_seed(seed)
        image = torch.randn(problem.input_shape, generator=generator).to(memory_format=torch.channels_last)
        weight = torch.randn(problem.weight_shape, generator=generator)
        per_filter = torch.randn(16, generator=generator)
        inputs = (image, weight, per_filter, per_filter.square(), None)
        output = run(inputs)
        expected = reference.dirac_conv2d(*(t.double() for t in inputs[:4]), padding=1)
        assert_as_good_as_torch("output", output, expected)
    assert len(replays) == 2
    odd = torch.empty(image.numel() + 1)[1:].view(16, 4, 4, 16).permute(0, 3, 1, 2)  # 4 bytes past a multiple of 16
    odd.copy_(image)
    for runs in (2, 3):  # gathered instead, and then remembered as that
        assert_as_good_as_torch("gathered instead", run((odd, *inputs[1:])), expected)
        assert len(replays) == runs
    run(inputs)
    assert [bool(plan.launches[-1]._descriptors) for plan in replays] == [True, True, False, True]


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    """Two GPUs, scripted: the current one is the first, the tensors are on the second."""
    entered = []

    class OnSecond(torch.Tensor):
        device = torch.device("cuda", 1)

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *exception):
            pass

    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", Device)
    launched = []
    kernel = {(1,): lambda **arguments: launched.append(sorted(arguments))}
    launch.Launch(kernel, (1,), {"size": 3, "x": OnSecond()}, {"BLOCK": 4}).run()
    assert (entered, launched) == ([1], [["BLOCK", "enable_fp_fusion", "size", "x"]])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    launch.Launch(kernel, (1,), {"size": 3, "x": OnSecond()}).run()
    assert len(entered) == 1


def calls_of(step) -> list[str]:
    """Names of the functions that ``step`` calls, of Python and of C."""
    found: list[str] = []

    def profile(frame, event, argument):
        if event == "call":
            found.append(frame.f_code.co_name)
        elif event == "c_call":
            found.append(argument.__name__)

    sys.setprofile(profile)
    step()
    sys.setprofile(None)
    return found


@pytest.mark.parametrize("pass_", ["forward", "forward_backward"])
def test_a_steady_step_makes_few_calls_and_no_tensor_too_many(pass_, replays, monkeypatch):
    """What the host does for a layer, counted instead of timed: nothing is checked, planned, spelled or looked up by
    name. Forward allocates filters, norms and output; backward four gradients, filters' gradient and a workspace."""
    monkeypatch.setattr(launch.Launch, "run", lambda self: None)
    layer = td.DiracConv2d(8, 8, 3, padding=1, bias=False, backend="triton")
    image = torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    leaves, upstream = [image, *layer.parameters()], torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last)

    def step() -> None:
        output = layer(image)
        if pass_ == "forward_backward":
            torch.autograd.grad(output, leaves, upstream)

    for _ in range(3):
        step()
    monkeypatch.setattr(_Launched, "by_jit", lambda self, tensors: None)  # in place of a launch by the compiled kernel
    calls = calls_of(step)
    assert calls.count("_empty_strided_cpu") == {"forward": 3, "forward_backward": 8}[pass_]
    assert calls.count("find") == {"forward": 2, "forward_backward": 4}[pass_]
    planning = {"empty", "empty_like", "contiguous", "format", "join", "str", "repr", "pick", "choose", "first", "plan"}
    assert not planning & set(calls)
    assert len(calls) <= {"forward": 70, "forward_backward": 212}[pass_], (len(calls), calls)


def test_ten_thousand_sizes_do_not_pile_up_nor_take_ever_longer(monkeypatch):
    planned = Planned(lambda plan, image, weight: [plan.new(torch.empty(image.shape))])
    monkeypatch.setattr(signature_cache, "MOST_KEYS", 64)
    weight = torch.zeros(1)
    calls = []
    for size in range(10_000):
        image = torch.empty(size + 1)
        step = lambda image=image: planned((image, weight), ())  # noqa: E731
        if size in (500, 9_500):
            calls.append(len(calls_of(step)))
        else:
            step()
    assert len(planned) <= 64
    assert calls[1] <= calls[0] + 5


def test_what_somebody_looks_at_is_neither_remembered_nor_done_as_remembered(replays):
    """Tracers and modes must see every operation; afterwards all is as before."""

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    inputs = tensors()
    for _ in range(2):
        run(inputs)
    assert len(replays) == 1
    seen: list = []
    for mode in (Functions(), Operations()):
        with mode:
            assert_right(inputs, run(inputs))
    assert torch.ops.triton_dirac.dirac_conv2d.default in seen
    with torch.device("cpu"):  # what torch.set_default_device does changes nothing
        run(inputs)
    assert len(replays) == 2
    traced = make_fx(lambda x: run([x, *inputs[1:]]))(inputs[0])
    assert "triton_dirac.dirac_conv2d" in traced.code
    assert len(replays) == 2
    run(inputs)
    assert len(replays) == 3


def test_a_jacobian_by_vmap_over_the_backward_is_that_of_one_row_after_the_other():
    image, weight, alpha, beta, _ = tensors()
    for function in (
        lambda w: td.dirac_conv2d(image, w, alpha, beta, padding=1, backend="triton").flatten()[::40],
        lambda w: td.conv2d(image, w, padding=1, alpha=alpha, backend="triton").flatten()[::40],
        lambda w: td.dirac_weights([(w, alpha, beta), (w * 2, beta, alpha)], backend="triton")[1].flatten()[::40],
    ):
        expected = torch.autograd.functional.jacobian(function, weight)
        found = torch.autograd.functional.jacobian(function, weight, vectorize=True)
        assert torch.allclose(found, expected, atol=1e-4)
