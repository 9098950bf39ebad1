"""Train a small DiracNet: which quarter of a noisy image is bright? On a GPU in bfloat16, elsewhere on the CPU.

python tests/examples/train.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_dirac import parameter_groups, prepared
from triton_dirac.models import diracnet

STEPS, BATCH, SIZE = 40, 32, 16
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images, channels-last as the kernels want them, and the number of the bright quarter."""
    labels = torch.randint(4, (BATCH,), generator=generator)
    images = torch.randn(BATCH, 3, 2, SIZE // 2, 2, SIZE // 2, generator=generator)
    images[torch.arange(BATCH), :, labels // 2, :, labels % 2] += 1
    images = images.view(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    return images.to(DEVICE), labels.to(DEVICE)


def main() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = diracnet(16, 1, num_classes=4).to(DEVICE, memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(parameter_groups(net, weight_decay=5e-4), lr=0.05, momentum=0.9)
    losses = []
    with prepared(net):  # each step prepares the weights of all layers in one launch
        for _ in range(STEPS):
            images, labels = draw(generator)
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=DEVICE.type == "cuda"):
                loss = F.cross_entropy(net(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
    first, last = (torch.stack(part).mean().item() for part in (losses[:10], losses[-10:]))
    print(f"loss of the first ten steps {first:.2f}, of the last ten {last:.2f}")
    if not last < 0.5 * first:
        raise SystemExit("the net did not learn")


if __name__ == "__main__":
    main()
