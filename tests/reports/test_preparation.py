"""Launches and bytes of whole nets, bytes of compiled kernels, small filters in bfloat16: numbers and page."""

import json

import pytest

from reports import page, tables
from reports.headline import headline, precision
from reports.load import ReportError, load
from reports.render import render
from reports.report import build
from tests.reports.reports_data import check, compile_table, cpu_results

NETS = ("DiracNet-28-10", "DiracNet-34-2")


def count(contender, launches, net=NETS[0], direction="forward", **extra):
    return {
        "suite": "weight_prep_nets", "pass": direction, "net": net, "layer": "all Dirac layers", "dtype": "float32",
        "contender": contender, "launches": launches, "bytes": 250, "least_bytes": 100, "label": "counted",
        "counted_by": "planned launches",
    } | extra  # fmt: skip


def moved(kernel="weight_prep", target="cuda:80", **extra):
    return {
        "kernel": kernel, "net": NETS[0], "layer": "160-160 3x3", "dtype": "bfloat16", "target": target,
        "gpu": "A100", "ok": True, "error": None, "launches": 8, "load_width": 16, "store_width": 16,
        "bytes_per_weight": 6.006, "least_bytes_per_weight": 6, "moved_over_least": 1.001, "spills": 0,
        "label": "counted",
    } | extra  # fmt: skip


def form(contender, beta, error, tensor="output", filters_scale=0.01):
    return check(
        "precision", "fprop", NETS[0], "160x32x32-160 3x3", "bfloat16", contender,
        error=error, torch_error=error, tensor=tensor, beta=beta, filters_scale=filters_scale,
    )  # fmt: skip


RESULTS = cpu_results()
RESULTS["counted"] = [
    *(
        count("weight_norm", n, net, counted_by="operations dispatched by torch")
        for n, net in ((48, NETS[0]), (60, NETS[1]))
    ),
    count("triton-one-launch", 1),
    count("triton-one-launch", 2, direction="forward_backward"),
]
RESULTS["accuracy"] += [
    form("materialised", 0.01, 3e-3), form("split", 0.01, 2e-5), form("materialised", 1.0, 2e-3),
    form("split", 1.0, 1e-3), form("materialised", 0.01, 4e-3, "rounded"), form("split", 0.01, 2e-3, "rounded"),
]  # fmt: skip
COMPILED = {
    "kind": "compile",
    "rows": [
        moved(),
        moved(layer="640-640 3x3", moved_over_least=1.25, load_width=8, launches=16, spills=4),
        moved(net=NETS[1], launches=30),
        moved(layer="3-3 3x3", ok=False, error="no", moved_over_least=None, load_width=None, store_width=None),
        moved("weight_prep_multi", "hip:gfx942", gpu="MI300X", layer="all Dirac layers", launches=1),
    ],
}


@pytest.fixture
def report(tmp_path):
    return build(load(written(tmp_path, results=RESULTS, compiled=COMPILED)))


def written(folder, **documents):
    paths = [folder / f"{name}.json" for name in documents]
    for path, document in zip(paths, documents.values(), strict=True):
        path.write_text(json.dumps(document))
    return paths


def test_counts_are_by_pass_contender_and_net(report):
    forward, both = page.counted(report)
    assert (forward["pass"], both["pass"]) == ("forward", "forward_backward")
    assert forward["nets"] == list(NETS)
    first, ours = forward["rows"]
    assert [cell["launches"] for cell in first["cells"]] == [48, 60]
    assert first["cells"][0]["over_least"] == 2.5
    assert [cell and cell["launches"] for cell in ours["cells"]] == [1, None]


def test_bytes_are_summed_up_by_kernel_and_target(report):
    first, multi = report.moved.to_dict("records")
    assert (first["kernels"], first["compile"], first["spill"]) == (4, 3, 1)
    assert (first["over_least"], first["worst_over_least"], first["width"]) == (1.001, 1.25, 8)
    assert first["launches"] == "DiracNet-28-10 24, DiracNet-34-2 30"
    assert multi["launches"] == "DiracNet-28-10 1"


def test_bytes_are_no_rows_of_the_kernel_table(report):
    assert report.compiled.empty
    assert len(report.results.moved) == 5


def test_forms_are_compared_beta_by_beta(report):
    rows = {(row["tensor"], row["beta"]): row for row in report.precision.to_dict("records")}
    assert rows["output", 0.01]["materialised"] == pytest.approx(0.3)
    assert rows["output", 0.01]["times_closer"] == pytest.approx(150)
    assert rows["output", 1.0]["times_closer"] == pytest.approx(2)
    assert len(rows) == 3


def test_a_form_that_is_missing_or_exact_has_no_ratio(tmp_path):
    document = {**RESULTS, "accuracy": [form("split", 0.01, 0.0), form("materialised", 0.1, 1e-3)]}
    report = build(load(written(tmp_path, results=document)))
    assert report.precision["times_closer"].isna().all()
    assert precision(report) == ""
    render(report)


def test_the_headline_says_both(report):
    said = headline(report)
    closer = next(sentence for sentence in said if "split form" in sentence)
    assert "At β" not in closer
    assert "at β = 0.01" in closer
    assert "150 times (output), 2 times (rounded)" in closer
    assert any("at most 1.250 times the least bytes, on 2 GPU targets" in sentence for sentence in said)


def test_page_and_summary_show_them(report):
    files = render(report)
    html, summary = files["index.html"], files["full.md"]
    for text in (
        'id="preparation"',
        "<b>48</b><small>",
        "<b>1</b><small>",
        "2.500× the least bytes",
        "1.0010–1.2500",
    ):
        assert text in html
    assert html.count('href="#preparation"') == 1
    assert "What bfloat16 leaves of the filters" in html
    assert "| weight_norm | 48 (2.5) | 60 (2.5) | operations dispatched by torch |" in summary
    table = next(line for line in summary.splitlines() if line.startswith("| weight_prep_nets, forward, float32"))
    assert table == "| weight_prep_nets, forward, float32 | DiracNet-28-10 | DiracNet-34-2 | counted |"
    assert {"tables/counted.csv", "tables/bytes.csv", "tables/precision.csv", "figures/precision.svg"} <= files.keys()
    assert "β = 0.01, split" in files["figures/precision.svg"]


def test_without_any_of_it_the_page_has_no_such_section(tmp_path):
    report = build(load(written(tmp_path, results=cpu_results(), compiled=compile_table())))
    html = render(report)["index.html"]
    assert "preparation" not in html.split("</style>")[1]
    assert "leaves of the filters" not in html
    assert not any("split form" in sentence for sentence in headline(report))
    assert tables.counted(report.results).empty


def test_a_count_without_launches_is_refused(tmp_path):
    document = {**RESULTS, "counted": [{"suite": "weight_prep_nets", "contender": "x"}]}
    with pytest.raises(ReportError, match=r"counted\[0\] lacks `launches`"):
        load(written(tmp_path, results=document))
