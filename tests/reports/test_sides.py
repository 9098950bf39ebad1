"""What is read as one side of a comparison: files, journals and folders, each also compressed, and what is refused."""

import gzip
import json
import lzma

import numpy as np
import pytest

from reports.load import ReportError
from reports.sides import Row, read
from tests.reports.reports_data import benchmark, check, compile_table, environment

LAYERS = 3


def entries(seed=1, sizes=None, factor=1.0, **extra):
    noise = np.random.default_rng(seed)
    more = {"samples_per_process": sizes} if sizes else {}
    return [
        benchmark("conv", "fprop", "Net", f"layer {row}", "float32", "torch",
                  factor * 1e-3 * np.exp(0.001 * noise.standard_normal(sum(sizes or [20]))), **more, **extra)
        for row in range(LAYERS)
    ]  # fmt: skip


def document(*seed, changes=None, **extra):
    return {"environment": environment(**(changes or {})), "benchmarks": entries(*seed, **extra)}


def journal(whole):
    lines = [
        {"environment": whole["environment"]},
        *({"row": ["x"], "benchmarks": [one]} for one in whole["benchmarks"]),
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def written(path, whole):
    """``whole`` at a path whose suffixes say how."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_suffix("") if path.suffix in (".gz", ".xz") else path
    data = (journal(whole) if plain.suffix == ".jsonl" else json.dumps(whole)).encode()
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(data))
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize("name", ["results.json", "results.journal.jsonl"])
def test_files_journals_and_folders_of_either_hold_the_same_rows_also_compressed(tmp_path, name, suffix):
    whole = document()
    path = written(tmp_path / "run" / (name + suffix), whole)
    for place in (path, path.parent):
        side = read(place)
        assert side.processes == 1
        assert [row.layer for row in side.rows] == ["layer 0", "layer 1", "layer 2"]
        for one, timed in zip(whole["benchmarks"], side.rows.values(), strict=True):
            np.testing.assert_array_equal(timed.samples[0, 0], one["stats"]["data"])
        assert side.machines == {"Synthetic CPU @ 2.20GHz, 2"}


def test_a_file_of_several_processes_and_a_folder_of_several_files_are_alike(tmp_path):
    one = read(written(tmp_path / "one.json", document(sizes=[4, 5, 6, 7, 8])))
    assert one.processes == 5
    assert [len(samples) for samples in next(iter(one.rows.values())).samples.values()] == [4, 5, 6, 7, 8]
    for process in range(5):
        written(tmp_path / "many" / f"{process}.json", document(process))
    many = read(tmp_path / "many")
    assert many.processes == 5
    assert {len(timed.samples) for timed in many.rows.values()} == {5}


def test_a_run_counts_once_in_a_folder_however_many_of_its_files_are_there(tmp_path):
    run = tmp_path / "run"
    written(run / "results.json", document(sizes=[4, 5]))
    written(run / "results.json.xz", document(sizes=[4, 5]))
    written(run / "results.journal.jsonl", document(sizes=[4, 5]))
    for process in (1, 2):
        written(run / f"process-{process}.results.journal.jsonl", document(process))
    (run / "compile.json").write_text(json.dumps(compile_table()))
    (run / "compare.json").write_text("{}")
    (run / "notes.txt").write_text("no results")
    assert read(run).processes == 2


def test_the_journals_of_processes_that_were_ended_are_a_run(tmp_path):
    for process in (1, 2, 3):
        written(tmp_path / f"process-{process}.results.journal.jsonl", document(process))
    assert read(tmp_path).processes == 3


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"gpu": "NVIDIA H200"}, "holds runs of several machines"),
        ({"commit": "another"}, "holds runs of several versions"),
        ({"torch": "2.11.0"}, "holds runs of several versions"),
    ],
)
def test_a_folder_of_several_runs_is_refused(tmp_path, changes, said):
    written(tmp_path / "1.json", document())
    written(tmp_path / "2.json", document(2, changes=changes))
    with pytest.raises(ReportError, match=said):
        read(tmp_path)


@pytest.mark.parametrize(
    "content, said",
    [
        (compile_table(), "no times"),
        ({"benchmarks": [], "not_run": [{"suite": "conv", "reason": "no GPU"}]}, "no times"),
        ({"benchmarks": entries(sizes=[5, 5]) + entries(2, clock="another clock")}, "timed by several clocks"),
        ({"benchmarks": entries(samples_per_process=[5, 5])}, "samples_per_process must cut stats.data"),
        ({"benchmarks": entries(factor=1e300)}, "positive times in seconds, from 1e-12 to 1e"),
    ],
)
def test_what_holds_no_times_or_times_that_cannot_be_told_apart_is_refused(tmp_path, content, said):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ReportError, match=said):
        read(path)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
@pytest.mark.parametrize(
    "broken", [lambda data: data[:-9], lambda data: data[:3], lambda data: b"", lambda data: b"{}"]
)
def test_a_compressed_file_that_is_cut_off_or_none_is_named(tmp_path, suffix, broken):
    path = written(tmp_path / f"results.json{suffix}", document())
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(ReportError, match=r"results\.json"):
        read(path)


def test_a_row_that_is_wrong_has_no_time_and_why_it_has_none_is_known(tmp_path):
    whole = document() | {
        "accuracy": [check("conv", "fprop", "Net", "layer 1", "float32", "torch", passed=False)],
        "not_run": [{**entries()[0]["extra_info"], "contender": "triton", "reason": "no GPU"}],
    }
    side = read(written(tmp_path / "r.json", whole))
    assert [row.layer for row in side.rows] == ["layer 0", "layer 2"]
    assert side.left_out == {
        "conv fprop Net layer 0 float32 triton": "no GPU",
        "conv fprop Net layer 1 float32 torch": "wrong: its result failed the check against float64",
    }


def test_whatever_an_environment_states_is_text(tmp_path):
    odd = {"cores": [2], "cpu": {"name": "x", "none": None}, "gpu": float("nan"), "torch": None}
    side = read(written(tmp_path / "r.json", document(changes=odd)))
    (stated,) = side.environments
    assert (stated["cores"], stated["cpu"], stated["gpu"], stated["torch"]) == ("[2]", "name x", "nan", "")


def test_the_clocks_beside_the_samples_are_kept_and_absurd_ones_are_none(tmp_path):
    clocks = {"clocks_before": {"sm_mhz": 1980}, "clocks_after": {"sm_mhz": 1960}}
    side = read(written(tmp_path / "r.json", document(**clocks)))
    assert {tuple(timed.mhz) for timed in side.rows.values()} == {(1970.0,)}
    side = read(written(tmp_path / "s.json", document(clocks_before={"sm_mhz": 1e300}, clocks_after={"sm_mhz": -1})))
    assert {tuple(timed.mhz) for timed in side.rows.values()} == {()}


def test_a_row_is_called_by_its_words():
    assert Row("conv", "fprop", "", "layer", "float32", "torch", "{}").name == "conv fprop layer float32 torch"
