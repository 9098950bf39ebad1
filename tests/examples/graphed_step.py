"""A whole training step in a CUDA graph: the host replays it in one call. Without a GPU the step runs as it is.

python tests/examples/graphed_step.py
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_dirac import parameter_groups, prepared
from triton_dirac.models import diracnet

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WARM_UP = 3  # steps: kernels are tuned and compiled, cuDNN chooses, the optimiser makes its buffers


def graphed(step: Callable[..., Tensor], *examples: Tensor) -> Callable[..., Tensor]:
    """``step`` captured on copies of ``examples``; a call copies its inputs there and replays.

    The result is overwritten by the next call. What the host decides is decided at capture: shapes, the learning rate,
    which layers are trained. Capture anew after a change. ``step`` must not ask the device for a value (``item``).
    """
    inputs = [example.clone() for example in examples]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step(*inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step(*inputs)

    def replay(*given: Tensor) -> Tensor:
        for kept, new in zip(inputs, given, strict=True):
            kept.copy_(new)
        graph.replay()
        return result

    return replay


def main() -> None:
    torch.manual_seed(0)
    net = diracnet(10, 1, num_classes=4).to(DEVICE, memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(parameter_groups(net, weight_decay=5e-4), lr=0.02, momentum=0.9)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        optimiser.zero_grad()  # to None: the graph gives each gradient its memory
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=DEVICE.type == "cuda"):
            loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimiser.step()
        return loss.detach()

    images = torch.randn(8, 3, 16, 16, device=DEVICE).to(memory_format=torch.channels_last)
    labels = torch.randint(4, (8,), device=DEVICE)
    with prepared(net):
        train = graphed(step, images, labels) if DEVICE.type == "cuda" else step
        losses = [train(images, labels).clone() for _ in range(20)]
    print(f"loss {losses[0].item():.2f}, after {len(losses)} steps {losses[-1].item():.2f}")
    if not losses[-1] < losses[0]:
        raise SystemExit("the net did not learn")


if __name__ == "__main__":
    main()
