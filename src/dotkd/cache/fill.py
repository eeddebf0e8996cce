"""A cache filled ahead: every view of every sample, or, where each epoch has its own, every epoch of the run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

from dotkd import data
from dotkd.assembly import Batching
from dotkd.cache.known import CachedTeacher
from dotkd.data import Batch, Dataset


class Filling:
    """The work of filling a cache, in blocks of samples of one view; what is filled already is passed over.

    Args:
        size: samples in a block where views are counted; else blocks are the batches of the run.
        views: how many views, or epochs.
        part: (k, n), the k-th (from 0) of n parts; the parts may be done by as many processes.
    """

    def __init__(
        self,
        teacher: CachedTeacher,
        dataset: Dataset,
        batching: Batching,
        *,
        views: int,
        size: int,
        part: tuple[int, int] = (0, 1),
        device: torch.device,
    ) -> None:
        self._teacher, self._dataset, self._batching, self._device = teacher, dataset, batching, device
        self._counted = batching.view_count is not None
        self._size = size if self._counted else batching.size
        self._blocks = data.batch_count(dataset, "train", batch_size=self._size, drop_last=not self._counted)
        mine, parts = part
        total = self._blocks * views
        self._range = range(total * mine // parts, total * (mine + 1) // parts)

    def __len__(self) -> int:
        return len(self._range)

    def run(self) -> Iterator[int]:
        """Fill block after block; yields how many are done, those passed over included.

        Raises ValueError naming sample and view for logits that do not fit a record, OSError where the disk refuses.
        """
        view, start = divmod(self._range.start, self._blocks)
        done = 0
        while done < len(self):
            wanted = min(self._blocks - start, len(self) - done)
            skipped = self._filled_from(view, start, wanted)
            done += skipped
            if skipped:
                yield done
            for batch in islice(self._shown(view, start + skipped), wanted - skipped):
                self._teacher.logits(batch)
                done += 1
                yield done
            view, start = view + 1, 0
        self._teacher.flush()

    def _shown(self, view: int, start: int) -> Iterator[Batch]:
        batching = self._batching
        if not self._counted:
            return batching.batches(self._dataset, device=self._device, epoch=view, start=start)
        return data.batches(
            self._dataset,
            "train",
            batch_size=self._size,
            start=start,
            augment=batching.augment,
            views=batching.views,
            view=view,
            device=self._device,
        )

    def _filled_from(self, view: int, start: int, wanted: int) -> int:
        """How many of the `wanted` blocks from `start` on need not be made."""
        filled = self._teacher.store.filled(view)
        if not self._counted:  # in the order of the epoch, which is not known here: all or none
            return wanted if int(filled.sum()) >= self._blocks * self._size else 0
        missing = (~filled[start * self._size : (start + wanted) * self._size]).nonzero().flatten()
        return int(missing[0]) // self._size if len(missing) else wanted
