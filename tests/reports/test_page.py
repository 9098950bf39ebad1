"""The files that come out: what they say, that they are safe to open, and always the same."""

import ast
import base64
import hashlib
import html
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from reports import page, render
from reports.__main__ import main
from tests.reports.made import Page, made, rows
from tests.reports.reports_data import (
    SYNTHETIC_GPU,
    benchmark,
    check,
    compile_table,
    cpu_results,
    gpu_like_results,
    loop_table,
)


@pytest.fixture(scope="module")
def cpu(tmp_path_factory):
    return made(tmp_path_factory.mktemp("cpu"), cpu_results(), compile_table(), loop_table())


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    return made(tmp_path_factory.mktemp("gpu"), gpu_like_results(), compile_table())


@pytest.fixture
def small():
    places = [("conv", "fprop", "Net", f"{number}x8x8-{number} 3x3", "float16") for number in (64, 128)]
    times = {"cudnn": 1.0, "triton": 0.8}
    benchmarks = [benchmark(*place, name, [t] * 7) for place in places for name, t in times.items()]
    return {"benchmarks": benchmarks, "accuracy": [check(*place, "triton") for place in places]}


# --- what it says -----------------------------------------------------------------------------------------


def test_without_a_gpu_the_headline_claims_no_triton_time(cpu):
    text = Page((cpu / "index.html").read_text()).text
    assert "No Triton kernel was timed here" in text
    assert "Triton kernels not timed: no GPU" in text
    assert "batch 16 as timed (published: 128)" in text
    assert "Executed by" in text
    assert "interpreter" in text


def test_losses_and_wrong_results_are_named(gpu):
    text = Page((gpu / "index.html").read_text()).text
    for expected in (
        "Largest losses of the Triton kernels",
        "slower",
        "✕ wrong",
        "not finite",
        SYNTHETIC_GPU,
    ):
        assert expected in text
    assert re.search(
        r"slower in \d+ \(0\.\d\d× as fast at worst\), undecided in \d+\. Wrong, and so without a time: 1\.", text
    )
    assert "71 of 72 have a ratio" in text


def test_whether_a_type_is_safe_stands_in_one_line(gpu, cpu):
    """Ours alone, all suites together: a wrong result is not hidden by the others."""
    text = Page((gpu / "index.html").read_text()).text
    float16, bfloat16 = (
        re.search(rf" {dtype} (\d+) (✕ 1|0) (not finite|1\.\d\d×) \S", text) for dtype in ("float16", "bfloat16")
    )
    assert float16.groups()[1:] == ("✕ 1", "not finite")
    assert bfloat16[2] == "0"
    assert bfloat16[3] != "not finite"
    ours = [row for row in rows(gpu, "accuracy") if row["contender"].startswith("triton-prep")]
    assert int(bfloat16[1]) > len([row for row in ours if row["dtype"] == "bfloat16"]) > 0
    assert "float32 2 0 0.70×" in Page((cpu / "index.html").read_text()).text


def test_what_makes_a_run_doubtful_is_said(gpu):
    text = Page((gpu / "index.html").read_text()).text
    assert "uncommitted changes" in text
    assert "SM MHz fell by 11% during the run" in text
    assert "W fell" not in text
    assert "rose" not in text


def test_every_figure_says_how_its_numbers_were_obtained(cpu):
    for file in (cpu / "figures").iterdir():
        assert re.search(r"measured|counted|modelled", file.read_text()), file.name


def test_compiled_failures_and_spills_are_listed(cpu):
    text = Page((cpu / "index.html").read_text()).text
    assert "Fails or spills: 7" in text
    assert "OutOfResources: shared memory" in text
    assert "spills 48" in text
    assert "287 of 288 kernels compile for 6 GPU targets, 6 with spills." in text


def test_loops_stand_beside_the_floor(cpu):
    text = Page((cpu / "index.html").read_text()).text
    assert "Main loops at equal tiles" in text
    assert "(1.08×)" in text


