"""Modules under their former names: the same objects, with a warning that says where they are now."""

import importlib
import subprocess
import sys

import pytest
import torch

from tests.tolerance import assert_as_good_as_torch
from triton_dirac import reference
from triton_dirac.moved import FORMER_CALLS, MOVED

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("name", MOVED)
def test_a_former_name_gives_todays_module(name):
    former = [known for known in sys.modules if known.removeprefix("triton_dirac.") in MOVED]
    for known in former:  # imported by another test
        del sys.modules[known]
    with pytest.warns(DeprecationWarning, match=f"triton_dirac.{name} is triton_dirac.{MOVED[name]} now"):
        former = importlib.import_module(f"triton_dirac.{name}")
    today = importlib.import_module(f"triton_dirac.{MOVED[name]}")
    assert (former is today) == (MOVED[name] not in FORMER_CALLS)
    assert set(vars(former)) == set(vars(today))
    assert former.__name__ == former.__spec__.name == f"triton_dirac.{MOVED[name]}"


def test_imports_of_every_form_work_and_warn_in_the_caller():
    code = """
from triton_dirac.problem import ConvProblem
from triton_dirac.tuning import timings
from triton_dirac.kernels.conv_direct import plan_direct_fprop
import triton_dirac.kernels.descriptors as tables
from triton_dirac.conv.problem import ConvProblem as today
assert ConvProblem is today and timings.Store and tables.DescriptorTables
"""
    environment = {"PYTHONPATH": ":".join(sys.path), "TRITON_INTERPRET": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "triton_dirac.problem is triton_dirac.conv.problem now" in done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("relu", [False, True])
def test_former_calls_take_bias_alpha_and_relu(relu, device):
    from triton_dirac.kernels import conv_direct, conv_fprop

    from triton_dirac.conv.problem import ConvProblem

    problem = ConvProblem(1, 2, 3, 3, 2, 3, 3, padding=(1, 1, 1, 1))
    x, w = torch.randn(problem.input_shape, device=device), torch.randn(problem.weight_shape, device=device)
    bias, alpha = torch.randn(2, device=device), torch.randn(2, device=device)
    activation = "relu" if relu else None
    expected = reference.conv2d(*(t.double() for t in (x, w, bias)), padding=1, alpha=alpha, activation=activation)
    for former in (conv_direct.direct_fprop, conv_fprop.fprop):
        assert_as_good_as_torch("output", former(x, w, bias, alpha, problem, relu=relu), expected)
    (launch,) = conv_direct.plan_direct_fprop(x, w, torch.empty_like(x), None, None, problem, relu=relu)
    assert launch.constexprs["ACTIVATION"] == activation


def test_other_names_are_unknown():
    with pytest.raises(ModuleNotFoundError, match=r"triton_dirac\.nothing"):
        importlib.import_module("triton_dirac.nothing")
