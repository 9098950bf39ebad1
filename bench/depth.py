"""The depth experiment: accuracy of plain, Dirac and residual nets against their depth, on real digits, on a CPU.

python -m bench.depth --output DIR trains nets of the same width by the same recipe, each from
several seeds (those in bfloat16 from one):

    plain              ordinary convolutions, started by kaiming_normal_
    delta-orthogonal   the same, started so that each convolution keeps every pixel's length (arXiv 1806.05393)
    Dirac              DiracNets, which start next to the identity
    residual           pre-activation ResNets of the same depth
    Dirac, bfloat16    in split and in materialised form: images, filters and outputs of every Dirac convolution are
                       rounded to bfloat16 and the sums are float32's, as matrix units have it

A small copy of the paper's figure 1 (arXiv 1706.00388), which is on CIFAR-10. What is trained is on disk at once
(depth.journal.jsonl), and a run that was ended goes on. depth.json has the outcome, ``python -m reports.nets`` draws
it. All of it takes two idle cores less than half an hour.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from bench.environment import environment, load
from bench.results import output_folder, positive
from triton_dirac import reference
from triton_dirac.identity_term import diagonal, identity_rows
from triton_dirac.models import net_named
from triton_dirac.modules import DiracConv2d
from triton_dirac.runtime import files
from triton_dirac.train.data import open_data
from triton_dirac.train.loop import Training
from triton_dirac.train.options import Options, options_for
from triton_dirac.train.processes import Processes

DEPTHS = (10, 16, 28, 40, 64, 100)
KINDS = {
    "plain": "plain",
    "delta-orthogonal": "plain-delta-orthogonal",
    "Dirac": "diracnet",
    "residual": "wide-resnet",
    "Dirac, bfloat16, split": "diracnet",
    "Dirac, bfloat16, materialised": "diracnet",
}
EPOCHS, SEEDS, WIDTH = 10, 3, 1
KEY = ("kind", "depth", "seed", "epochs")  # what tells trainings apart
JOURNAL, RESULTS = "depth.journal.jsonl", "depth.json"


@dataclass(frozen=True)
class Trial:
    """One training."""

    kind: str
    depth: int
    seed: int
    epochs: int

    @property
    def key(self) -> tuple[Any, ...]:
        return key_of(asdict(self))

    @property
    def options(self) -> Options:
        net = f"{KINDS[self.kind]}-{self.depth}-{WIDTH}"
        return options_for("digits", net, epochs=self.epochs, seed=self.seed, device="cpu", channels_last=True)


class RoundedLayer(nn.Module):
    """A Dirac layer as bfloat16 has it. The identity is added to filters that are rounded (split: the sum is exact in
    float32, as the convolution's epilogue has it), or before they are (materialised)."""

    def __init__(self, layer: DiracConv2d, form: str) -> None:
        super().__init__()
        self.weight, self.alpha, self.beta = layer.weight, layer.alpha, layer.beta
        self.padding, self.form = layer.padding, form

    def filters(self) -> Tensor:
        bank = reference.dirac_weight(self.weight, self.alpha, self.beta, identity=False)
        bank = rounded(bank) if self.form == "split" else bank
        filters, channels = bank.shape[:2]
        bank = bank.clone()
        diagonal(bank, 1).add_(identity_rows(self.alpha, filters, channels, 1))
        return bank if self.form == "split" else rounded(bank)

    def forward(self, input: Tensor) -> Tensor:
        return rounded(F.conv2d(rounded(input), self.filters(), None, 1, self.padding))


def rounded(tensor: Tensor) -> Tensor:
    """To bfloat16 and back; its gradient is rounded too."""
    return tensor.bfloat16().float()


def net_of(trial: Trial) -> nn.Module:
    """The net at its start, which is that of its seed."""
    torch.manual_seed(trial.seed)
    net = net_named(trial.options.net, 10)
    form = trial.kind.rpartition(", ")[2]
    if form in ("split", "materialised"):
        for block in [module for module in net.modules() if isinstance(getattr(module, "conv", None), DiracConv2d)]:
            block.conv = RoundedLayer(block.conv, form)  # type: ignore[arg-type]
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def run(trial: Trial) -> dict[str, Any]:
    """Train it, on one core; what each epoch gave, and the core's seconds, tests included.

    alpha and beta: each Dirac layer's means, of the first seed.
    """
    torch.set_num_threads(1)
    training = Training(trial.options, open_data("digits"), Processes(torch.device("cpu")), net=net_of(trial))
    start = time.process_time()
    rows = training.run()
    spent = time.process_time() - start
    kept = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
    found: dict[str, Any] = {**asdict(trial), "cpu_seconds": number(spent)}
    found["rows"] = [{name: number(row[name]) for name in kept} for row in rows]
    if trial.seed == 0 and rows[-1]["alpha"]:
        found |= {name: [[number(mean) for mean in row[name]] for row in rows] for name in ("alpha", "beta")}
    return found


def number(value: float) -> float | None:
    """Five digits of it; None where a training diverged, since JSON has no NaN."""
    return float(f"{value:.5g}") if value == value else None


def trials(kinds: Sequence[str], depths: Sequence[int], seeds: int, epochs: int) -> list[Trial]:
    """All, seed by seed, so that a run that is ended has whole curves; the longest first. bfloat16: the first seed."""
    return [
        Trial(kind, depth, seed, epochs)
        for seed in range(seeds)
        for depth in sorted(depths, reverse=True)
        for kind in kinds
        if seed == 0 or "bfloat16" not in kind
    ]


# --- the run ------------------------------------------------------------------------------------------------


def key_of(entry: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[name] for name in KEY)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """What is trained already; a last line that a kill cut off is none."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def begun(journal: Path, now: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(where and with what the run began, what it has trained), of the journal, which is begun if there is none.

    Raises:
        ValueError: it was begun with other code or another torch.
    """
    environment, *known = read_journal(journal) or [now]
    for name in ("code", "torch"):
        if environment[name] != now[name]:
            raise ValueError(f"{journal} is of {name} {environment[name]}, now {now[name]}: name another folder")
    files.replace(journal, "".join(f"{json.dumps(entry)}\n" for entry in (environment, *known)))
    return environment, known


def run_all(
    wanted: Sequence[Trial], known: list[dict[str, Any]], journal: Path, processes: int
) -> Iterator[dict[str, Any]]:
    """Train what the journal has not, and write each there when it is trained."""
    done = {key_of(entry): entry for entry in known}
    missing = [trial for trial in wanted if trial.key not in done]
    yield from (done[trial.key] for trial in wanted if trial.key in done)
    with multiprocessing.get_context("spawn").Pool(processes) as pool, journal.open("a", encoding="utf-8") as file:
        for entry in pool.imap_unordered(run, missing):
            file.write(f"{json.dumps(entry)}\n")
            file.flush()
            yield entry


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        with files.locked(options.output, patience=0):
            return _run(options, " ".join(sys.argv[1:] if arguments is None else arguments))
    except TimeoutError as error:
        parser.error(f"--output: {error}")


def _run(options: argparse.Namespace, given: str) -> int:
    wanted = trials(options.kinds, options.depths, options.seeds, options.epochs)
    journal = options.output / JOURNAL
    now = environment(f"python -m bench.depth {given}".strip(), load_before=load())
    began, known = begun(journal, now)
    console, found = Console(stderr=True), []
    for entry in run_all(wanted, known, journal, options.processes):
        found.append(entry)
        last = entry["rows"][-1]
        console.print(
            f"{len(found):>3} of {len(wanted)}  {entry['kind']} {entry['depth']}, seed {entry['seed']}: "
            f"{last['test_accuracy']} %, {entry['cpu_seconds']} s",
            highlight=False,
        )
    found.sort(key=lambda entry: (list(KINDS).index(entry["kind"]), entry["depth"], entry["seed"]))
    document = {
        "environment": began,
        "recipe": wanted[0].options.plain()["recipe"],
        "processes": options.processes,
        "trainings": found,
    }
    files.replace(options.output / RESULTS, one_training_a_line(document))
    console.print(f"{options.output / RESULTS}")
    return 0


def one_training_a_line(document: dict[str, Any]) -> str:
    head = {name: value for name, value in document.items() if name != "trainings"}
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in document["trainings"])
    return f'{json.dumps(head)[:-1]}, "trainings": [\n{lines}\n]}}\n'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench.depth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=output_folder, required=True)
    add("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    add("--depths", nargs="+", type=positive, default=DEPTHS)
    add("--seeds", type=positive, default=SEEDS)
    add("--epochs", type=positive, default=EPOCHS)
    add("--processes", type=positive, default=2, help="trainings at a time, each on one core")
    return parser


if __name__ == "__main__":
    sys.exit(main())
