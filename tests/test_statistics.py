"""Statistics over seeds.

The contract:
- an interval is the 95 % t-interval of the mean, a difference the paired t-test on the seeds both sides finished;
- what does not exist (one seed, differences without spread) is None, never 0;
- a run that diverged is left out of every mean and counted beside it.
"""

from __future__ import annotations

import math

import pytest
import scipy.stats

from dotkd.evidence.statistics import Difference, Estimate, estimate, paired_difference

VALUES = [0.91, 0.887, 0.902, 0.9105, 0.8951]
OTHERS = [0.90, 0.889, 0.893, 0.9001, 0.8920]


def by_seed(values: list[float]) -> dict[int, float | None]:
    return dict(enumerate(values))


def test_interval_is_scipys_t_interval():
    low, high = scipy.stats.t.interval(0.95, 4, loc=sum(VALUES) / 5, scale=scipy.stats.sem(VALUES))
    result = estimate(VALUES)
    assert result.mean == pytest.approx(sum(VALUES) / 5, rel=1e-14)
    assert result.half_width == pytest.approx((high - low) / 2, rel=1e-12)
    assert (result.n, result.diverged) == (5, 0)


def test_interval_by_hand():
    # 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.302653 (any table), s / sqrt(3) = 0.577350
    result = estimate([1.0, 2.0, 3.0])
    assert result.half_width == pytest.approx(4.302653 * 0.577350, rel=1e-6)


def test_paired_difference_is_scipys_paired_test():
    oracle = scipy.stats.ttest_rel(VALUES, OTHERS)
    interval = oracle.confidence_interval(0.95)
    result = paired_difference(by_seed(VALUES), by_seed(OTHERS))
    assert result.p == pytest.approx(oracle.pvalue, rel=1e-10)
    assert result.mean is not None
    assert result.half_width is not None
    assert result.mean - result.half_width == pytest.approx(interval.low, rel=1e-10)
    assert result.mean + result.half_width == pytest.approx(interval.high, rel=1e-10)
    assert result.n == 5
    assert result.shown == (oracle.pvalue < 0.05)


def test_pairing_is_by_seed_and_not_by_position():
    candidate = {3: 0.5, 1: 0.2, 2: 0.4}
    baseline = {1: 0.1, 2: 0.35, 3: 0.3, 7: 0.9}
    result = paired_difference(candidate, baseline)
    assert result.n == 3
    assert result.mean == pytest.approx((0.1 + 0.05 + 0.2) / 3)


def test_one_seed_has_no_interval_and_no_test():
    assert estimate([0.5]) == Estimate(0.5, None, 1, 0)
    assert paired_difference({0: 0.5}, {0: 0.25}) == Difference(0.25, None, None, 1)


def test_no_seed_has_no_mean():
    assert estimate([]) == Estimate(None, None, 0, 0)
    assert paired_difference({0: 0.5}, {1: 0.25}) == Difference(None, None, None, 0)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_differences_without_spread_have_no_test(shift: float):
    # 0.1 is no binary fraction: the differences differ in their last bits, and that is not variance between runs.
    result = paired_difference(by_seed([value + shift for value in VALUES]), by_seed(VALUES))
    assert result.mean == pytest.approx(shift)
    assert (result.half_width, result.p, result.n, result.shown) == (None, None, 5, False)


def test_equal_values_have_an_interval_of_no_width():
    assert estimate([0.5, 0.5, 0.5]) == Estimate(0.5, 0.0, 3, 0)


def test_diverged_runs_are_counted_and_in_no_mean():
    assert estimate([0.25, None, 0.75, math.nan, math.inf], diverged=2) == Estimate(
        0.5, pytest.approx(12.706 * math.sqrt(0.125) / math.sqrt(2), rel=1e-3), 2, 5
    )
    assert estimate([None, None]) == Estimate(None, None, 0, 2)


def test_a_diverged_run_takes_its_pair_out():
    result = paired_difference({0: 0.5, 1: None, 2: 0.7}, {0: 0.4, 1: 0.4, 2: math.nan})
    assert (result.mean, result.n) == (pytest.approx(0.1), 1)


def test_negative_count_is_refused():
    with pytest.raises(ValueError, match="expected `diverged` >= 0, got -1"):
        estimate([0.5], diverged=-1)
