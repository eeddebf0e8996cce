"""The formulas of the objectives on logits, written out with numpy and scipy in float64, sample by sample.

Each takes student and teacher logits, (N, C), the targets, (N,), and the temperature, and returns the loss as it is
published. `strong` makes the second view that the objectives on two views are tested with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax
from scipy.stats import pearsonr
from torch import Tensor

Array = NDArray[np.float64]


def sample(*shape: int, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> Any:
    """Student logits, teacher logits, targets."""
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * scale
    return s.to(dtype), t.to(dtype), torch.randint(shape[-1], shape[:-1], generator=generator)


def strong(student: Any, teacher: Any) -> tuple[Any, Any]:
    """A second view, a function of the first: works for tensors and arrays."""
    return 0.5 * student + 0.25 * teacher, 0.75 * teacher


def views(loss: Any) -> Any:
    """An objective on two views as (student, teacher, target)."""

    def on_both(s: Tensor, t: Tensor, y: Tensor, **options: Any) -> Tensor:
        second_s, second_t = strong(s, t)
        return loss(s, t, student_strong=second_s, teacher_strong=second_t, **options)

    return on_both


def kl(p: Array, q: Array) -> float:
    return float(rel_entr(p, q).sum())


def correlation_distances(x: Array, y: Array) -> float:
    """Mean of 1 - r over rows; rows that do not vary have no r."""
    with_r = [1 - pearsonr(a, b).statistic for a, b in zip(x, y, strict=True) if np.ptp(a) > 0 and np.ptp(b) > 0]
    return float(np.mean(with_r)) if with_r else 0.0


def dist_oracle(s: Array, t: Array, y: Array, temperature: float, beta: float = 1.0, gamma: float = 1.0) -> float:
    q, p = softmax(s / temperature, axis=1), softmax(t / temperature, axis=1)
    return temperature**2 * (beta * correlation_distances(q, p) + gamma * correlation_distances(q.T, p.T))


def z_score(z: Array) -> Array:
    return np.array([(row - row.mean()) / np.std(row, ddof=0) for row in z])


def ls_kd_oracle(s: Array, t: Array, y: Array, temperature: float) -> float:
    rows = zip(z_score(s), z_score(t), strict=True)
    return temperature**2 * float(np.mean([kl(softmax(b / temperature), softmax(a / temperature)) for a, b in rows]))


def nkd_oracle(s: Array, t: Array, y: Array, temperature: float, gamma: float = 1.5) -> float:
    losses = []
    for a, b, i in zip(s, t, y, strict=True):
        rest_q = softmax(np.delete(a, i) / temperature)
        rest_p = softmax(np.delete(b, i) / temperature)
        first = -softmax(b)[i] * np.log(softmax(a)[i])
        losses.append(first - gamma * temperature**2 * float((rest_p * np.log(rest_q)).sum()))
    return float(np.mean(losses))


def mlkd_oracle(s: Array, t: Array, y: Array, temperature: float) -> float:
    second_s, second_t = strong(s, t)
    sure = softmax(t, axis=1)
    rows = sure.max(axis=1) <= np.percentile(sure.max(axis=1), 50)
    columns = sure.sum(axis=0) <= np.percentile(sure.sum(axis=0), 50)
    n, classes = s.shape
    total = 0.0
    for tau in (temperature, 2.0, 3.0, 5.0, 6.0):
        p, q = softmax(t / tau, axis=1), softmax(s / tau, axis=1)
        p2, q2 = softmax(second_t / tau, axis=1), softmax(second_s / tau, axis=1)
        for i in range(n):
            total += tau**2 / n * (rows[i] * kl(p[i], q[i]) + kl(p2[i], q2[i]))
            for j in range(n):
                total += rows[j] / n * (p[i] @ p[j] - q[i] @ q[j]) ** 2
        for j in range(classes):
            for k in range(classes):
                total += columns[k] / classes * (p[:, j] @ p[:, k] - q[:, j] @ q[:, k]) ** 2
    return total


def crld_oracle(
    s: Array,
    t: Array,
    y: Array,
    temperature: float,
    within: float = 2.0,
    cross: float = 0.5,
    threshold_weak: float = 0.9,
    threshold_strong: float = 0.2,
) -> float:
    losses = []
    for a, b in zip(s, t, strict=True):
        a2, b2 = strong(a, b)
        q, p, q2, p2 = (softmax(z / temperature) for z in (a, b, a2, b2))
        loss = 0.0
        if softmax(b).max() >= threshold_weak:
            loss += within * (kl(p, q) + kl(p2, q2))
        if softmax(b2).max() >= threshold_strong:
            loss += cross * (kl(p, q2) + kl(p2, q))
        losses.append(temperature**2 * loss)
    return float(np.mean(losses))


def deepkd_oracle(
    s: Array,
    t: Array,
    y: Array,
    temperature: float,
    k: int | None = None,
    alpha: float = 1.0,
    beta: float | None = None,
) -> dict[str, float]:
    """`k` classes beside the target are compared; None: all."""
    target, nontarget = [], []
    for a, b, i in zip(s, t, y, strict=True):
        p, q = softmax(b / temperature), softmax(a / temperature)
        target.append(alpha * kl(np.array([p[i], 1 - p[i]]), np.array([q[i], 1 - q[i]])))
        others = sorted((j for j in range(len(a)) if j != i), key=lambda j: -b[j])[:k]
        part = kl(softmax(b[others] / temperature), softmax(a[others] / temperature))
        nontarget.append((1 - p[i] if beta is None else beta) * part)
    return {
        "target": temperature**2 * float(np.mean(target)),
        "nontarget": temperature**2 * float(np.mean(nontarget)),
    }


def adakd_oracle(
    s: Array, t: Array, y: Array, temperature: float, ratio: float = 1.0, strength: float = 0.5, beta: float = 1.0
) -> float:
    difficulty = [
        np.sqrt(((np.sqrt(softmax(a)) - np.sqrt(softmax(b))) ** 2).sum() / 2) for a, b in zip(s, t, strict=True)
    ]
    number = max(1, int(np.floor(ratio * len(s) + 0.5)))
    chosen = sorted(range(len(s)), key=lambda i: -difficulty[i])[:number]
    median = np.median([difficulty[i] for i in chosen])
    losses = []
    for i in chosen:
        tau = temperature * np.exp(-strength * np.tanh(np.log(difficulty[i] / median)))
        p, q = softmax(t[i] / tau), softmax(s[i] / tau)
        losses.append(tau**2 * (kl(q, p) if beta == 1.0 else kl(p, q)))
    return float(np.mean(losses))
