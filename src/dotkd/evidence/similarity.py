"""How alike two models see the same samples: linear CKA (Kornblith et al. 2019, arXiv 1905.00414).

With features X (N, D1) and Y (N, D2) of the same N samples, K = X X^T and L = Y Y^T:

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

1 where Y is X turned, mirrored, shifted or scaled as a whole, near 0 where the two have nothing to do with each other;
D1 and D2 may differ. HSIC is the unbiased estimator (Song et al. 2012, JMLR 13, equation 5), with K~, L~ whose
diagonals are set to 0:

    HSIC = [tr(K~ L~) + (1' K~ 1)(1' L~ 1) / ((N - 1)(N - 2)) - 2 (1' K~ L~ 1) / (N - 2)] / (N (N - 3))

The usual, biased one tends to 1 for features of more dimensions than there are samples, which feature maps have. Being
unbiased it may also be averaged over batches, and the three averages divided (Nguyen et al. 2021, arXiv 2010.15327):
memory grows with a batch squared, not with N squared. Chance may put the estimate slightly below 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """HSIC of Gram matrices (S, N, N) with (T, N, N), each with each: (S, T). Raises ValueError where N < 4."""
    n = first.shape[-1]
    if n < 4:
        raise ValueError(f"expected at least 4 samples for an unbiased estimate, got {n}")
    kept = 1 - torch.eye(n, dtype=first.dtype, device=first.device)
    first, second = first * kept, second * kept
    traces = torch.einsum("sij,tij->st", first, second)
    rows, others = first.sum(-1), second.sum(-1)
    sums = rows.sum(-1)[:, None] * others.sum(-1)
    return (traces + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows @ others.T)) / (n * (n - 3))


def linear_cka(batches: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> Tensor:
    """CKA of each of S features with each of T others, (S, T) float64; NaN where features do not vary.

    batches: of the same samples the S features of one model and the T of the other, (N, ...) each, in any dtype; each
    batch counts by its number of samples.

    Raises ValueError for no batch at all, and for one of fewer than 4 samples.
    """
    totals: list[Tensor] = []
    for first, second in batches:
        grams = _grams(first), _grams(second)
        found = [unbiased_hsic(*grams)]
        found += [torch.stack([unbiased_hsic(one[None], one[None])[0, 0] for one in side]) for side in grams]
        found = [grams[0].shape[-1] * value for value in found]
        totals = [total + value for total, value in zip(totals, found, strict=True)] if totals else found
    if not totals:
        raise ValueError("expected at least one batch of features, got none")
    cross, of_first, of_second = totals
    return cross / (of_first[:, None] * of_second).clamp(min=0).sqrt()


def _grams(features: Sequence[Tensor]) -> Tensor:
    """(S, N, N) float64. Centred first: it changes nothing but the rounding."""
    grams: list[Tensor] = []
    for maps in features:
        rows = maps.detach().flatten(1).double()
        rows = rows - rows.mean(0)
        grams.append(rows @ rows.T)
    return torch.stack(grams)
