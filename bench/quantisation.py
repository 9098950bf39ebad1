"""What int8 weights cost a DiracNet: folded whole, and folded with the identity apart.

python -m bench.quantisation --output DIR trains a DiracNet on real digits, folds it both ways, rounds the filters of
every convolution to a few bits with one step for each filter (torch's own observer and rounding), and writes accuracy,
errors of the weights and of the logits, and what onnxruntime computes of the exported nets, to quantisation.json.
Biases, the classifier and the separate identity's scale, one number a channel, stay in float32.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import json
import statistics
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.environment import environment
from bench.results import output_folder, positive
from triton_dirac import fold
from triton_dirac.fold_separate import ConvPlusIdentity
from triton_dirac.runtime import files
from triton_dirac.train.data import TensorSplit, open_data
from triton_dirac.train.loop import Training
from triton_dirac.train.options import options_for
from triton_dirac.train.processes import Processes

BITS = (8, 6, 4)
WAYS = {"folded whole": "folded", "identity apart": "separate"}
RESULTS = "quantisation.json"


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Filters rounded to so many bits, symmetrically, with a step for each, and back."""
    largest = 2 ** (bits - 1) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.ao moves to another package
        observer = torch.ao.quantization.PerChannelMinMaxObserver(
            ch_axis=0,
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
            quant_min=-largest - 1,
            quant_max=largest,
        )
        observer(weight)
        steps, zeros = observer.calculate_qparams()
    return torch.fake_quantize_per_channel_affine(weight, steps, zeros.int(), 0, -largest - 1, largest)


@torch.no_grad()
def with_rounded_filters(net: nn.Module, bits: int) -> nn.Module:
    """A copy of which every convolution has rounded filters."""
    copied = copy.deepcopy(net)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(rounded(module.weight, bits))
    return copied


def weight_errors(net: nn.Module, apart: nn.Module, bits: int) -> list[float]:
    """Of each filter of the Dirac layers: the rounding's error by the size of what is beside the identity."""
    found = []
    for name, module in apart.named_modules():
        if isinstance(module, ConvPlusIdentity):
            mine: Any = net.get_submodule(name)
            layer: Any = mine.conv if isinstance(mine, ConvPlusIdentity) else mine
            weight = layer.weight.detach()
            error = (rounded(weight, bits) - weight).flatten(1).norm(dim=1)
            filters: Any = module.conv
            beside = filters.weight.detach().flatten(1).norm(dim=1)
            found += (error / beside.clamp_min(1e-12)).tolist()
    return found


@torch.no_grad()
def logits_of(net: nn.Module, split: TensorSplit) -> Tensor:
    logits: Tensor = net.eval()(split.images)
    return logits


def accuracy(logits: Tensor, split: TensorSplit) -> float:
    """Percent."""
    return 100 * (logits.argmax(1) == split.labels).double().mean().item()


def in_onnxruntime(net: nn.Module, images: Tensor) -> Tensor:
    """What onnxruntime computes of the exported net."""
    import onnxruntime

    file: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (images,), dynamo=True, verbose=False).save(file)  # type: ignore[union-attr]
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.as_tensor(output)


def measure(net: nn.Module, test: TensorSplit) -> list[dict[str, Any]]:
    """A row for each way to fold and number of bits; bits None: as folded."""
    folded = {way: fold(net, example=test.images[:2], identity=identity) for way, identity in WAYS.items()}
    plain = logits_of(net, test)
    rows = []
    for way, whole in folded.items():
        for bits in (None, *BITS):
            judged = whole if bits is None else with_rounded_filters(whole, bits)
            logits = logits_of(judged, test)
            errors = [] if bits is None else weight_errors(whole, folded["identity apart"], bits)
            row = {"way": way, "bits": bits, "accuracy": accuracy(logits, test)}
            row |= {"logit_error": ((logits - plain).norm() / plain.norm()).item()}
            row |= {"weight_error": statistics.median(errors) if errors else 0.0}
            if bits in (None, 8):
                row |= {"onnxruntime_accuracy": accuracy(in_onnxruntime(judged, test.images), test)}
            rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    for needed in ("onnxruntime", "onnxscript"):  # said before the training, and not after
        if importlib.util.find_spec(needed) is None:
            parser.error(f"{needed} is not installed: pip install {needed}")
    given = " ".join(sys.argv[1:] if arguments is None else arguments)
    now = environment(f"python -m bench.quantisation {given}".strip())
    data, chosen = open_data("digits"), options_for("digits", options.net, epochs=options.epochs, channels_last=True)
    training = Training(chosen, data, Processes(torch.device("cpu")))
    trained = training.run()
    net = training.net.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert isinstance(data.test, TensorSplit)
    rows = measure(net, data.test)
    document = {"environment": now, "net": options.net, "epochs": options.epochs, "rows": rows}
    document |= {"accuracy": trained[-1]["test_accuracy"]}
    files.replace(options.output / RESULTS, json.dumps(document, indent=1) + "\n")
    for row in rows:
        print(row)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench.quantisation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=output_folder, required=True)
    parser.add_argument("--net", default="diracnet-28-1")
    parser.add_argument("--epochs", type=positive, default=10)
    return parser


if __name__ == "__main__":
    sys.exit(main())
