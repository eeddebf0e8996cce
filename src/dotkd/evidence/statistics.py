"""Means, intervals and paired tests over seeds: what a comparison may say, and what it may not.

Seeds are the sample: one run gives one number, and two trainers that share a seed share their data order and
their initial weights, so they are compared by pairs. Every interval is Student's t at 95 %.

    mean +- t(0.975, n - 1) s / sqrt(n)                 s: standard deviation with n - 1 in the denominator
    paired: the same of the differences d_i = candidate_i - baseline_i; p two-sided, H0: mean difference = 0

p-values are as they come, one test each: nothing here corrects for the number of comparisons.

A number that does not exist is None, never 0: one seed has no interval, and differences that do not vary at
all have no test (their t statistic divides by zero). A run that diverged has no end to average: means are
over the runs that finished, and the count of the others travels with them.
"""

from __future__ import annotations

import importlib
import math
import statistics as stdlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
    vary.
    """

    mean: float | None
    half_width: float | None
    p: float | None
    n: int

    @property
    def shown(self) -> bool:
        """Whether the difference is told from zero at the 5 % level."""
        return self.p is not None and self.p < ALPHA


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
        return Difference(None, None, None, 0)
    mean = math.fsum(differences) / n
    if n == 1 or stdlib.stdev(differences) <= _ROUNDING * size:
        return Difference(mean, None, None, n)
    return Difference(mean, _half_width(differences), _p_value(differences), n)


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


def _special() -> Any:
    """scipy.special: Student's t without scipy.stats, whose import takes most of a second."""
    return importlib.import_module("scipy.special")
