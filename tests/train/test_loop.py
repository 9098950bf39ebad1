"""What a training does: the published recipe, in every way that a step may run, on one process or several."""

import csv
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from tests.train.small import CPU, assert_same_state, few_images, final_state, options, training
from triton_dirac.modules import DiracConv2d
from triton_dirac.runtime import files
from triton_dirac.train import __main__ as command
from triton_dirac.train.log import write_log
from triton_dirac.train.loop import Training
from triton_dirac.train.options import options_for
from triton_dirac.train.recipe import RECIPES
from triton_dirac.train.step import GraphedStep

pytestmark = pytest.mark.cpu
ROOT = __file__.rpartition("/tests/")[0]


def test_the_recipes_are_the_published_ones():
    cifar, imagenet = RECIPES["cifar10"], RECIPES["imagenet"]
    assert (cifar.batch, cifar.epochs, cifar.lr, cifar.momentum, cifar.weight_decay) == (128, 200, 0.1, 0.9, 5e-4)
    assert (cifar.drop_steps(200), cifar.factor) == ([60, 120, 160], 0.2)
    assert (imagenet.batch, imagenet.epochs, imagenet.weight_decay) == (256, 100, 1e-4)
    assert (imagenet.drop_steps(100), imagenet.factor) == ([30, 60, 90], 0.1)


def test_a_training_is_sgd_by_its_definition():
    """Against a loop that is written out, parameter by parameter."""
    ours = training(epochs=2)
    twin = training(epochs=2)
    parameters = dict(twin.net.named_parameters())
    momentum = {name: torch.zeros_like(p) for name, p in parameters.items()}
    lrs, step = [], 0
    for epoch in range(2):
        for images, labels in twin.data.train.batches(twin._draws(epoch)):
            lr = 0.05 * 0.2 ** sum(step >= drop for drop in (3, 6, 8))
            lrs.append(lr)
            loss = torch.nn.functional.cross_entropy(twin.net(images), labels)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            with torch.no_grad():
                for (name, p), gradient in zip(parameters.items(), gradients, strict=True):
                    decayed = gradient + 5e-4 * p if p.dim() > 1 else gradient
                    momentum[name] = 0.9 * momentum[name] + decayed
                    p -= lr * momentum[name]
            step += 1
    rows = ours.run()
    assert [row["lr"] for row in rows] == pytest.approx([lrs[4], lrs[9]])
    for name, p in ours.net.named_parameters():
        torch.testing.assert_close(p, parameters[name], rtol=1e-3, atol=1e-5)


def test_it_learns_and_says_so():
    rows = training(epochs=10, lr=0.1).run()
    assert [row["epoch"] for row in rows] == list(range(1, 11))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] / 2
    assert rows[-1]["test_accuracy"] > 60  # of four classes
    assert all(row["images_per_second"] > 0 for row in rows)
    net = training().net
    layers = [module for module in net.modules() if isinstance(module, DiracConv2d)]
    assert len(rows[0]["alpha"]) == len(rows[0]["beta"]) == len(layers)
    assert rows[-1]["alpha"][0] == pytest.approx(1, abs=0.3)


def test_its_test_is_of_all_test_images_in_evaluation_mode():
    done = training(epochs=1)
    row = done.run()[0]
    split = done.data.test
    logits = done.net.eval()(split.images)
    assert row["test_accuracy"] == pytest.approx(100 * (logits.argmax(1) == split.labels).double().mean().item())
    loss = torch.nn.functional.cross_entropy(logits, split.labels)
    assert row["test_loss"] == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")  # float16's first loss scale is too large
@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16", "form": "materialised"},
        {"dtype": "float16"},
        {"channels_last": True},
        {"net": "plain-delta-orthogonal-10-1"},
        {"net": "resnet-8-1", "data_size": 8},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_other_ways_to_run_a_step_learn_too(changes):
    changes.pop("data_size", None)
    done = training(epochs=4, lr=0.1, **changes)
    rows = done.run()
    assert rows[-1]["train_loss"] < 0.8 * rows[0]["train_loss"]
    if changes.get("channels_last"):
        assert next(p for p in done.net.parameters() if p.dim() == 4).is_contiguous(memory_format=torch.channels_last)
    if form := changes.get("form"):
        assert {module.form for module in done.net.modules() if isinstance(module, DiracConv2d)} == {form}


