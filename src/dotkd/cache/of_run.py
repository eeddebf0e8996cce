"""The cache that a run's config names: opened when the teacher has its weights, checked before it is believed."""

from __future__ import annotations

from functools import partial
from itertools import islice

from dotkd import distributed
from dotkd.assembly import Parts
from dotkd.cache.known import CachedTeacher, Counts, ask_teacher
from dotkd.cache.spot_check import TOLERANCE, spot_check
from dotkd.cache.wanted import Wanted
from dotkd.config import Config


class RunCache:
    """Each process of a run opens the cache for itself, and writes what it computes.

    Raises ValueError where a teacher that has its weights already is not the one whose logits the cache holds; the text
    names what differs.
    """

    def __init__(self, config: Config, parts: Parts) -> None:
        self._config, self._parts = config, parts
        self._teacher: CachedTeacher | None = None
        if parts.teacher is None:
            self.wanted().refuse_other()
        else:
            self.wanted()

    def wanted(self) -> Wanted:
        """What the cache has to be, for the teacher as its weights are now."""
        parts = self._parts
        assert parts.distiller is not None
        return Wanted.of(self._config, parts.distiller, parts.dataset, parts.batches, parts.execution.precision)

    def open(self, *, views: int | None = None) -> CachedTeacher:
        """The teacher, which has its weights, behind the cache, which is made if need be.

        views: how many views of a sample there must be room for; None: as many as the run has epochs.

        Raises:
            ValueError: the cache is another teacher's, or of other views; the text names what differs.
            OSError: the disk has no room for what the run may write.
        """
        parts, config = self._parts, self._config
        assert parts.distiller is not None
        ask = partial(ask_teacher, parts.distiller, parts.execution.autocast)
        store = distributed.all_or_none(lambda: self.wanted().open(room_for=views or config.epochs))
        rows = config.batch_size // config.accumulate
        self._teacher = CachedTeacher(store, ask, device=parts.device, rows=rows)
        return self._teacher

    def check(self, epoch: int, begun: int, steps: int) -> None:
        """Hold what there is of the next batch, ``begun`` of the ``steps`` of ``epoch``, and of one in each of two
        other epochs, against the teacher.

        Raises ValueError naming sample and view where they differ.
        """
        last = self._config.epochs - 1
        if self._teacher is None or epoch > last:
            return
        parts, teacher = self._parts, self._teacher
        places = [(epoch, begun), (last // 2, 0), (last, steps // 2)]
        epochs = (parts.batches.batches(parts.dataset, device=parts.device, epoch=e, start=s) for e, s in places)
        shown = (batch for batches in epochs for batch in islice(batches, 1))
        tolerance = TOLERANCE[parts.execution.precision]
        distributed.all_or_none(lambda: spot_check(teacher, shown, tolerance=tolerance))

    @property
    def counts(self) -> Counts:
        """Those of all processes together."""
        assert self._teacher is not None
        return Counts(*map(sum, zip(*distributed.gathered(tuple(self._teacher.counts)), strict=True)))

    @counts.setter
    def counts(self, counts: Counts) -> None:
        assert self._teacher is not None
        self._teacher.counts = counts if distributed.is_main() else Counts()

    def flush(self) -> None:
        """Write what was computed and is not written yet."""
        if self._teacher is not None:
            self._teacher.flush()
