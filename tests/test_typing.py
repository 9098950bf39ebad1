"""A user's type checker over the README's examples."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_readmes_examples_are_clean_for_mypy(tmp_path):
    """``.to(memory_format=...)`` alone is in none of torch's signatures of ``Module.to``.

    With the project's settings and so its cache: to read torch takes half a minute, and ``nox -s lint`` has.
    """
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    blocks = [block for block in blocks if block.startswith("import ")]  # the others are no whole programs
    assert len(blocks) >= 2
    files = [tmp_path / f"example{index}.py" for index in range(len(blocks) + 1)]
    for file, block in zip(files, [*blocks, REST], strict=True):
        file.write_text(block, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


REST = """
import torch
from triton_dirac import DiracConv1d, DiracConv3d, fold, from_conv, parameter_groups, prepared
from triton_dirac.models import diracnet, load_official

net = diracnet(10, 1).to(memory_format=torch.channels_last)
images = torch.randn(2, 3, 32, 32)
with prepared(net):
    net(images).mean().backward()
optimiser = torch.optim.SGD(parameter_groups(net, weight_decay=5e-4), lr=0.1)
folded: torch.nn.Module = fold(net.eval(), example=images)
layer = from_conv(torch.nn.Conv2d(4, 4, 3))
filters: torch.Tensor = layer.effective_weight()
plain: torch.nn.Module = layer.fuse()
load_official(net, torch.load("net.pt"))
DiracConv1d(4, 4, 3), DiracConv3d(4, 4, 3).to("cuda").eval()
"""