def test_a_compiled_net_trains_to_the_same_numbers(monkeypatch):
    torch._dynamo.reset()
    compile_net = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: compile_net(net, backend="aot_eager"))
    expected, found = training(epochs=1).run(), training(epochs=1, compile=True).run()
    assert found[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], rel=1e-3)


def test_a_graphed_step_is_captured_after_three_and_again_when_the_learning_rate_falls(monkeypatch):
    """Without a GPU the graph is played: what it was captured of, and when, is what is tested."""

    class Step:
        optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)

        def __init__(self):
            self.calls = []

        def __call__(self, images, labels):
            self.calls.append(images)
            return images.sum()

    step, nothing = Step(), lambda *_: None

    class Aside:
        wait_stream = nothing
        __enter__ = __exit__ = nothing

    monkeypatch.setattr(torch.cuda, "Stream", Aside)
    monkeypatch.setattr(torch.cuda, "current_stream", Aside)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: Aside())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: Aside())
    monkeypatch.setattr(torch.cuda, "synchronize", nothing)
    monkeypatch.setattr(Aside, "replay", lambda self: None, raising=False)
    made = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(Aside()) or made[-1])
    graphed = GraphedStep(step)
    for number in range(6):
        graphed(torch.full((2,), float(number)), torch.zeros(2))
    assert len(step.calls) == 4  # three eager ones, and one that was captured
    assert len(made) == 1
    assert torch.equal(step.calls[-1], torch.full((2,), 5.0))  # the capture's own images, filled at each replay
    step.optimiser.param_groups[0]["lr"] = 0.02
    graphed(torch.ones(2), torch.zeros(2))
    assert len(made) == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"net": "densenet"}, "net must be one of diracnet-DEPTH-WIDTH"),
        ({"net": "vgg-16"}, "net must be for images of 8 x 8, which vgg-16 is not"),
        ({"batch": 41}, "batch must be at most the number of training images, 40, got 41"),
        ({"graph": True}, "graph must be False without a GPU"),
        ({"graph": True, "dtype": "float16"}, "graph must be False with float16's loss scaling"),
        ({"graph": True, "compile": True}, "graph and compile must not both be set"),
        ({"dtype": "float8"}, "dtype must be one of float32, float16, bfloat16, got 'float8'"),
        ({"form": "whole"}, "form must be one of split, materialised, got 'whole'"),
        ({"lr": 0.0}, "lr must be a positive number, got 0.0"),
        ({"epochs": 0}, "epochs must be a positive integer, got 0"),
        ({"momentum": 1.0}, r"momentum must be in 0..1, got 1.0"),
        ({"backend": "cudnn"}, "backend must be one of"),
    ],
)
def test_options_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        training(**changes)


def test_another_data_set_is_refused():
    with pytest.raises(ValueError, match="data must be one of cifar10, cifar100, imagenet, digits, got 'mnist'"):
        options_for("mnist", "diracnet-10-1")


# --- the command --------------------------------------------------------------------------------------------

FIRST = ["--data", "digits", "--net", "diracnet-10-1", "--device", "cpu", "--epochs", "2", "--batch", "479"]


def test_the_command_leaves_a_log_a_figure_and_a_checkpoint(tmp_path, capsys):
    arguments = [*FIRST, "--output", str(tmp_path / "run")]
    assert command.main(arguments) == 0
    said = capsys.readouterr().err
    assert "epoch   2 of 2" in said
    assert "test accuracy" in said
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    assert log["options"]["recipe"]["weight_decay"] == 5e-4
    assert log["epochs"][1]["test_accuracy"] == float(rows[1]["test_accuracy"])
    ElementTree.parse(tmp_path / "run" / "curves.svg")
    assert final_state(tmp_path / "run")["epoch"] == 2
    assert command.main([*arguments, "--resume"]) == 0