def test_what_was_not_run_is_grouped_by_reason(cpu):
    text = (cpu / "index.html").read_text()
    assert text.count("no GPU: cuDNN needs one") == 1
    assert len(rows(cpu, "not_run")) == 72


def test_reasons_that_differ_in_numbers_are_one(tmp_path, small):
    small["not_run"] = [{"reason": f"output off by {error}e-03 (torch 1.2e-05)"} for error in (1.5, 2.25)]
    text = Page((made(tmp_path, small) / "index.html").read_text()).text
    assert "output off by 1.5e-03" in text
    assert "and 1 like it, with other numbers" in text
    assert "2.25e-03" not in text


def test_times_without_a_check_are_said(tmp_path, small):
    text = Page((made(tmp_path, small) / "index.html").read_text()).text
    assert "2 timed results have no such comparison." in text


def test_the_margin_and_the_baseline_can_be_chosen(tmp_path, small):
    out = made(tmp_path, small, options=["--margin", "30", "--baseline", "conv=triton"])
    (row,) = rows(out, "overall")
    assert (row["contender"], row["baseline"], row["same"], row["slower"]) == ("cudnn", "triton", "2", "0")


def test_summary_holds_the_same_numbers(gpu):
    text = (gpu / "full.md").read_text()
    for row in rows(gpu, "overall"):
        assert f"| {row['contender']} | {row['baseline']} | {row['faster']} | {row['same']} |" in text
        assert f"| {float(row['geomean']):.2f}× (" in text


def test_the_summary_for_a_pull_request_is_short_and_names_the_losses(tmp_path):
    text = (made(tmp_path, gpu_like_results(), gpu_like_results(), compile_table()) / "summary.md").read_text()
    assert len(text.splitlines()) < 60
    for expected in (
        "Largest losses of the Triton kernels, 5 of",
        "| triton |",
        "more contenders: full.md",
        SYNTHETIC_GPU,
    ):
        assert expected in text


# --- tables -----------------------------------------------------------------------------------------------


def test_tables_hold_every_number_unrounded(tmp_path, small):
    out = made(tmp_path, small)
    verdicts = rows(out, "verdicts")
    assert len(verdicts) == 4
    row = next(row for row in verdicts if row["contender"] == "triton")
    assert (row["verdict"], row["median"], row["ratio"], row["ratio_low"]) == (
        "faster",
        "0.8",
        "1.25",
        "1.25",
    )
    assert (row["run"], row["samples"], row["batch"], row["published_batch"]) == ("0", "7", "16", "128")
    (mean,) = rows(out, "geometric_means")
    assert float(mean["geomean"]) == pytest.approx(1.25)
    assert rows(out, "accuracy")[0]["problem"] == "2×16×8×8 → 16, 3×3"
    assert rows(out, "compiled") == []


# --- safe to open -----------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=y>",
    "a|b `c` [d](e)",
    "$\\frac$",
    "{{ 7*7 }}",
    "-->",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(tmp_path, name):
    places = [("conv", name, name, name, "float16")]
    results = {
        "environment": {"cpu": name, "command": name, "gpu": name, name: name},
        "benchmarks": [benchmark(*p, c, [t] * 7) for p in places for c, t in (("cudnn", 1.0), (name, 2.0))],
        "accuracy": [check(*places[0], name), check(*places[0], "other", passed=False, tensor=name)],
        "not_run": [{"reason": name, "contender": name}],
    }
    table = {
        "kind": "compile",
        "rows": [{"kernel": name, "target": name, "ok": False, "error": name, "mma": name}],
    }
    out = made(tmp_path, results, table)
    found = Page((out / "index.html").read_text())
    assert found.tags.count("script") == 1
    assert not {"img", "iframe", "link"} & set(found.tags)
    assert not [attribute for _, attribute, _ in found.attributes if attribute.startswith("on")]
    assert " ".join(name.split()) in found.text
    for file in (out / "figures").iterdir():
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(file).iter()}
        assert "script" not in tags
    for file in ("summary.md", "full.md"):
        assert "<script" not in (out / file).read_text()
        assert "<img" not in (out / file).read_text()
    summary = (out / "full.md").read_text()
    lines = [line for line in summary.splitlines() if line.startswith("| conv")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines if "slower" not in line}) <= 2


