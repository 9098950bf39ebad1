"""The depth experiment and the quantisation table: what is trained, rounded, and gone on with."""

import json

import pytest
import torch
from torch import nn

from bench import depth, published, quantisation
from bench.depth import RoundedLayer, Trial, trials
from triton_dirac import DiracConv2d, fold, reference
from triton_dirac.models import diracnet
from triton_dirac.runtime import files
from triton_dirac.train.data import TensorSplit


def test_trials_come_seed_by_seed_the_longest_first_and_bfloat16_of_one_seed():
    found = trials(("plain", "Dirac, bfloat16, split"), (10, 100), 2, 5)
    assert [(t.kind, t.depth, t.seed) for t in found] == [
        ("plain", 100, 0), ("Dirac, bfloat16, split", 100, 0), ("plain", 10, 0), ("Dirac, bfloat16, split", 10, 0),
        ("plain", 100, 1), ("plain", 10, 1),
    ]  # fmt: skip
    assert {t.epochs for t in found} == {5}


@pytest.mark.parametrize("kind", depth.KINDS)
def test_every_kind_has_the_depth_and_the_width_of_the_others(kind):
    net = depth.net_of(Trial(kind, 16, 3, 1))
    again = depth.net_of(Trial(kind, 16, 3, 1))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    widths = {p.shape[0] for p in net.parameters() if p.dim() == 4}
    assert widths == {16, 32, 64}
    large = [p for p in net.parameters() if p.dim() == 4 and p.shape[2] == 3]
    assert len(large) == 13
    rounded = any(isinstance(module, RoundedLayer) for module in net.modules())
    assert rounded == ("bfloat16" in kind)


@pytest.mark.parametrize("form", ["split", "materialised"])
def test_a_rounded_layer_is_bfloat16s(form):
    layer = DiracConv2d(4, 6, 3, 1, bias=False)
    image = torch.randn(2, 4, 5, 5)
    bank = reference.dirac_weight(layer.weight, layer.alpha, layer.beta, identity=False)
    delta = reference.dirac_delta(tuple(bank.shape))
    term = layer.alpha.view(-1, 1, 1, 1) * delta
    filters = bank.bfloat16().float() + term if form == "split" else (bank + term).bfloat16().float()
    expected = nn.functional.conv2d(image.bfloat16().float(), filters, padding=1).bfloat16().float()
    output = RoundedLayer(layer, form)(image)
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    assert layer.alpha.grad.abs().min() > 0 or layer.in_channels < layer.out_channels


def test_a_run_goes_on_where_it_was_ended_and_not_with_other_code(tmp_path):
    journal = tmp_path / "depth.journal.jsonl"
    now = {"code": "a", "torch": "b", "commit": "c"}
    assert depth.begun(journal, now) == (now, [])
    entry = {"kind": "plain", "depth": 10, "seed": 0, "epochs": 1, "rows": []}
    with journal.open("a") as file:
        file.write(json.dumps(entry) + "\n" + '{"kind": "pl')  # and a kill
    assert depth.begun(journal, {**now, "commit": "d"}) == (now, [entry])
    assert len(journal.read_text().splitlines()) == 2
    assert list(depth.run_all([Trial("plain", 10, 0, 1)], [entry], journal, 1)) == [entry]
    with pytest.raises(ValueError, match="is of code a, now other: name another folder"):
        depth.begun(journal, {**now, "code": "other"})


def test_two_runs_do_not_write_into_one_folder(tmp_path, capsys):
    with files.locked(tmp_path), pytest.raises(SystemExit) as stopped:
        depth.main(["--output", str(tmp_path), "--epochs", "1", "--seeds", "1"])
    assert stopped.value.code == 2
    assert "is in use by another process" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_trial_is_trained_and_its_factors_are_kept(monkeypatch):
    small = depth.open_data("digits")
    split = small.train
    few = TensorSplit(split.images[:64], split.labels[:64], split.change)
    data = type(small)(few, TensorSplit(split.images[64:80], split.labels[64:80]), 10, 8)
    monkeypatch.setattr(depth, "open_data", lambda name: data)
    threads = torch.get_num_threads()
    found = depth.run(Trial("Dirac", 10, 0, 2))
    torch.set_num_threads(threads)
    assert [row["epoch"] for row in found["rows"]] == [1, 2]
    assert len(found["alpha"]) == 2
    assert len(found["alpha"][0]) == 6
    assert found["cpu_seconds"] > 0
    assert json.loads(depth.one_training_a_line({"a": 1, "trainings": [found, found]}))["trainings"] == [found] * 2
    assert depth.number(float("nan")) is None


def test_rounded_filters_have_as_many_values_as_bits_allow_and_a_step_each():
    weight = torch.randn(5, 4, 3, 3) * torch.tensor([1.0, 10, 0.1, 3, 1e-3]).view(-1, 1, 1, 1)
    for bits in (8, 4):
        found = quantisation.rounded(weight, bits)
        step = weight.flatten(1).abs().amax(1) / (2 ** (bits - 1) - 0.5)
        errors = (found - weight).flatten(1).abs().amax(1)
        assert (errors <= 0.51 * step).all()
        assert all(len(row.unique()) <= 2**bits for row in found.flatten(1))


def test_the_identity_apart_costs_less(monkeypatch):
    net = diracnet(10, 1).eval()
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8)
    monkeypatch.setattr(quantisation, "in_onnxruntime", lambda model, images: model(images).detach())
    rows = quantisation.measure(net, TensorSplit(images, labels))
    errors = {(row["way"], row["bits"]): row["weight_error"] for row in rows}
    assert errors["folded whole", 8] > 10 * errors["identity apart", 8] > 0
    whole = fold(net)
    assert not torch.equal(quantisation.with_rounded_filters(whole, 8).stem.conv.weight, whole.stem.conv.weight)


def test_what_is_not_installed_is_said_before_the_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quantisation.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(SystemExit):
        quantisation.main(["--output", str(tmp_path)])
    assert "onnxruntime is not installed: pip install onnxruntime" in capsys.readouterr().err


def test_published_rows_are_written(tmp_path):
    assert published.main(["--output", str(tmp_path)]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "published.json").read_text())}
    assert rows["DiracNet-28-10"]["parameters"] == 36_450_090
    assert {result["error"] for result in rows["ResNet-1001"]["results"]} == {4.92, 4.62, 22.71}


@pytest.mark.parametrize("command", [published, quantisation, depth], ids=lambda command: command.__name__)
def test_an_output_that_cannot_be_written_is_refused_first(command, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        command.main(["--output", str(tmp_path / "file")])
    assert "accepted is a folder that can be written" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--seeds", "--epochs", "--processes", "--depths"])
def test_a_number_of_things_is_positive(option, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        depth.main(["--output", str(tmp_path), option, "0"])
    assert f"argument {option}: '0': accepted is a positive integer" in capsys.readouterr().err
