"""Sampled classes of a teacher's distribution. The contract:

- `count` different classes are kept and their p^ add up to 1, for every u; those kept in any case are the largest.
- Over u, E p^ = p for every class: by exact integration over all pieces of u, and in the literal loop's choice.
- The gradient of KD in the student's logits is unbiased, through the float16 of a record, at the temperature of the
  record; that of the plain top k is not, nor is that at another temperature.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dotkd.cache.records import SampledRecords
from dotkd.cache.sampling import sampled, uniform
from dotkd.losses import kd

CASES = {
    "sharp": torch.tensor([0.9, 0.05, 0.02, 0.01, 0.01, 0.005, 0.005]),
    "flat": torch.full((7,), 1 / 7),
    "one alone": torch.tensor([1.0, 0, 0, 0, 0, 0, 0]),
    "some": torch.tensor([0.1, 0.3, 0.04, 0.06, 0.2, 0.26, 0.04]),
}


def literal(p: list[float], count: int, u: float) -> dict[int, float]:
    """The docstring, step by step."""
    order = sorted(range(len(p)), key=lambda j: -p[j])
    ordered = [p[j] for j in order]
    for head in range(count):
        tail = math.fsum(ordered[head:])
        if (count - head) * ordered[head] <= tail + 1e-15:
            break
    share = tail / (count - head)
    kept = {order[j]: ordered[j] for j in range(head)}
    for step in range(count - head):
        edge = 0.0
        for j in range(head, len(p)):
            if edge <= (u + step) * share < edge + ordered[j]:
                kept[order[j]] = share
            edge += ordered[j]
    return kept


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_literal_procedure(name: str, count: int) -> None:
    p = CASES[name].double() / CASES[name].double().sum()
    u = torch.linspace(0.013, 0.987, 50, dtype=torch.float64)
    classes, shares = sampled(p.expand(50, -1), count, u)
    for row, position in enumerate(u.tolist()):
        found = dict(zip(classes[row].tolist(), shares[row].tolist(), strict=True))
        assert len(found) == count
        assert math.fsum(found.values()) == pytest.approx(1, abs=1e-12)
        expected = literal(p.tolist(), count, position)
        for kept in {*found, *expected}:
            assert found.get(kept, 0.0) == pytest.approx(expected.get(kept, 0.0), abs=1e-12)


@pytest.mark.parametrize(
    ("classes", "count", "temperature"), [(10, 3, 1.0), (100, 10, 4.0), (300, 1, 1.0), (5, 4, 1.0)]
)
def test_the_mean_over_u_is_the_distribution(classes: int, count: int, temperature: float) -> None:
    z = 3 * torch.randn(classes, generator=torch.Generator().manual_seed(classes)).double()
    p = (z / temperature).softmax(0)
    draws = 8_000
    middles = (torch.arange(draws).double() + 0.5) / draws  # what is kept changes at `classes` places only
    kept, shares = sampled(p.expand(draws, -1), count, middles)
    mean = torch.zeros_like(p).index_add_(0, kept.flatten(), shares.flatten()) / draws
    assert float((mean - p).abs().max()) < 2 / draws


def gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    student = student.clone().requires_grad_()
    kd(student, teacher, temperature=temperature).backward()
    assert student.grad is not None
    return student.grad * len(student)  # kd is a mean over samples


def mean_error(taught: Tensor, student: Tensor, teacher: Tensor, temperature: float) -> tuple[float, float]:
    """How far the mean gradient of many records is from that of the teacher, and the standard error of the mean."""
    rows = gradient(student.expand(len(taught), -1), taught, temperature)
    exact = gradient(student, teacher, temperature)
    error = rows.mean(0) - exact[0]
    return float(error.norm()), float(rows.var(0).sum().div(len(rows)).sqrt())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_of_kd_is_unbiased_and_that_of_the_plain_top_k_is_not(temperature: float) -> None:
    source = torch.Generator().manual_seed(1)
    teacher, student = 2 * torch.randn(1, 40, generator=source), torch.randn(1, 40, generator=source)
    draws, count = 20_000, 6
    records = SampledRecords(40, count, temperature)
    index = torch.arange(draws)
    parts = records.encode(teacher.expand(draws, -1), uniform(index, torch.zeros_like(index)))
    assert parts[0].dtype == torch.float16
    error, deviation = mean_error(records.decode(*parts), student, teacher, temperature)
    # Within four standard errors and the rounding of float16.
    assert error < 4 * deviation + temperature * 2**-11

    plain = torch.full((1, 40), -math.inf)
    largest = teacher.topk(count)
    plain.scatter_(1, largest.indices, largest.values)
    biased = gradient(student, plain, temperature) - gradient(student, teacher, temperature)
    assert float(biased.norm()) > 10 * (4 * deviation + temperature * 2**-11)


def test_at_another_temperature_the_gradient_is_biased() -> None:
    source = torch.Generator().manual_seed(1)
    teacher, student = 2 * torch.randn(1, 40, generator=source), torch.randn(1, 40, generator=source)
    records = SampledRecords(40, 6, 1.0)
    index = torch.arange(20_000)
    taught = records.decode(*records.encode(teacher.expand(len(index), -1), uniform(index, index)))
    error, deviation = mean_error(taught, student, teacher, 4.0)
    assert error > 10 * deviation


def test_u_is_uniform_and_has_nothing_to_do_with_what_is_shown() -> None:
    from scipy import stats

    from dotkd.data.draws import numbers_of_views

    index, view = torch.meshgrid(torch.arange(100), torch.arange(100), indexing="ij")
    u = uniform(index.flatten(), view.flatten())
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    for column in numbers_of_views(index.flatten(), view.flatten(), 3).T:
        assert stats.pearsonr(u.numpy(), column.numpy()).pvalue > 1e-3


def test_what_does_not_fit_is_refused() -> None:
    for count in (0, 5):
        with pytest.raises(ValueError, match=rf"expected `top_k` in 1\.\.4, fewer than the 5 classes, got {count}"):
            SampledRecords(5, count, 1.0)
    for temperature in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="expected `temperature` > 0 and finite, got"):
            SampledRecords(5, 2, temperature)
