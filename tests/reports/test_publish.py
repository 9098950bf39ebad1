"""Runs that are kept: what is in their folder, the index, and which of them a new run is compared with."""

import gzip
import json

import pytest

from reports import publish
from tests.reports.reports_data import benchmark, environment


def results(path, **changes):
    place = ("conv", "fprop", "Net", "8x8x8-8 3x3", "float32")
    times = [benchmark(*place, name, [seconds * (1 + i / 1000) for i in range(7)])
             for name, seconds in (("torch", 1e-3), ("triton", 8e-4))]  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"environment": environment(**changes), "benchmarks": times}))
    return path


@pytest.fixture
def root(tmp_path):
    return tmp_path / "published"


def test_a_kept_run_holds_its_page_and_its_results(tmp_path, root):
    given = results(tmp_path / "results.json")
    folder = publish.publish([given], root)
    assert folder.name == "2026-11-24-synthetic-cpu-2-20ghz"
    names = {file.name for file in folder.iterdir()}
    assert names == {"index.html", "summary.md", "full.md", "overview.svg", "results.json.gz"}
    assert gzip.decompress((folder / "results.json.gz").read_bytes()) == given.read_bytes()
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    publish.publish([given], root)
    assert first == {file.name: file.read_bytes() for file in folder.iterdir()}, "kept twice is kept once"


def test_the_index_lists_runs_newest_first_with_their_headlines(tmp_path, root):
    publish.publish([results(tmp_path / "results.json")], root)
    publish.publish([results(tmp_path / "results.json", gpu="GPU <b>", date="2026-12-01T00:00:00")], root)
    (root / "2026-01-01-no-results").mkdir()
    (root / "2026-01-01-no-results" / "index.html").write_text("")
    text = publish.index(root)
    assert (root / "index.html").exists()
    order = [text.index(f'href="{name}') for name in ("2026-12-01-gpu-b", "2026-11-24-", "2026-01-01-")]
    assert order == sorted(order)
    assert text.count("faster in 1 of 1 comparisons") >= 2
    assert 'href="2026-12-01-gpu-b/results.json.gz"' in text
    assert "its results were not kept" in text


def test_the_index_leads_to_the_page_of_whole_nets_where_there_is_one(root):
    root.mkdir()
    assert "nets.md" not in publish.index(root)
    (root / "nets.md").write_text("")
    assert 'href="nets.md"' in publish.index(root)


def test_a_new_run_is_compared_with_the_last_of_a_like_machine(tmp_path, root, monkeypatch, capsys):
    monkeypatch.setattr(publish, "PUBLISHED", root)
    monkeypatch.setattr(publish.like, "__defaults__", (root,))
    new = results(tmp_path / "results.json", date="2026-12-24T00:00:00", gpu="G", cpu="C")
    assert publish.main(["--like", str(new)]) == 0
    assert "no run of a machine like this one's" in capsys.readouterr().out
    for number, (date, gpu, cpu) in enumerate(
        [("2026-11-01", "G", "C"), ("2026-11-02", "G", "other"), ("2026-11-03", "H", "C"), ("2026-11-04", None, "C")]
    ):
        publish.publish([results(tmp_path / str(number) / "results.json", date=date, gpu=gpu, cpu=cpu)], root)
    kept, is_another = publish.like(new)
    assert (kept.parent.name, is_another) == ("2026-11-02-g", True)
    assert publish.main(["--like", str(new), "--output", str(tmp_path / "compared")]) == 0
    assert "Different machines" in capsys.readouterr().out
    assert (tmp_path / "compared" / "compare.html").exists()
    alone = results(tmp_path / "results.json", date="2026-12-24T00:00:00", gpu=None, cpu="C")
    assert publish.like(alone)[0].parent.name == "2026-11-04-c"


def test_a_kept_run_is_not_compared_with_itself(tmp_path, root):
    given = results(tmp_path / "results.json")
    publish.publish([given], root)
    assert publish.like(given, root) is None


@pytest.mark.parametrize("changes", [{"date": None}, {"cpu": None}, {"date": "yesterday"}])
def test_a_run_without_a_date_or_a_machine_is_refused(tmp_path, root, changes, capsys):
    assert publish.main([str(results(tmp_path / "results.json", **changes))]) == 2
    assert "no date or no machine" in capsys.readouterr().err


def test_two_files_of_one_name_are_refused(tmp_path, root):
    files = [results(tmp_path / name / "results.json") for name in "ab"]
    with pytest.raises(publish.ReportError, match="one name"):
        publish.publish(files, root)
