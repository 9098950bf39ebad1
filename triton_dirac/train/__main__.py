"""Train any of the nets: python -m triton_dirac.train --data digits --net diracnet-16-1 --epochs 3 --output runs/first

The published recipe of the data set is the default: SGD with momentum 0.9, learning rate 0.1 and its drops, weight
decay of the filters alone. The output folder has log.csv, log.json, curves.svg and checkpoint.pt; SIGTERM or Ctrl-C
saves and ends, --resume goes on, to the same numbers as if it had not ended. Several GPUs or machines:
torchrun --nproc-per-node=gpu -m triton_dirac.train ...
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from triton_dirac.functional import BACKENDS, FORMS
from triton_dirac.models.named import ACCEPTED
from triton_dirac.runtime import files
from triton_dirac.train.data import open_data
from triton_dirac.train.log import LOGS, draw_curves
from triton_dirac.train.loop import CHECKPOINT, Stopped, Training
from triton_dirac.train.options import DTYPES, Options, options_for
from triton_dirac.train.processes import joined
from triton_dirac.train.recipe import RECIPES

CURVES = "curves.svg"
STOPPED = 143  # the exit status of a process that SIGTERM ended
# Seconds that the output folder is waited for: processes that decode images have its lock as well, being forked, and
# end within 5 of a training that is killed.
PATIENCE = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    output, resume, data, net = (given.pop(name) for name in ("output", "resume", "data", "net"))
    try:
        import matplotlib  # noqa: F401 - said before hours of training, and not after
        import rich  # noqa: F401
    except ImportError as error:
        parser.error(f"{error}: pip install 'triton-dirac[train]'")
    try:
        options = options_for(data, net, **given)
        for name in (CHECKPOINT, *LOGS, CURVES):  # before hours of training, too
            files.require_writable(output / name)
        return _train(options, output, resume)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.error(str(error))


def _train(options: Options, output: Path, resume: bool) -> int:
    from triton_dirac.train.progress import Bar

    with joined(options.device) as processes, contextlib.ExitStack() as alone:
        if processes.is_first:
            alone.enter_context(files.locked(output, PATIENCE))
        data = open_data(options.data, Path(options.root) if options.root else None, options.workers)
        training = Training(options, data, processes, output, resume=resume)
        recipe = options.recipe
        try:
            if processes.is_first:
                done = training.epoch * training.steps + training.step
                with Bar(recipe.epochs, training.steps, done, recipe.batch) as bar:
                    rows = training.run(bar)
            else:
                rows = training.run()
        except Stopped:
            if processes.is_first:
                print(f"ended as asked, saved in {output}; --resume goes on", file=sys.stderr)
            return STOPPED
        if processes.is_first:
            draw_curves(output / CURVES, rows, f"{options.net} on {options.data}")
            if not math.isfinite(rows[-1]["train_loss"]):
                print(f"diverged: the last epoch's loss is {rows[-1]['train_loss']}", file=sys.stderr)
            print(f"test accuracy {rows[-1]['test_accuracy']:.2f} %; {output / CURVES}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m triton_dirac.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--net", required=True, help=ACCEPTED)
    add("--data", required=True, choices=tuple(RECIPES), help="digits needs no files")
    add("--root", help="the folder of CIFAR's files (Python or binary version) or of ImageNet's train/ and val/")
    add("--output", type=Path, required=True, help="the folder of checkpoint and logs")
    add("--resume", action="store_true", help="go on from the output folder's checkpoint, if it has one")
    published = "default: as published"
    add("--epochs", type=int, help=published)
    add("--batch", type=int, help=f"images of a step, of all processes together; {published}")
    add("--lr", type=float, help=published)
    add("--momentum", type=float, help=published)
    add("--weight-decay", type=float, help=published)
    add("--seed", type=int, default=0)
    add("--dtype", choices=tuple(DTYPES), default="float32", help="of the forward pass, by autocast")
    add("--form", choices=FORMS, default="split", help="of the Dirac convolutions")
    add("--backend", choices=BACKENDS, default="auto", help="of the Dirac convolutions")
    add("--device", choices=("cuda", "cpu"), help="default: a GPU if there is one")
    add("--channels-last", action=switch, default=None, help="default: on a GPU")
    add("--compile", action="store_true", help="by torch.compile")
    add("--graph", action="store_true", help="capture the step in a CUDA graph")
    add("--workers", type=int, default=4, help="processes that decode ImageNet's images")
    add("--checkpoint-every", type=int, default=0, metavar="STEPS", help="besides at the end of every epoch")
    return parser


if __name__ == "__main__":
    sys.exit(main())
