"""How nets are trained: the published recipe of each data set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum; the learning rate is multiplied by ``factor`` at each of ``drops``, fractions of the training.

    Weight decay is of the filters and the classifier's matrix alone (``triton_dirac.parameter_groups``).
    """

    batch: int = 128
    epochs: int = 200
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    drops: tuple[float, ...] = (0.3, 0.6, 0.8)
    factor: float = 0.2

    def drop_steps(self, steps: int) -> list[int]:
        """The steps, of ``steps`` in all, before which the learning rate drops."""
        return [round(fraction * steps) for fraction in self.drops]


# arXiv 1706.00388, section 4: CIFAR drops at epochs 60, 120 and 160 of 200, ImageNet at 30, 60 and 90 of 100. Digits
# take CIFAR's recipe with smaller batches and fewer epochs: they are 1,438 images of 8 x 8 to train on.
CIFAR = Recipe()
RECIPES = {
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "imagenet": Recipe(batch=256, epochs=100, weight_decay=1e-4, drops=(0.3, 0.6, 0.9), factor=0.1),
    "digits": Recipe(batch=64, epochs=30),
}
