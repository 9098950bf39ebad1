"""Baselines, verdicts and their summaries, on times whose answer is plain."""

import json

import numpy as np
import pytest

from reports import verdict
from reports.intervals import Estimate
from reports.load import ReportError, load
from tests.reports.reports_data import benchmark, check

PLACE = ("conv", "fprop", "Net", "layer", "float16")


def results(tmp_path, benchmarks, accuracy=()):
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"benchmarks": benchmarks, "accuracy": list(accuracy)}))
    return load([file])


def compare(found, **options):
    return verdict.compare(found, verdict.choose_baselines(found), **options).set_index("contender")


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (1.04, 1.5, "faster"),
        (1.02, 1.5, "ambiguous"),
        (0.98, 1.02, "same"),
        (0.5, 0.96, "slower"),
        (0.96, 0.99, "ambiguous"),
        (0.5, 2.0, "ambiguous"),
        (np.nan, np.nan, "ambiguous"),
    ],
)
def test_the_word_follows_the_whole_interval(low, high, expected):
    assert verdict.word(Estimate((low + high) / 2, low, high), margin=0.03) == expected


def test_the_margin_is_the_same_in_both_directions():
    for low, high in [(1.01, 1.2), (0.97, 1.02), (1.04, 1.05), (1.0, 1.0)]:
        mirrored = Estimate(1 / low, 1 / high, 1 / low)
        opposite = {"faster": "slower", "slower": "faster"}
        word = verdict.word(Estimate(low, low, high), margin=0.03)
        assert verdict.word(mirrored, margin=0.03) == opposite.get(word, word)


def test_times_become_ratios_to_the_baseline(tmp_path):
    times = {"cudnn": 1.0, "triton": 0.5, "cudnn-nchw": 2.0, "equal": 1.0}
    found = compare(results(tmp_path, [benchmark(*PLACE, name, [time] * 7) for name, time in times.items()]))
    assert dict(found["verdict"]) == {
        "cudnn": "baseline", "triton": "faster", "cudnn-nchw": "slower", "equal": "same",
    }  # fmt: skip
    assert found.loc["triton", ["ratio", "ratio_low", "ratio_high"]].to_list() == [2.0, 2.0, 2.0]
    assert found.loc["triton", "flop_per_s"] == 10**9 / 0.5
    assert np.isnan(found.loc["cudnn", "ratio"])


def test_a_forced_loader_is_compared_and_not_counted_as_ours(tmp_path):
    times = {"cudnn": 1.0, "triton": 0.5, "triton-gather": 2.0, "triton-tile": 0.5, "inductor": 2.0}
    found = compare(results(tmp_path, [benchmark(*PLACE, name, [time] * 7) for name, time in times.items()]))
    assert found.loc["triton-gather", "verdict"] == "slower"
    assert list(found.index[found["ours"]]) == ["triton"]


def test_too_few_samples_are_ambiguous_however_far_apart(tmp_path):
    entries = [benchmark(*PLACE, "cudnn", [1.0] * 4), benchmark(*PLACE, "triton", [0.1] * 4)]
    assert compare(results(tmp_path, entries)).loc["triton", "verdict"] == "ambiguous"


@pytest.mark.parametrize(
    "change",
    [
        {"device": "cuda"},
        {"clock": "device events, warm L2"},
        {"label": "modelled"},
        {"problem": {"N": 128}},
    ],
)
def test_unlike_measurements_are_never_compared(tmp_path, change):
    entries = [benchmark(*PLACE, "cudnn", [1.0] * 7), benchmark(*PLACE, "triton", [0.5] * 7, **change)]
    found = compare(results(tmp_path, entries))
    assert found.loc["triton", "verdict"] == "no baseline"
    assert np.isnan(found.loc["triton", "ratio"])


def test_files_are_never_compared_with_each_other(tmp_path):
    for name, contender in (("a", "cudnn"), ("b", "triton")):
        (tmp_path / name).write_text(json.dumps({"benchmarks": [benchmark(*PLACE, contender, [1.0] * 7)]}))
    found = load([tmp_path / "a", tmp_path / "b"])
    assert list(compare(found)["verdict"]) == ["baseline", "baseline"]


@pytest.mark.parametrize("timed", [True, False])
def test_what_failed_the_check_has_no_time(tmp_path, timed):
    entries = [benchmark(*PLACE, name, [1.0] * 7) for name in ("cudnn", "triton")[: 1 + timed]]
    found = compare(results(tmp_path, entries, [check(*PLACE, "triton", error=1.0, passed=False)]))
    assert found.loc["triton", "verdict"] == "wrong"
    assert found.loc["triton", ["median", "ratio", "flop_per_s"]].isna().all()


def test_a_wrong_baseline_is_no_baseline(tmp_path):
    entries = [benchmark(*PLACE, name, [1.0] * 7) for name in ("cudnn", "triton")]
    found = compare(results(tmp_path, entries, [check(*PLACE, "cudnn", passed=False)]))
    assert dict(found["verdict"]) == {"cudnn": "wrong", "triton": "no baseline"}


STEPS = {
    "reference": 36.0, "prepared": 18.0, "reference-graph": 16.0, "prepared-graph": 8.0, "reference-compile": 36.0,
}  # fmt: skip


