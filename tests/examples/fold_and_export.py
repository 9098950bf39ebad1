"""Fold a trained DiracNet into plain convolutions and export it to ONNX; needs onnx and onnxscript.

python tests/examples/fold_and_export.py [net.onnx]
"""

import sys

import torch
from torch import nn

from triton_dirac import DiracConv2d, fold
from triton_dirac.models import diracnet


def main(path: str) -> None:
    torch.manual_seed(0)
    net = diracnet(10, 1, num_classes=10)
    images = torch.randn(4, 3, 32, 32)
    net(images)  # stands for a training: batch-norm has seen images
    net.eval()
    plain = fold(net)  # a copy: net can go on training
    assert not any(isinstance(module, (DiracConv2d, nn.BatchNorm2d)) for module in plain.modules())
    with torch.no_grad():
        difference = (plain(images) - net(images)).abs().max().item()
    print(f"folded: logits differ by {difference:.1e} at most")
    assert difference < 1e-4
    batch = torch.export.Dim("batch")
    torch.onnx.export(plain, (images,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    print(f"exported: {path}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["net.onnx"]))
