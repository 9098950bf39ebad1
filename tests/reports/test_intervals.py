"""Medians, ratios and geometric means against answers known otherwise."""

import numpy as np
import pytest
from scipy import stats

from reports import intervals
from reports.intervals import Estimate


def test_median_weights_are_the_bootstrap_distribution_of_the_median():
    # For n = 5 the median of a resample is the smallest sample if at least 3 of 5 draws are it.
    assert intervals.median_weights(5)[0] == pytest.approx(stats.binom.sf(2, 5, 1 / 5))
    for n in (1, 2, 5, 8, 101):
        weights = intervals.median_weights(n)
        assert weights.sum() == pytest.approx(1)
        np.testing.assert_allclose(weights, weights[::-1], atol=1e-15)


@pytest.mark.parametrize("n, rank", [(5, 1), (8, 1), (9, 2), (20, 6), (100, 40)])
def test_interval_of_a_median_is_the_textbook_pair_of_order_statistics(n, rank):
    estimate = intervals.median(np.arange(1.0, n + 1)[::-1])
    assert (estimate.value, estimate.low, estimate.high) == ((n + 1) / 2, rank, n + 1 - rank)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_too_few_samples_have_a_value_and_no_interval(n):
    few, many = np.full(n, 2.0), np.full(20, 4.0)
    for estimate in (intervals.median(few), intervals.ratio_of_medians(many, few)):
        assert estimate.value == 2.0
        assert not estimate.has_interval


def test_ratio_of_constant_samples_is_exact():
    estimate = intervals.ratio_of_medians(np.full(7, 3.0), np.full(9, 2.0))
    assert (estimate.value, estimate.low, estimate.high) == (1.5, 1.5, 1.5)


def test_ratio_interval_agrees_with_a_simulated_bootstrap():
    rng = np.random.default_rng(1)
    top, bottom = rng.lognormal(0.3, 0.1, 31), rng.lognormal(0.0, 0.2, 41)
    resampled = [np.median(rng.choice(s, (20_000, len(s))), axis=1) for s in (top, bottom)]
    low, high = np.quantile(resampled[0] / resampled[1], (0.025, 0.975))
    estimate = intervals.ratio_of_medians(top, bottom)
    assert estimate.value == np.median(top) / np.median(bottom)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=0.01)


@pytest.mark.parametrize("n", [5, 8, 15])
def test_ratio_interval_covers_as_often_as_it_says(n):
    rng = np.random.default_rng(n)
    estimates = [intervals.ratio_of_medians(*rng.lognormal(0, 0.1, (2, n))) for _ in range(400)]
    assert np.mean([estimate.low <= 1 <= estimate.high for estimate in estimates]) >= 0.93


def test_ratio_interval_turns_over_with_its_arguments():
    rng = np.random.default_rng(2)
    one, other = rng.lognormal(0, 0.1, (2, 11))
    ratio, inverse = intervals.ratio_of_medians(one, other), intervals.ratio_of_medians(other, one)
    assert (1 / inverse.value, 1 / inverse.high, 1 / inverse.low) == pytest.approx((ratio.value, ratio.low, ratio.high))


def test_many_samples_cost_little():
    samples = np.random.default_rng(3).lognormal(0, 0.1, 20_000)
    estimate = intervals.ratio_of_medians(samples, samples)
    assert estimate.low < 1 < estimate.high
    assert estimate.high - estimate.low < 0.02


def exact(value):
    return Estimate(value, value, value)


def test_geometric_mean_and_its_weights():
    mean = intervals.geometric_mean([exact(2.0), exact(0.5)])
    assert (mean.value, mean.low, mean.high) == pytest.approx((1, 1, 1))
    assert intervals.geometric_mean([exact(2.0), exact(0.5)], [3, 1]).value == pytest.approx(2**0.5)


def test_geometric_mean_of_equals_is_surer_than_each_of_them():
    mean = intervals.geometric_mean([Estimate(1.0, np.exp(-0.2), np.exp(0.4))] * 4)
    assert np.log([mean.value, mean.low, mean.high]) == pytest.approx([0.0, -0.1, 0.2])


def test_geometric_mean_of_one_ratio_is_that_ratio():
    mean = intervals.geometric_mean([Estimate(1.5, 1.25, 1.75)], [7])
    assert (mean.value, mean.low, mean.high) == pytest.approx((1.5, 1.25, 1.75))


def test_geometric_mean_of_a_ratio_without_interval_has_none():
    mean = intervals.geometric_mean([exact(2.0), Estimate(2.0, np.nan, np.nan)])
    assert mean.value == pytest.approx(2)
    assert not mean.has_interval


def test_geometric_mean_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(5)
    means = [
        intervals.geometric_mean([intervals.ratio_of_medians(*rng.lognormal(0, 0.1, (2, 9))) for _ in range(6)])
        for _ in range(300)
    ]
    assert np.mean([mean.low <= 1 <= mean.high for mean in means]) >= 0.93