def test_what_is_replayed_from_a_graph_is_compared_with_the_baselines_graph(tmp_path):
    """Beside the eager reference, whose time is the host's, each would be 2.25 times as fast and more."""
    place = ("training_step", "step", "Net", "training step", "bfloat16")
    found = results(tmp_path, [benchmark(*place, name, [time] * 7) for name, time in STEPS.items()])
    compared = compare(found)
    assert dict(compared["baseline"]) == {
        "reference": "reference", "prepared": "reference", "reference-compile": "reference",
        "reference-graph": "reference-graph", "prepared-graph": "reference-graph",
    }  # fmt: skip
    assert dict(compared["verdict"]) == {
        "reference": "baseline", "prepared": "faster", "reference-compile": "same",
        "reference-graph": "baseline", "prepared-graph": "faster",
    }  # fmt: skip
    assert compared.loc["prepared-graph", "ratio"] == 2.0
    summary = verdict.summarise(compared.reset_index(), ["run", "suite"])
    assert list(summary["contender"]) == ["prepared", "reference-compile", "prepared-graph"]
    assert list(summary["baseline"]) == ["reference", "reference", "reference-graph"]


def test_what_is_replayed_has_no_ratio_where_the_baseline_is_not(tmp_path):
    times = {"reference": 1.0, "prepared": 0.5, "prepared-graph": 0.1}
    found = compare(results(tmp_path, [benchmark(*PLACE, name, [time] * 7) for name, time in times.items()]))
    assert dict(found["verdict"]) == {"reference": "baseline", "prepared": "faster", "prepared-graph": "no baseline"}


def test_a_baseline_may_be_named_by_its_graph(tmp_path):
    found = results(tmp_path, [benchmark(*PLACE, name, [time] * 7) for name, time in STEPS.items()])
    for name in ("prepared", "prepared-graph"):
        assert verdict.choose_baselines(found, {"conv": name}) == {(0, "conv"): "prepared"}


@pytest.mark.parametrize(
    "suite, contenders, expected",
    [
        ("conv", ["torch", "cudnn", "triton"], "cudnn"),
        ("conv", ["torch-nchw", "torch"], "torch"),
        ("weight_prep", ["reference", "weight_norm"], "weight_norm"),
        ("weight_prep", ["reference", "compile"], "reference"),
        ("dirac_block", ["compile", "reference"], "reference"),
        ("host_overhead", ["dirac_conv2d", "torch"], "torch"),
        ("training_step", ["prepared-graph", "reference-graph"], "reference"),
        ("something", ["b", "a"], "b"),
    ],
)
def test_default_baselines(tmp_path, suite, contenders, expected):
    entries = [benchmark(suite, *PLACE[1:], name, [1.0] * 7) for name in contenders]
    assert verdict.choose_baselines(results(tmp_path, entries)) == {(0, suite): expected}


def test_a_chosen_baseline_goes_first_and_must_be_known(tmp_path):
    found = results(tmp_path, [benchmark(*PLACE, name, [1.0] * 7) for name in ("cudnn", "triton")])
    assert verdict.choose_baselines(found, {"conv": "triton"}) == {(0, "conv"): "triton"}
    with pytest.raises(ReportError, match=r"conv=cublas: timed there: cudnn, triton"):
        verdict.choose_baselines(found, {"conv": "cublas"})
    with pytest.raises(ReportError, match="no such suite"):
        verdict.choose_baselines(found, {"pooling": "cudnn"})


def test_a_layer_of_two_nets_is_one_measurement_and_weighs_as_often_as_each_has_it(tmp_path):
    nets = {"A": 4, "B": 6}
    entries = [
        benchmark("conv", "fprop", "A, B", layer, "float16", name, [time] * 7, nets=counts, count=sum(counts.values()))
        for layer, counts, faster in (("one", nets, 2), ("two", {"A": 1, "B": 1}, 8))
        for name, time in (("cudnn", faster), ("triton", 1))
    ]
    entries += [benchmark("conv", "fprop", "A", "three", "float16", name, [1] * 7) for name in ("cudnn", "triton")]
    found = results(tmp_path, entries)
    compared = verdict.compare(found, verdict.choose_baselines(found))
    (overall,) = verdict.summarise(compared, ["run", "suite"]).to_dict("records")
    assert (overall["places"], overall["faster"], overall["same"]) == (3, 2, 1)
    groups = verdict.summarise(verdict.per_net(compared), verdict.GROUP).set_index("net")
    assert dict(groups["places"]) == {"A": 3, "B": 2}
    assert groups.loc["A", "geomean_by_count"] == pytest.approx(2 ** ((4 * 1 + 1 * 3 + 0) / 6))
    assert groups.loc["B", "geomean_by_count"] == pytest.approx(2 ** ((6 * 1 + 1 * 3) / 7))


def test_summaries_count_every_layer_and_weigh_by_count(tmp_path):
    entries, accuracy = [], []
    for layer, count, time in (("a", 3, 0.5), ("b", 1, 2.0), ("c", 5, None)):
        place = (*PLACE[:3], layer, PLACE[4])
        entries.append(benchmark(*place, "cudnn", [1.0] * 7, count=count))
        if time:
            entries.append(benchmark(*place, "triton", [time] * 7, count=count))
        else:
            accuracy.append(check(*place, "triton", passed=False))
    found = results(tmp_path, entries, accuracy)
    (row,) = verdict.summarise(compare(found).reset_index(), verdict.GROUP).to_dict("records")
    assert row["geomean"] == pytest.approx(1.0)
    assert row["geomean_by_count"] == pytest.approx((2.0**3 * 0.5) ** 0.25)
    assert (row["faster"], row["slower"], row["wrong"]) == (1, 1, 1)
    assert (row["compared"], row["places"]) == (2, 3)
    assert (row["worst"], row["worst_layer"], row["best"], row["best_layer"]) == (0.5, "b", 2.0, "a")