def test_the_page_loads_nothing(cpu, gpu):
    for report in (cpu, gpu):
        text = (report / "index.html").read_text()
        found = Page(text)
        assert not {"link", "img", "iframe", "object"} & set(found.tags)
        for tag, attribute, value in found.attributes:
            if attribute in ("href", "src", "xlink:href", "srcset", "action"):
                assert value.startswith("#"), f"<{tag} {attribute}={value}>"
        assert "@import" not in text
        assert not re.search(r"url\((?!#)", text)
        assert "http://" not in text
        assert "https://" not in text


def test_the_page_runs_its_own_script_and_no_other(gpu):
    text = (gpu / "index.html").read_text()
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    assert scripts == [render.SCRIPT]
    (allowed,) = re.findall(r"script-src '(.*?)'", text)
    assert allowed == "sha256-" + base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()


def test_every_picture_has_a_title_and_says_what_it_shows(gpu):
    text = (gpu / "index.html").read_text()
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert pictures
    for picture in pictures:
        named = re.search(r'role="img" aria-labelledby="(\S+) (\S+)"', picture)
        for part, name in zip(("title", "desc"), named.groups(), strict=True):
            assert re.search(rf'<{part} id="{name}">[^<]+</{part}>', picture)
    assert re.search(r"<desc[^>]*>measured · SYNTHETIC GPU[^<]*triton-prep \d\.\d\d×", text)


# --- one row ----------------------------------------------------------------------------------------------


def test_wins_and_losses_lead_to_their_rows(gpu):
    found = Page((gpu / "index.html").read_text())
    rows = {value for tag, name, value in found.attributes if (tag, name) == ("tr", "id")}
    linked = [value[1:] for tag, name, value in found.attributes if (tag, name) == ("a", "href")]
    assert len(rows) == len({tuple(row.values()) for row in places(gpu)})
    assert rows <= set(linked)
    assert sum(name in rows for name in linked) > len(rows), "the largest wins and losses are links too"


def places(report):
    names = ("suite", "pass", "net", "layer", "dtype")
    return [{name: row[name] for name in names} for row in rows(report, "verdicts")]


def test_each_row_says_how_it_is_run_again(gpu):
    text = html.unescape((gpu / "index.html").read_text())
    assert (
        "python -m pytest --benchmark-only bench/test_conv.py --nets=DiracNet-34-2 '--layers=64x16x16-64 3x3' "
        "--dtypes=float16 --contenders=cudnn,triton,cudnn-nchw,inductor,flag_gems,triton-gather,triton-tile "
        "--batch=16 -k wgrad --benchmark-json=again.json"
    ) in text


def test_whole_nets_are_sums_of_what_both_have(tmp_path):
    entries = [
        benchmark("conv", "fprop", "Net", layer, "float16", name, [seconds] * 7, count=count, nets={"Net": count})
        for layer, count, times in (("a", 3, (1.0, 0.5)), ("b", 2, (10.0, 8.0)), ("c", 1, (100.0, None)))
        for name, seconds in zip(("cudnn", "triton"), times, strict=True)
        if seconds
    ]
    out = made(tmp_path, {"benchmarks": entries})
    found = {row["contender"]: row for row in rows(out, "totals")}
    assert [float(found["triton"][name]) for name in ("seconds", "baseline_seconds", "layers", "places")] == [
        17.5, 23.0, 2, 3,
    ]  # fmt: skip
    assert float(found["triton"]["ratio"]) == pytest.approx(23 / 17.5)
    assert float(found["cudnn"]["seconds"]) == 123
    assert "2 of 3 layers" in Page((out / "index.html").read_text()).text


