"""VGG-16 for CIFAR: the plain net of before residual ones, with batch-norm."""

from __future__ import annotations

from torch import nn

from triton_dirac.module_checks import positive_integer

GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # (channels, convolutions): configuration D


def vgg16(num_classes: int = 10) -> nn.Sequential:
    """Thirteen 3x3 convolutions with BatchNorm and ReLU, max-pooling after each of five groups, one linear layer.

    For images of 32 x 32, which are one pixel at the end. The convolutions are those of Simonyan and Zisserman,
    arXiv 1409.1556. It has 14.7M parameters: the DiracNets paper prints 20M beside VGG-16 and does not describe its
    net; 20.0M are VGG-19's with the same classifier.
    """
    num_classes = positive_integer("num_classes", num_classes)
    layers: list[nn.Module] = []
    channels = 3
    for width, count in GROUPS:
        for _ in range(count):
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, num_classes))
