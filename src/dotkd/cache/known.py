"""Teachers that need not be asked: batches go in, and come out with the teacher's logits in `Batch.taught`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dotkd.cache.sampling import uniform
from dotkd.cache.store import Found, Store
from dotkd.data import Batch
from dotkd.data.transfer import to_device
from dotkd.distiller import Distiller

Ask = Callable[[Tensor, Tensor], Tensor]


class Known(Protocol):
    """What the trainer sees of a teacher whose logits are, or become, known."""

    def teach(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches with `taught`."""
        ...


class Table:
    """A teacher's logits for a split whose samples look alike in every epoch. logits: (N, C), on any device."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def teach(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches with `taught`."""
        for batch in batches:
            yield batch._replace(taught=self._logits[to_device(batch.index, self._logits.device)])


class Counts(NamedTuple):
    """How many records were read, how many were computed, and how many of these because one was corrupt."""

    read: int = 0
    computed: int = 0
    corrupt: int = 0


class CachedTeacher:
    """A teacher whose logits are read where there is a record, else computed, and written.

    What is computed goes through the parts of a record before it is used, so that the first use of a record and every
    later one see the same bits. Which batch a record was computed in can show in the last bits of the teacher's own
    pass, and so in the rounding of the record.

    Args:
        ask: the live teacher, called with inputs and targets of some samples, returns their logits (M, C); None: there
            is none, and what is missing is refused.
        device: where logits are wanted.
        rows: how many samples the live teacher is asked about at once; None: all of a batch.
    """

    def __init__(self, store: Store, ask: Ask | None, *, device: torch.device, rows: int | None = None) -> None:
        self.store, self.counts = store, Counts()
        self._ask, self._device, self._rows = ask, device, rows
        self._waiting: deque[_Copied] = deque()

    def teach(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches with `taught`; records are read one batch ahead, in a thread.

        Raises ValueError as `logits` does.
        """
        self.flush()  # what the last epoch computed is there for this one
        with ThreadPoolExecutor(max_workers=1) as thread:
            pending: tuple[Batch, Future[tuple[Found, tuple[Tensor, ...]]]] | None = None
            for batch in batches:
                following = (batch, thread.submit(self._read, batch))
                if pending is not None:
                    yield pending[0]._replace(taught=self._completed(pending[0], *pending[1].result()))
                pending = following
            if pending is not None:
                yield pending[0]._replace(taught=self._completed(pending[0], *pending[1].result()))
        self.flush()

    def logits(self, batch: Batch) -> Tensor:
        """The teacher's logits for a batch, (B, C) float32 on the device.

        Raises ValueError naming sample and view for logits that do not fit a record, for what the cache has no place
        for, and, where there is no live teacher, for records that are missing or corrupt.
        """
        return self._completed(batch, *self._read(batch))

    def flush(self) -> None:
        """Write what was computed and is not written yet."""
        while self._waiting:
            self._write(self._waiting.popleft())

    def live(self, batch: Batch) -> Tensor:
        """What the live teacher says of a batch now, (B, C)."""
        assert self._ask is not None
        step = self._rows or len(batch.targets)
        parts = zip(batch.inputs.split(step), batch.targets.split(step), strict=True)
        return torch.cat([self._ask(inputs, targets) for inputs, targets in parts])

    def _read(self, batch: Batch) -> tuple[Found, tuple[Tensor, ...]]:
        found = self.store.read(batch.index, batch.view)
        return found, tuple(to_device(part, self._device) for part in found.parts)

    def _completed(self, batch: Batch, found: Found, parts: tuple[Tensor, ...]) -> Tensor:
        missing = (~found.whole).nonzero().flatten()
        read, computed, corrupt = self.counts
        self.counts = Counts(
            read + len(batch.index) - len(missing), computed + len(missing), corrupt + int(found.corrupt.sum())
        )
        if len(missing):
            index, view = batch.index[missing], batch.view[missing]
            if self._ask is None:
                kind = "corrupt" if found.corrupt[missing[0]] else "missing"
                raise ValueError(
                    f"{self.store.folder}: {len(missing)} records are missing or corrupt and there is no teacher to "
                    f"ask: the first, of sample {int(index[0])} view {int(view[0])}, is {kind}"
                )
            rows = to_device(missing, self._device)
            chosen = batch._replace(inputs=batch.inputs[rows], targets=batch.targets[rows])
            made = self.store.records.encode(self.live(chosen), uniform(index, view))
            for part, new in zip(parts, made, strict=True):
                part[rows] = new.to(part.device, part.dtype, non_blocking=True)
            self._waiting.append(_copied(index, view, made))
        # On a GPU the copies of earlier batches are long done; only those of the newest would be waited for.
        while self._waiting and self._waiting[0].done():
            self._write(self._waiting.popleft())
        return self.store.records.decode(*parts)

    def _write(self, copied: _Copied) -> None:
        if copied.event is not None:
            copied.event.synchronize()
        self.store.write(copied.index, copied.view, copied.parts)


def ask_teacher(
    distiller: Distiller, precision: Callable[[], AbstractContextManager[object]], inputs: Tensor, targets: Tensor
) -> Tensor:
    """The live teacher's logits, float32, computed in that precision."""
    with precision():
        return distiller.teacher_logits(inputs, targets).float()


@dataclass(frozen=True)
class _Copied:
    """Parts on their way to the CPU; `event` None: they are there."""

    index: Tensor
    view: Tensor
    parts: tuple[Tensor, ...]
    event: torch.cuda.Event | None

    def done(self) -> bool:
        return self.event is None or self.event.query()


def _copied(index: Tensor, view: Tensor, parts: tuple[Tensor, ...]) -> _Copied:
    if not any(part.is_cuda for part in parts):
        return _Copied(index, view, parts, None)
    there = tuple(torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in parts)
    for target, part in zip(there, parts, strict=True):
        target.copy_(part, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return _Copied(index, view, there, event)
