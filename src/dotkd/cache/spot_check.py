"""Some records held against the live teacher, before a run believes the others."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dotkd.cache.known import CachedTeacher
from dotkd.cache.records import SampledRecords
from dotkd.cache.sampling import uniform
from dotkd.data import Batch

# What rounding may amount to, as a share of a sample's largest logit: that of float16 in a record is 2^-11 of it, and a
# teacher's pass on other hardware, with TF32 or in another batch, adds its own. Another view or teacher is far beyond.
TOLERANCE = {"fp32": 0.01, "fp16": 0.02, "bf16": 0.1}

# Sampled classes differ by chance; those kept whatever is drawn are clearly above the share of a sampled one.
_CLEARLY = 1.5


def spot_check(teacher: CachedTeacher, batches: Iterable[Batch], *, tolerance: float) -> int:
    """Compare the records that there are of `batches` with what the live teacher says now; returns how many.

    Whole records differ by the largest difference of a logit, relative to the largest logit of the sample, or to 1
    where that is larger; sampled ones by that of a probability, among the classes that are kept in any case and the
    share of a sampled one.

    Raises ValueError naming sample and view where that is more than `tolerance`.
    """
    looked_at = 0
    for batch in batches:
        found = teacher.store.read(batch.index, batch.view)
        if not found.whole.any():
            continue
        live = teacher.live(batch).float().cpu()
        stored = teacher.store.records.decode(*found.parts)
        if isinstance(records := teacher.store.records, SampledRecords):
            again = records.encode(live, uniform(batch.index, batch.view))
            difference = _of_probabilities(stored, records.decode(*again), records.temperature)
        else:
            difference = (stored - live).abs().amax(1) / live.abs().amax(1).clamp(min=1)
        wrong = (found.whole & ~(difference <= tolerance)).nonzero().flatten()
        if len(wrong):
            first = int(wrong[0])
            raise ValueError(
                f"{teacher.store.folder} is not what this run's teacher says: sample {int(batch.index[first])} view "
                f"{int(batch.view[first])} differs by {float(difference[first]):.3g}, more than {tolerance}, and so do "
                f"{len(wrong) - 1} others of {int(found.whole.sum())} looked at"
            )
        looked_at += int(found.whole.sum())
    return looked_at


def _of_probabilities(stored: Tensor, live: Tensor, temperature: float) -> Tensor:
    """(B,): the largest difference among the classes that are kept whatever is drawn, and of the smallest of all."""
    stored, live = (torch.softmax(logits / temperature, 1) for logits in (stored, live))
    least, share = (p.masked_fill(p == 0, 1.0).amin(1, keepdim=True) for p in (stored, live))
    of_large = ((stored - live).abs() * (live > _CLEARLY * share)).amax(1)
    return torch.maximum(of_large, (least - share).abs()[:, 0])
