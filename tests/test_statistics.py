"""Statistics over seeds.

The contract:
- an interval is the 95 % t-interval of the mean, a difference the paired t-test on the seeds both sides finished;
- the effect size is the unbiased one, Holm's correction that of his procedure, and a test by itself is corrected by
  nothing;
- what does not exist (one seed, differences without spread) is None, never 0;
- a run that diverged is left out of every mean and counted beside it.
"""

from __future__ import annotations

import math
import random

import pytest
import scipy.stats

from dotkd.evidence.statistics import Difference, Estimate, correct, estimate, holm, paired_difference, paired_ratio

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


def test_paired_difference_by_hand():
    # Differences 1, 2, 3: mean 2, s = 1, t = 2 / (1 / sqrt(3)) = 3.4641; at 2 degrees of freedom the distribution
    # function is 1/2 + t / (2 sqrt(2 + t^2)), so p = 1 - t / sqrt(2 + t^2) = 1 - sqrt(12 / 14).
    result = paired_difference(by_seed([1.0, 3.0, 5.0]), by_seed([0.0, 1.0, 2.0]))
    assert (result.mean, result.n) == (2.0, 3)
    assert result.p == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-12)
    assert result.p == pytest.approx(scipy.stats.ttest_rel([1.0, 3.0, 5.0], [0.0, 1.0, 2.0]).pvalue, rel=1e-12)
    assert result.p_corrected == result.p
    # d_z = mean / s = 2; J(2) = Gamma(1) / (sqrt(1) Gamma(1/2)) = 1 / sqrt(pi).
    assert result.effect_size == pytest.approx(2 / math.sqrt(math.pi), rel=1e-12)


@pytest.mark.parametrize("n", [3, 4, 8, 30])
def test_effect_size_is_right_on_average(n: int):
    # With a true standardised difference delta, sqrt(n) d_z has the noncentral t distribution of sqrt(n) delta.
    delta = 0.7
    expected = scipy.stats.nct.mean(n - 1, delta * math.sqrt(n)) / math.sqrt(n)
    values = [0.1 * k for k in range(n)]
    result = paired_difference(by_seed(values), by_seed([0.0] * n))
    biased = sum(values) / n / float(scipy.stats.tstd(values))
    assert result.effect_size is not None
    assert result.effect_size / biased * expected == pytest.approx(delta, rel=1e-9)


def rejected(p_values: dict[str, float], alpha: float) -> set[str]:
    """Holm's procedure as he wrote it: from the smallest on, at alpha / m, alpha / (m - 1), ..., up to the first that
    is above."""
    waiting, found = dict(p_values), set()
    while waiting:
        smallest = min(waiting, key=lambda name: waiting[name])
        if waiting[smallest] > alpha / len(waiting):
            break
        found.add(smallest)
        del waiting[smallest]
    return found


def test_holm_rejects_what_his_procedure_rejects():
    draw = random.Random(0)
    for m in range(1, 9):
        p_values = {str(k): draw.choice([draw.random(), draw.random() ** 4, 0.01]) for k in range(m)}
        corrected = holm(p_values)
        levels = [draw.random() for _ in range(50)] + [0.01, 0.05]
        for alpha in levels:
            assert {name for name, p in corrected.items() if p <= alpha} == rejected(p_values, alpha)
    assert holm({}) == {}


def test_holm_by_hand():
    # 4 x 0.01, 3 x 0.013 = 0.039 -> not below 0.04, 2 x 0.03, 1 x 0.9
    assert holm({"d": 0.9, "a": 0.01, "c": 0.03, "b": 0.013}) == pytest.approx(
        {"a": 0.04, "b": 0.04, "c": 0.06, "d": 0.9}
    )
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


def test_a_family_is_corrected_without_the_differences_that_have_no_test():
    zero = by_seed([0.0] * 5)
    family = {
        "clear": paired_difference(by_seed([2.0, 2.1, 1.9, 2.0, 2.2]), zero),
        "unclear": paired_difference(by_seed([2.0, -1.0, 0.5, 1.0, 0.2]), zero),
        "one seed": paired_difference(by_seed([1.0]), zero),
    }
    found = correct(family)
    assert found["clear"].p_corrected == pytest.approx(2 * family["clear"].p)
    assert found["unclear"].p_corrected == pytest.approx(family["unclear"].p)
    assert found["one seed"].p_corrected is None
    assert all(found[name]._replace(p_corrected=None) == family[name]._replace(p_corrected=None) for name in family)


def test_what_is_shown_is_by_the_corrected_p():
    result = paired_difference(by_seed(VALUES), by_seed([value - 0.02 for value in OTHERS]))
    assert result.shown
    assert not result._replace(p_corrected=0.05 + 1e-9).shown
    assert not result._replace(p_corrected=None).shown


def test_ratio_is_the_mean_over_pairs():
    result = paired_ratio({0: 2.0, 1: 9.0, 2: 5.0, 3: None}, {1: 3.0, 0: 1.0, 2: 0.0, 3: 1.0})
    assert (result.mean, result.n) == (2.5, 2)
    assert paired_ratio({0: 1.0}, {}) == Estimate(None, None, 0, 0)


def test_pairing_is_by_seed_and_not_by_position():
    candidate = {3: 0.5, 1: 0.2, 2: 0.4}
    baseline = {1: 0.1, 2: 0.35, 3: 0.3, 7: 0.9}
    result = paired_difference(candidate, baseline)
    assert result.n == 3
    assert result.mean == pytest.approx((0.1 + 0.05 + 0.2) / 3)


def test_one_seed_has_no_interval_and_no_test():
    assert estimate([0.5]) == Estimate(0.5, None, 1, 0)
    assert paired_difference({0: 0.5}, {0: 0.25}) == Difference(0.25, None, None, None, None, 1)


def test_two_seeds_have_a_test_and_no_effect_size():
    result = paired_difference({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.5})
    assert result.p == pytest.approx(scipy.stats.ttest_rel([0.5, 0.7], [0.4, 0.5]).pvalue, rel=1e-9)
    assert result.effect_size is None


def test_no_seed_has_no_mean():
    assert estimate([]) == Estimate(None, None, 0, 0)
    assert paired_difference({0: 0.5}, {1: 0.25}) == Difference(None, None, None, None, None, 0)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_differences_without_spread_have_no_test(shift: float):
    # 0.1 is no binary fraction: the differences differ in their last bits, and that is not variance between runs.
    result = paired_difference(by_seed([value + shift for value in VALUES]), by_seed(VALUES))
    assert result.mean == pytest.approx(shift)
    assert (result.half_width, result.p, result.p_corrected, result.effect_size) == (None, None, None, None)
    assert (result.n, result.shown) == (5, False)


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
