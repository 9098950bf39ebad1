"""What the tests of convolutions share beside their cases."""

from dataclasses import replace

import pytest

from triton_dirac.runtime.targets import INTERPRETER


@pytest.fixture
def two_programs(monkeypatch):
    """A GPU that holds two programs, so that each takes many tiles."""
    target = replace(INTERPRETER, units=2, shared_bytes=1)
    monkeypatch.setattr("triton_dirac.conv.launch.target_of", lambda device: target)
