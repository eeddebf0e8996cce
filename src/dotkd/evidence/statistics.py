"""Means, intervals and paired tests over seeds: what a comparison may say, and what it may not.

Seeds are the sample: one run gives one number, and two trainers that share a seed share their data order and
their initial weights, so they are compared by pairs. Every interval is Student's t at 95 %.

    mean +- t(0.975, n - 1) s / sqrt(n)                 s: standard deviation with n - 1 in the denominator
    paired: the same of the differences d_i = candidate_i - baseline_i; p two-sided, H0: mean difference = 0
    effect size: Hedges' g_z = J(n - 1) mean(d) / s_d, the standardised mean difference of pairs, without the bias of
    Cohen's d_z = mean(d) / s_d, which over few seeds is large (Hedges 1981, eq. 6e; Lakens 2013):
    J(m) = Gamma(m / 2) / (sqrt(m / 2) Gamma((m - 1) / 2)), 0.56 at n = 3, 0.80 at 5, 0.89 at 8

Many tests, some of which come out by chance: `holm` corrects the p-values of a family so that the probability of
even one false claim among them stays below 0.05, whatever they have to do with each other.

A number that does not exist is None, never 0: one seed has no interval, two have no effect size (J(1) = 0), and
differences that do not vary at all have no test (their t statistic divides by zero). A run that diverged has no end to
average: means are over the runs that finished, and the count of the others travels with them.
"""

from __future__ import annotations

import importlib
import math
import statistics as stdlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)

CONFIDENCE = 0.95
ALPHA = 1.0 - CONFIDENCE
# A spread this small against the values is rounding of equal numbers, not variance between runs.
_ROUNDING = 1e-12


class Estimate(NamedTuple):
    """A mean over seeds; `mean +- half_width` is its 95 % interval.

    mean: None without a finished run. half_width: None with fewer than two.
    n: finished runs. diverged: runs left out of the mean because they had no finite end.
    """

    mean: float | None
    half_width: float | None
    n: int
    diverged: int


class Difference(NamedTuple):
    """Mean of candidate - baseline over the seeds both finished, with its 95 % half width and two-sided p.

    mean: None without a common seed. half_width, p: None with fewer than two, or where the differences do not
    vary. p_corrected: p after Holm in the family of tests that this one was put into; that of a test by itself is p.
    effect_size: Hedges' g_z, None as p is and with two seeds.
    """

    mean: float | None
    half_width: float | None
    p: float | None
    p_corrected: float | None
    effect_size: float | None
    n: int

    @property
    def shown(self) -> bool:
        """Whether the difference is told from zero at the 5 % level of its family of tests."""
        return self.p_corrected is not None and self.p_corrected < ALPHA


def estimate(values: Sequence[float | None], diverged: int = 0) -> Estimate:
    """Mean and 95 % interval of `values`; a None, an infinity or a NaN among them counts as a diverged run.

    diverged: further runs known to have no value at all. Raises ValueError where it is negative.
    """
    if diverged < 0:
        raise ValueError(f"expected `diverged` >= 0, got {diverged}")
    finite = [value for value in values if value is not None and math.isfinite(value)]
    left_out = diverged + len(values) - len(finite)
    if not finite:
        return Estimate(None, None, 0, left_out)
    return Estimate(math.fsum(finite) / len(finite), _half_width(finite), len(finite), left_out)


def paired_difference(candidate: Mapping[int, float | None], baseline: Mapping[int, float | None]) -> Difference:
    """Paired t-test of candidate - baseline, both {seed: value}, on the seeds finite in both."""
    differences: list[float] = []
    size = 0.0
    for seed in sorted(candidate.keys() & baseline.keys()):
        a, b = candidate[seed], baseline[seed]
        if a is not None and b is not None and math.isfinite(a) and math.isfinite(b):
            differences.append(a - b)
            size = max(size, abs(a), abs(b))
    n = len(differences)
    if n == 0:
        return Difference(None, None, None, None, None, 0)
    mean = math.fsum(differences) / n
    if n == 1 or stdlib.stdev(differences) <= _ROUNDING * size:
        return Difference(mean, None, None, None, None, n)
    p = _p_value(differences)
    return Difference(mean, _half_width(differences), p, p, _hedges(differences), n)


def paired_ratio(candidate: Mapping[int, float | None], baseline: Mapping[int, float | None]) -> Estimate:
    """Mean and 95 % interval of candidate / baseline over the seeds that have both, and both > 0."""
    ratios: list[float | None] = []
    for seed in sorted(candidate.keys() & baseline.keys()):
        a, b = candidate[seed], baseline[seed]
        if a and b and a > 0 and b > 0:
            ratios.append(a / b)
    return estimate(ratios)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """The p-values of a family of m tests, {test: p}, corrected by Holm (1979, Scand. J. Statist. 6, 65-70).

    In rising order p_(1) <= ... <= p_(m), corrected p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)).
    """
    corrected: dict[Key, float] = {}
    highest = 0.0
    for place, test in enumerate(sorted(p_values, key=lambda test: p_values[test])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[test]))
        corrected[test] = highest
    return corrected


def correct(family: Mapping[Key, Difference]) -> dict[Key, Difference]:
    """The differences of a family of tests, each with its p corrected by :func:`holm`."""
    p = holm({test: found.p for test, found in family.items() if found.p is not None})
    return {test: found._replace(p_corrected=p.get(test)) for test, found in family.items()}


def _half_width(values: Sequence[float]) -> float | None:
    """t(0.975, n - 1) s / sqrt(n), or None for a single value."""
    if len(values) < 2:
        return None
    quantile = float(_special().stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2))
    return quantile * stdlib.stdev(values) / math.sqrt(len(values))


def _p_value(differences: Sequence[float]) -> float:
    """Two-sided p of the one-sample t-test of `differences` (n >= 2, spread > 0) against a mean of zero."""
    n = len(differences)
    statistic = math.fsum(differences) / n / (stdlib.stdev(differences) / math.sqrt(n))
    return 2.0 * float(_special().stdtr(n - 1, -abs(statistic)))


def _hedges(differences: Sequence[float]) -> float | None:
    """g_z of `differences` (n >= 2, spread > 0); None for n = 2, where no unbiased estimate exists."""
    m = len(differences) - 1
    if m < 2:
        return None
    log_gamma = _special().gammaln
    unbiasing = math.exp(float(log_gamma(m / 2) - log_gamma((m - 1) / 2))) / math.sqrt(m / 2)
    return unbiasing * math.fsum(differences) / len(differences) / stdlib.stdev(differences)


def _special() -> Any:
    """scipy.special: Student's t without scipy.stats, whose import takes most of a second."""
    return importlib.import_module("scipy.special")
