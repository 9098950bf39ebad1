"""The examples in docstrings, run."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import triton_dirac
from triton_dirac.models import diracnet

PACKAGE = Path(triton_dirac.__file__).parent
MODULES = sorted(
    ".".join(("triton_dirac", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)
pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_hold(name):
    """``model`` and ``images`` may stand in an example without being made there."""
    spoken_of = {"model": diracnet(10, 1), "images": torch.randn(2, 3, 8, 8)}
    found = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch, **spoken_of})
    assert found.attempted
    assert not found.failed
