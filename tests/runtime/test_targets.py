"""GPU targets as plain data."""

import pytest
import torch

from triton_dirac.runtime.targets import INTERPRETER, TARGETS, target_of


@pytest.mark.parametrize(
    "name, wanted, given",
    [
        ("cuda:80", "tf32x3", "tf32x3"),
        ("hip:gfx942", "tf32", "tf32"),
        ("hip:gfx942", "tf32x3", "ieee"),
        ("hip:gfx950", "tf32", "ieee"),
        ("hip:gfx950", "ieee", "ieee"),
    ],
)
def test_a_precision_that_the_target_lacks_becomes_ieee(name, wanted, given):
    assert TARGETS[name].precision(wanted) == given


def test_names_are_taken_apart_as_tritons_gputarget_wants_them():
    assert (TARGETS["cuda:90"].backend, TARGETS["cuda:90"].arch) == ("cuda", 90)
    assert (TARGETS["hip:gfx942"].backend, TARGETS["hip:gfx942"].arch) == ("hip", "gfx942")


def test_without_a_gpu_the_interpreters_target_is_given():
    assert target_of(torch.device("cpu")) is INTERPRETER
