"""Linear CKA.

The contract:
- HSIC is the unbiased estimator: the product of U-centred Gram matrices, and of mean 0 for independent features;
- CKA is 1 of features with themselves, turned, scaled or shifted, and symmetric; features that do not vary give NaN;
- batches are averaged before the division, each by its number of samples;
- fewer than 4 samples, and no batch at all, are refused.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dotkd.evidence.similarity import linear_cka, unbiased_hsic


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def u_centred(gram: np.ndarray) -> np.ndarray:
    """Székely and Rizzo 2014, definition 2."""
    n = len(gram)
    off = gram - np.diag(np.diag(gram))
    rows, total = off.sum(1), off.sum()
    found = off - rows[:, None] / (n - 2) - rows[None, :] / (n - 2) + total / ((n - 1) * (n - 2))
    np.fill_diagonal(found, 0)
    return found


def hsic_by_definition(x: Tensor, y: Tensor) -> float:
    k, other = (u_centred((f.flatten(1) @ f.flatten(1).T).numpy()) for f in (x, y))
    return float((k * other).sum() / (len(k) * (len(k) - 3)))


def test_hsic_is_the_product_of_u_centred_matrices():
    x, y = features(9, 4), features(9, 6, seed=1) + 3.0
    found = unbiased_hsic((x @ x.T)[None], (y @ y.T)[None])
    assert found.shape == (1, 1)
    assert float(found) == pytest.approx(hsic_by_definition(x, y), rel=1e-10)


def test_hsic_of_independent_features_is_0_on_average():
    """The biased estimator has a mean of 22 here."""
    values = [hsic_by_definition(features(12, 50, seed=2 * k), features(12, 50, seed=2 * k + 1)) for k in range(200)]
    ours = []
    for k in range(200):
        x, y = features(12, 50, seed=2 * k), features(12, 50, seed=2 * k + 1)
        ours.append(float(unbiased_hsic((x @ x.T)[None], (y @ y.T)[None])))
    np.testing.assert_allclose(ours, values, rtol=1e-8, atol=1e-8)
    assert abs(np.mean(ours)) < 3 * np.std(ours) / np.sqrt(200)


def test_each_with_each():
    """Feature maps and vectors, in float32 and float64."""
    first = [features(10, 3, 2, 2), features(10, 5, seed=1).float()]
    second = [features(10, 7, seed=2), first[0] + 0.5 * features(10, 3, 2, 2, seed=3), features(10, 2, seed=4)]
    found = linear_cka([(first, second)])
    assert found.shape == (2, 3)
    for i, x in enumerate(first):
        for j, y in enumerate(second):
            x64, y64 = x.double(), y.double()
            own = hsic_by_definition(x64, x64) * hsic_by_definition(y64, y64)
            assert float(found[i, j]) == pytest.approx(hsic_by_definition(x64, y64) / np.sqrt(own), rel=1e-9)


def test_invariances():
    x = features(20, 6)
    turn, _ = torch.linalg.qr(features(6, 6, seed=5))
    same = [x, x @ turn, -3.0 * x, x + 100 * features(6, seed=6)]
    torch.testing.assert_close(linear_cka([([x], same)]), torch.ones(1, 4, dtype=torch.float64))
    other = features(20, 4, seed=7)
    one, two = linear_cka([([x], [other])]), linear_cka([([other], [x])])
    torch.testing.assert_close(one, two.T)
    # An invertible map that is no rotation is another matter.
    assert float(linear_cka([([x], [x * torch.tensor([10.0, 1, 1, 1, 1, 1])])])) < 0.9


def test_batches_are_averaged_before_the_division():
    x, y = features(18, 5), features(18, 3, seed=1) + features(18, 5)[:, :3]
    cuts = (slice(0, 12), slice(12, 18))

    def mean(a: Tensor, b: Tensor) -> float:
        return sum((cut.stop - cut.start) * hsic_by_definition(a[cut], b[cut]) for cut in cuts) / 18

    found = linear_cka([([x[cut]], [y[cut]]) for cut in cuts])
    assert float(found) == pytest.approx(mean(x, y) / np.sqrt(mean(x, x) * mean(y, y)), rel=1e-10)


def test_what_has_no_answer():
    x = features(8, 3)
    assert linear_cka([([x], [torch.ones(8, 2)])]).isnan().all()
    with pytest.raises(ValueError, match="expected at least 4 samples for an unbiased estimate, got 3"):
        linear_cka([([x[:3]], [x[:3]])])
    with pytest.raises(ValueError, match="expected at least one batch of features, got none"):
        linear_cka([])