def test_ids_are_unique_and_links_lead_somewhere(cpu):
    found = Page((cpu / "index.html").read_text())
    ids = [value for _, attribute, value in found.attributes if attribute == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, attribute, value in found.attributes if attribute == "href"}
    assert targets <= set(ids)


def test_every_cell_names_its_column_for_narrow_screens(gpu):
    text = (gpu / "index.html").read_text()
    for table in re.findall(r'<div class="cards[^"]*".*?</table>', text, re.DOTALL):
        assert not re.findall(r"<td(?![^>]*data-h=)[^>]*>", table)


def test_the_page_is_small_enough_for_git(gpu):
    assert (gpu / "index.html").stat().st_size < 1.5e6


# --- files ------------------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes(tmp_path, small):
    one, other = (made(tmp_path / name, small, loop_table()) for name in "ab")
    files = sorted(file.relative_to(one) for file in one.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(other) for file in other.rglob("*") if file.is_file())
    assert Path("figures/overview.svg") in files
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def test_by_default_the_report_stands_beside_the_first_file(tmp_path, small):
    file = tmp_path / "results.json"
    file.write_text(json.dumps(small))
    assert main([str(file)]) == 0
    assert {"index.html", "summary.md", "full.md", "tables", "figures", "results.json"} == {
        f.name for f in tmp_path.iterdir()
    }


@pytest.mark.parametrize("suffix, magic", [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_the_overview_picture(tmp_path, small, suffix, magic):
    picture = tmp_path / "docs" / f"overview.{suffix}"
    made(tmp_path, small, options=["--overview", str(picture)])
    assert picture.read_bytes().startswith(magic)


def test_no_overview_of_nothing(tmp_path, capsys):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"benchmarks": [], "not_run": [{"reason": "no GPU"}]}))
    assert main([str(file), "--overview", str(tmp_path / "x.svg")]) == 2
    assert "neither times nor compiled kernels" in capsys.readouterr().err
    assert main([str(file)]) == 0


@pytest.mark.parametrize(
    "option", [["--margin", "-1"], ["--margin", "much"], ["--baseline", "cudnn"], ["--overview", "x.gif"]]
)
def test_options_say_what_they_accept(tmp_path, capsys, option):
    with pytest.raises(SystemExit) as error:
        main(["a.json", *option])
    assert error.value.code == 2
    assert "accepted is" in capsys.readouterr().err


def test_a_table_that_was_cut_off_says_so(tmp_path):
    table = compile_table()
    whole = made(tmp_path / "whole", table | {"planned": len(table["rows"])})
    cut = made(tmp_path / "cut", table | {"planned": len(table["rows"]) + 30})
    warning = "The run was stopped before its end: 30 kernels are missing."
    for name in ("index.html", "summary.md", "full.md"):
        assert warning in (cut / name).read_text()
        assert "stopped before its end" not in (whole / name).read_text()


def test_reports_knows_nothing_of_what_it_reports_on():
    for file in Path(page.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"bench", "triton_dirac", "torch"}, file.name


def test_the_means_of_nets_that_share_layers_stand_net_by_net(tmp_path):
    nets = {"A": 4, "B": 6}
    entries = [
        benchmark("conv", way, "A, B", "layer", "float16", name, [1.0] * 7, nets=nets)
        for way in ("fprop", "dgrad")
        for name in ("cudnn", "triton")
    ]
    text = Page((made(tmp_path, {"benchmarks": entries}) / "index.html").read_text()).text
    assert re.findall(r"(fprop|dgrad) (A|B) · float16", text) == [
        ("fprop", "A"),
        ("dgrad", "A"),
        ("fprop", "B"),
        ("dgrad", "B"),
    ]
    assert "4 and 6 times in the nets" in text
