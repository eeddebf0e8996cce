"""The same cache for sequences: a teacher's logits for every position, whole or sampled, for sequences of any length.

A record is one position's. The positions of all sequences are numbered one after the other,

    number(i, t) = length_0 + ... + length_{i-1} + t,    0 <= t < length_i

so that nothing is padded on disk, and a `Store` of so many samples holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dotkd.cache.sampling import uniform
from dotkd.cache.store import Store


class Positions(NamedTuple):
    """A batch of sequences. logits: (B, L, C) float32, zeros where there is nothing. mask: (B, L) bool, where there is
    a position of a sequence. whole: (B,) bool, all positions of the sequence have a record."""

    logits: Tensor
    mask: Tensor
    whole: Tensor


class SequenceStore:
    """A store of positions. lengths: of every sequence, each at least 1.

    Raises ValueError for a store that does not hold as many positions.
    """

    def __init__(self, store: Store, lengths: Sequence[int]) -> None:
        self.store = store
        self._lengths = torch.as_tensor(lengths, dtype=torch.int64)
        self._first = self._lengths.cumsum(0) - self._lengths
        if len(self._lengths) == 0 or int(self._lengths.min()) < 1:
            raise ValueError("expected `lengths` of at least one sequence, each at least 1")
        total = int(self._lengths.sum())
        if total != store.samples:
            raise ValueError(f"expected sequences of {store.samples} positions in all, as {store.folder}, got {total}")

    def read(self, index: Tensor, view: Tensor) -> Positions:
        """What there is of sequences `index` (B,) in views `view` (B,), padded to the longest of them."""
        mask, number, views = self._numbers(index, view)
        found = self.store.read(number, views)
        whole = torch.zeros(mask.shape, dtype=torch.bool).masked_scatter(mask, found.whole)
        rows = self.store.records.decode(*found.parts)
        logits = torch.zeros(*mask.shape, rows.shape[-1])
        logits[mask & whole] = rows[found.whole]
        return Positions(logits, mask, (whole | ~mask).all(1))

    def write(self, index: Tensor, view: Tensor, logits: Tensor) -> None:
        """Write logits (B, L, C), L the longest length among the sequences; what lies behind an end is passed over.

        Raises ValueError as of `Store.write`, and for an L that is another.
        """
        mask, number, views = self._numbers(index, view)
        if tuple(logits.shape[:2]) != tuple(mask.shape):
            raise ValueError(f"expected logits of shape {tuple(mask.shape)} + (C,), got {tuple(logits.shape)}")
        made = self.store.records.encode(logits[mask].cpu(), uniform(number, views))
        self.store.write(number, views, made)

    def _numbers(self, index: Tensor, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mask (B, L), and of the positions that it counts, one after the other, the numbers and the views."""
        lengths = self._lengths[index]
        mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
        number = self._first[index].unsqueeze(1) + torch.arange(mask.shape[1])
        return mask, number[mask], view.unsqueeze(1).expand_as(mask)[mask]