def test_a_training_that_diverged_is_json(tmp_path):
    """NaN is none; null is."""
    rows = [{"epoch": 1, "train_loss": float("nan"), "test_loss": float("inf"), "alpha": [0.5, float("nan")]}]
    write_log(tmp_path, options(), rows)
    text = (tmp_path / "log.json").read_text()
    (epoch,) = json.loads(text, parse_constant=pytest.fail)["epochs"]
    assert epoch == {"epoch": 1, "train_loss": None, "test_loss": None, "alpha": [0.5, None]}


def test_a_training_that_diverged_says_so_at_its_end(tmp_path, capsys):
    assert command.main([*FIRST, "--lr", "1e30", "--output", str(tmp_path)]) == 0
    assert "diverged: the last epoch's loss is nan" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--net", "diracnet-11-1"], r"depth must be 6n \+ 4"),
        (["--data", "cifar10"], "root must be the folder of cifar10, got none"),
        (["--data", "cifar10", "--root", "nowhere"], "root must be or hold cifar-10-batches-py"),
        (["--root", "."], r"root must be none for digits, which scikit-learn brings, got '\.'"),
        (["--graph"], "graph must be False without a GPU"),
        (["--lr", "-1"], "lr must be a positive number, got -1.0"),
        (["--output", "/proc/none"], "No such file or directory|Permission denied|Read-only"),
    ],
)
def test_the_command_refuses_in_a_line(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        command.main([*FIRST, "--output", str(tmp_path), *arguments])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


def test_the_command_does_not_overwrite_a_training(tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(SystemExit):
        command.main([*FIRST, "--output", str(tmp_path)])
    assert "checkpoint.pt is there already: resume it" in capsys.readouterr().err


def test_the_command_trains_in_a_folder_of_its_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "PATIENCE", 0)
    with files.locked(tmp_path), pytest.raises(SystemExit) as stopped:
        command.main([*FIRST, "--output", str(tmp_path), "--resume"])
    assert stopped.value.code == 2
    assert f"{tmp_path} is in use by another process" in capsys.readouterr().err


# --- several processes --------------------------------------------------------------------------------------

TOGETHER = """
import os, signal, sys, torch
from pathlib import Path
from tests.train.small import few_images, options
from triton_dirac.train import checkpoint
from triton_dirac.train.loop import Stopped, Training
from triton_dirac.train.processes import joined

class Ended(Exception): pass

class AfterAnEpoch:
    def step(self, epoch, step, sums): pass
    def epoch(self, row): raise Ended

class AsksTheSecond:
    def step(self, epoch, step, sums):
        if (epoch, step, processes.rank) == (0, 2, 1):
            os.kill(os.getpid(), signal.SIGTERM)
    def epoch(self, row): pass

torch.set_num_threads(1)
with joined("cpu") as processes:
    def training(name, resume=False):
        return Training(options(epochs=2), few_images(), processes, Path(sys.argv[1]) / name, resume=resume)
    training("whole").run()
    try:
        training("broken").run(AfterAnEpoch())
    except Ended:
        training("broken", resume=True).run()
    try:
        training("asked").run(AsksTheSecond())
    except Stopped:
        state = checkpoint.load(Path(sys.argv[1]) / "asked" / "checkpoint.pt")
        assert (state["epoch"], state["step"]) == (0, 5), "the epoch's last step, where they agree on it"
        training("asked", resume=True).run()
    else:
        raise AssertionError("it did not end")
"""


def test_two_processes_train_together_end_together_and_resume(tmp_path):
    program = tmp_path / "together.py"
    program.write_text(TOGETHER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, str(program), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    whole, *others = (final_state(tmp_path / name) for name in ("whole", "broken", "asked"))
    for other in others:
        assert_same_state(other, whole)
    rows = whole["rows"]
    assert len(rows) == 2
    alone = Training(options(epochs=2), few_images(), CPU)
    assert rows[0]["train_loss"] == pytest.approx(alone.run()[0]["train_loss"], rel=0.2)  # each norms its own half
    with pytest.raises(ValueError, match="the checkpoint is of 2 processes, now 1"):
        Training(options(epochs=2), few_images(), CPU, tmp_path / "whole", resume=True)
