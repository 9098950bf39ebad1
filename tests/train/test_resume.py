"""A training that was ended, in whatever way and at whatever step, goes on to the same bits as an unbroken one."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.train.small import CPU, assert_same_state, few_images, final_state, lasting, options, training
from triton_dirac.train import checkpoint
from triton_dirac.train.__main__ import main
from triton_dirac.train.loop import CHECKPOINT, Stopped, Training
from triton_dirac.train.processes import joined

pytestmark = pytest.mark.cpu
ROOT = __file__.rpartition("/tests/")[0]


@pytest.fixture(autouse=True)
def _one_thread():
    """As in the processes that are killed: sums of several threads come in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("unbroken")
    training(folder).run()
    return folder


class StopAt:
    """Asks the process to end after so many steps, as a scheduler does."""

    def __init__(self, steps):
        self.left = steps

    def step(self, epoch, step, sums):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def epoch(self, row):
        pass


@pytest.mark.parametrize("steps", [1, 5, 8])
def test_sigterm_saves_and_the_training_goes_on_from_that_step(unbroken, tmp_path, steps):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        training(tmp_path).run(StopAt(steps))
    assert signal.getsignal(signal.SIGTERM) is before
    state = checkpoint.load(tmp_path / CHECKPOINT)
    assert 5 * state["epoch"] + state["step"] == steps
    torch.rand(7)  # another process has drawn other numbers
    training(tmp_path, resume=True).run()
    assert_same_state(final_state(tmp_path), final_state(unbroken))


class AskedToEnd:
    """A split within whose first batch the process is asked to end."""

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return len(self.split)

    def batches(self, draws):
        for number, batch in enumerate(self.split.batches(draws)):
            assert number == 0, "it went on"
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def test_sigterm_within_a_test_does_not_wait_for_its_end(unbroken, tmp_path):
    """ImageNet's takes minutes, which no scheduler waits."""
    run = training(tmp_path)
    run.data = replace(run.data, test=AskedToEnd(run.data.test))
    with pytest.raises(Stopped):
        run.run()
    state = checkpoint.load(tmp_path / CHECKPOINT)
    assert (state["epoch"], state["step"], state["rows"]) == (0, 5, [])
    training(tmp_path, resume=True).run()
    assert_same_state(final_state(tmp_path), final_state(unbroken))


@pytest.mark.parametrize("stage", ["half", "whole"])
def test_a_kill_while_a_checkpoint_is_written_costs_the_steps_since_the_last(unbroken, tmp_path, stage):
    """kill -9 within the fourth write, in the second epoch."""
    command = [sys.executable, "-m", "tests.train.small", str(tmp_path), "4", stage]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
    state = checkpoint.load(tmp_path / CHECKPOINT)  # the third write's, whole
    assert (state["epoch"], state["step"]) == (1, 0)
    assert list(tmp_path.glob(".*.part"))
    training(tmp_path, resume=True).run()
    assert_same_state(final_state(tmp_path), final_state(unbroken))
    assert not list(tmp_path.glob(".*.part"))
    logs = [json.loads((folder / "log.json").read_text())["epochs"] for folder in (tmp_path, unbroken)]
    assert lasting({"rows": logs[0]}) == lasting({"rows": logs[1]})


@pytest.mark.parametrize("net", ["diracnet-v1-10-1", "wide-resnet-10-1"])
def test_the_other_nets_resume_too(tmp_path, net):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    training(whole, net=net, epochs=2, dtype="bfloat16").run()
    with pytest.raises(Stopped):
        training(broken, net=net, epochs=2, dtype="bfloat16").run(StopAt(7))
    training(broken, resume=True, net=net, epochs=2, dtype="bfloat16").run()
    assert_same_state(final_state(broken), final_state(whole))


def test_a_state_that_was_changed_is_noticed(unbroken):
    """That the comparison above can fail."""
    state, other = final_state(unbroken), final_state(unbroken)
    other["optimiser"]["state"][0]["momentum_buffer"][0] += 1e-6
    with pytest.raises(AssertionError, match=r"state\.optimiser\.state\.0\.momentum_buffer"):
        assert_same_state(other, state)


def test_random_generators_go_on_where_they_were(tmp_path):
    with pytest.raises(Stopped):
        training(tmp_path).run(StopAt(3))
    expected = torch.rand(3)
    torch.manual_seed(99)
    training(tmp_path, resume=True)
    assert torch.equal(torch.rand(3), expected)


def test_a_finished_training_is_not_trained_again(unbroken):
    before = (unbroken / CHECKPOINT).read_bytes()
    assert len(training(unbroken, resume=True).run()) == 3
    assert (unbroken / CHECKPOINT).read_bytes() == before


def test_a_checkpoint_is_not_overwritten_unasked_nor_taken_for_another_training(unbroken, tmp_path):
    with pytest.raises(FileExistsError, match=r"checkpoint.pt is there already: resume it, or name another folder"):
        training(unbroken)
    with pytest.raises(ValueError, match=r"of another training: net 'diracnet-10-1', now 'plain-10-1'; seed 0, now 3"):
        training(unbroken, resume=True, net="plain-10-1", seed=3)
    cut = (unbroken / CHECKPOINT).read_bytes()[:4000]
    (tmp_path / CHECKPOINT).write_bytes(cut)
    with pytest.raises(ValueError, match=r"checkpoint.pt is no whole checkpoint"):
        training(tmp_path, resume=True)
    torch.save({"net": {}}, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match=r"checkpoint.pt is no checkpoint of a training"):
        training(tmp_path, resume=True)


@pytest.mark.parametrize("part", ["net", "optimiser", "options", "random", "rows", "sums", "epoch"])
def test_a_checkpoint_with_a_part_that_is_none_is_refused(unbroken, tmp_path, part):
    value = {"rows": [], "random": [], "sums": "text", "epoch": None, "options": None}.get(part, {})
    state = checkpoint.load(unbroken / CHECKPOINT)
    checkpoint.save(tmp_path / CHECKPOINT, {**state, part: value})
    with pytest.raises(ValueError, match=r"checkpoint.pt is no checkpoint of such a training|epochs, and has rows of"):
        training(tmp_path, resume=True)


@pytest.mark.parametrize("name", [CHECKPOINT, "log.csv", "log.json", "curves.svg"])
def test_what_cannot_be_written_is_refused_before_the_training(tmp_path, name, capsys):
    (tmp_path / name).mkdir()
    with pytest.raises(SystemExit, match="2"):
        main(["--data", "digits", "--net", "diracnet-10-1", "--epochs", "1", "--output", str(tmp_path)])
    assert f"Is a directory: '{tmp_path / name}'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_numbers_that_are_none_are_named(monkeypatch):
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match=f"seed must be an integer of 64 bits, got {seed}"):
            options(seed=seed)
    for text in ("nonsense", "0", "-1"):
        monkeypatch.setenv("WORLD_SIZE", text)
        with pytest.raises(ValueError, match=f"WORLD_SIZE must be .* from 1 on, .*, got '{text}'"), joined("cpu"):
            pass


def test_a_failed_write_leaves_the_checkpoint_before(unbroken, tmp_path, monkeypatch):
    run = training(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(Stopped):
        run.run(StopAt(2))
    before = (tmp_path / CHECKPOINT).read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Training(options(), few_images(), CPU, tmp_path, resume=True).run()
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))
