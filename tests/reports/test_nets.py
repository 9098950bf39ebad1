"""Figures and tables of whole nets, of results that are made here."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from reports import nets
from reports.publish import PUBLISHED

ROOT = PUBLISHED.parents[1]
ENVIRONMENT = {
    "command": "python -m bench.depth --output D", "commit": "0123456789abcdef", "dirty": False, "torch": "2.13",
    "triton": "3.7", "cpu": "a CPU", "date": "2026-01-02T03:04:05",
}  # fmt: skip


def training(kind, depth, seed, accuracy):
    found = {"kind": kind, "depth": depth, "seed": seed, "epochs": 2, "cpu_seconds": 1.5 * depth}
    found["rows"] = [{"epoch": epoch, "test_accuracy": accuracy - 2 + epoch} for epoch in (1, 2)]
    if kind == "Dirac" and seed == 0:
        found |= {"alpha": [[1.0, 0.9], [1.1, 0.8]], "beta": [[0.1, 0.1], [0.2, 0.1]]}
    return found


TRAININGS = [
    *(training("Dirac", depth, seed, 90.0 + seed) for depth in (10, 40) for seed in (0, 1)),
    *(training("plain", depth, 0, 50.0) for depth in (10, 40)),
    training("Dirac, bfloat16, split", 10, 0, 88.0),
]


@pytest.fixture
def folder(tmp_path):
    def write(name, content):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))

    write("depth/depth.json", {"environment": ENVIRONMENT, "trainings": TRAININGS})
    rows = [
        {"way": "folded whole", "bits": bits, "accuracy": 96.0, "logit_error": 0.2, "weight_error": 0.5}
        for bits in (None, 8)
    ]
    rows[0]["onnxruntime_accuracy"] = 95.0
    write("quantisation/quantisation.json", {"environment": ENVIRONMENT, "net": "a net", "epochs": 3, "rows": rows})
    result = {"dataset": "CIFAR-10", "error": 4.75, "spread": 0.16, "source": "table 2"}
    row = {"name": "DiracNet-28-10", "depth": 28, "width": 10, "dirac": True, "parameters": 36450090}
    row |= {"printed_millions": 36.5, "note": "why", "results": [result]}
    write("nets/published.json", [row, {**row, "name": "another", "note": ""}])
    return tmp_path


def test_the_page_has_every_table_figure_and_origin(folder):
    assert nets.main([str(folder)]) == 0
    page = (folder / "nets.md").read_text()
    assert "| Dirac | 90.5 (90.0–91.0) | 90.5 (90.0–91.0) |" in page
    assert "| plain | 50.0 | 50.0 |" in page
    assert "| Dirac, bfloat16, split | 88.0 | – |" in page
    assert "| folded whole | 8 bits | 96.00 | 50.0 | 20.00 | – |" in page
    assert "| folded whole | float32 | 96.00 | 50.0 | 20.00 | 95.00 |" in page
    assert "| DiracNet-28-10 | 28-10 | 36,450,090 | 36.5M | CIFAR-10 | 4.75 ± 0.16 | table 2 |" in page
    assert page.endswith("\n- DiracNet-28-10: why.\n")
    assert "`python -m bench.depth --output D`, commit 0123456789ab, torch 2.13" in page
    for name in ("depth/depth.svg", "depth/factors.svg", "nets/published.svg"):
        assert f"({name})" in page
        ElementTree.parse(folder / name)


def test_the_curves_are_the_seeds_means_and_range(folder):
    figure = nets.draw_depth(TRAININGS)
    by_depth, by_time, in_bfloat16 = figure.axes
    line = next(line for line in by_depth.lines if line.get_label() == "Dirac")
    assert line.get_xydata().tolist() == [[10, 90.5], [40, 90.5]]
    low_high = by_depth.collections[0].get_paths()[0].vertices[:, 1]
    assert (low_high.min(), low_high.max()) == (90.0, 91.0)
    assert by_time.lines[0].get_xdata().tolist() == [15.0, 60.0]
    assert [line.get_label() for line in in_bfloat16.lines] == ["bfloat16, split", "float32"]
    assert in_bfloat16.lines[1].get_ydata().tolist() == [90.0, 90.0]  # of the first seed


def test_a_journal_of_a_run_that_goes_on_is_drawn_too(folder):
    (folder / "depth" / "depth.json").unlink()
    lines = [json.dumps(entry) for entry in (ENVIRONMENT, *TRAININGS)]
    (folder / "depth" / "depth.journal.jsonl").write_text("\n".join(lines) + "\n")
    assert nets.main([str(folder)]) == 0
    assert "| Dirac | 90.5 (90.0–91.0) |" in (folder / "nets.md").read_text()


def test_the_published_page_and_the_readmes_table_are_of_the_published_results():
    page = (PUBLISHED / "nets.md").read_text(encoding="utf-8")
    assert nets.written(PUBLISHED)[PUBLISHED / "nets.md"] == page
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("### Depth without skip connections")[2].partition("\n### ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| Dirac", "| residual", "| plain", "| delta-orthogonal"]
    assert set(rows) <= set(page.splitlines())


def test_names_at_an_axis_end_stand_before_their_marks(folder):
    rows = [
        {"name": name, "depth": depth, "dirac": False, "printed_millions": depth / 10, "results": [result]}
        for name, depth, result in (
            ("small", 16, {"dataset": "CIFAR-10", "error": 6.0, "spread": None, "source": "a table"}),
            ("large", 1001, {"dataset": "CIFAR-10", "error": 5.0, "spread": 0.1, "source": "a table"}),
        )
    ]
    for axes in nets.draw_published(rows).axes[:2]:
        assert {text.get_text(): text.get_ha() for text in axes.texts} == {"small": "left", "large": "right"}


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    for place, message in ((tmp_path, "has no depth/depth.json"), (tmp_path / "none", "folder must be a folder")):
        with pytest.raises(SystemExit):
            nets.main([str(place)])
        assert message in capsys.readouterr().err
