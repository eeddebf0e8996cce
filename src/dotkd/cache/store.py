"""Records on disk, by the number of a sample and of its view. A folder of

    cache.json     what the records are of, and how they are laid out
    records.npy    (views, samples) structured: the parts of a record, padding, `sum`, its checksum
    filled.npy     (views, samples) uint8: 1 where there is a record, written after it

Two plain .npy files: `numpy.load(path, mmap_mode="r")` reads them without this library, a batch is one gather from
mapped memory, and what is not filled takes no room (a hole in a sparse file). Formats that would do more - Zarr, LMDB,
HDF5 - store chunks or trees, where a batch of random records is a hundred look-ups, and are one more dependency.

Several processes of one machine may read and write one cache: a record is written with its checksum, by one system
call, and then marked. Two that write the same record at once leave either's, or a mixture that fails its checksum and
counts as none. Writing does not go through mapped memory, where a full disk would kill the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from dotkd.cache.checksum import Checksum
from dotkd.cache.layout import FILLED, FORMAT, HEADER, LOCK, RECORDS, create, described, mapped, record_dtype
from dotkd.cache.records import Records, records_of
from dotkd.config_rules import shown

_MARK = 1
_BLOCK = 1 << 24  # bytes looked at in one go when everything is read


class Found(NamedTuple):
    """What there is of a batch. parts: of `Records`, (B, ...) on the CPU, of no meaning where there is no record.

    whole: (B,) bool, there is a record. corrupt: (B,) bool, there is something that fails its checksum.
    """

    parts: tuple[Tensor, ...]
    whole: Tensor
    corrupt: Tensor


class Store:
    """A cache that is there already: `open_or_create` makes one.

    Raises:
        CacheError: the folder holds no cache, one of another format, or files that are not what was made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = described(folder)
        self.samples, self.views = int(content["samples"]), int(content["views"])
        self.identity: Mapping[str, Any] = content["identity"]
        self.records: Records = records_of(**content["records"])
        self._dtype = record_dtype(self.records)
        self._checksum = Checksum(self._dtype.itemsize - 8)
        shape = (self.views, self.samples)
        records, self._first_record = mapped(folder / RECORDS, self._dtype, shape)
        self._records = records.reshape(-1).view(np.uint8).reshape(-1, self._dtype.itemsize)
        marks, self._first_mark = mapped(folder / FILLED, np.dtype(np.uint8), shape)
        self._marks = marks.reshape(-1)

    @property
    def record_bytes(self) -> int:
        """Bytes of one record."""
        return self._dtype.itemsize

    def filled(self, view: int) -> Tensor:
        """(samples,) bool: which samples have a record of this view; it is not looked at."""
        marks = self._marks[view * self.samples : (view + 1) * self.samples]
        return torch.from_numpy(marks == _MARK)

    def count(self) -> int:
        """How many records there are."""
        return int(np.count_nonzero(self._marks == _MARK))

    def read(self, index: Tensor, view: Tensor) -> Found:
        """The records of samples `index` (B,) and views `view` (B,), both int64.

        Raises ValueError for a sample or a view outside the cache.
        """
        places = self._places(index, view)
        raw = self._records.take(places, axis=0)
        marks = self._marks.take(places)
        sound = self._checksum(raw[:, :-8], places) == raw[:, -8:].copy().view("<u8")[:, 0]
        whole = (marks == _MARK) & sound
        corrupt = (marks != 0) & ~whole
        return Found(self._parts(raw), torch.from_numpy(whole), torch.from_numpy(corrupt))

    def write(self, index: Tensor, view: Tensor, parts: tuple[Tensor, ...]) -> None:
        """Write the records of samples `index` (B,) and views `view` (B,). parts: as of `Records.encode`, on the CPU.

        Raises ValueError, with nothing written, for parts that are not finite, OSError naming the file where the disk
        refuses.
        """
        places = self._places(index, view)
        refuse_unfit(index, view, parts)
        table = np.zeros(len(places), self._dtype)
        for (name, kind, _), part in zip(self.records.fields, parts, strict=True):
            table[name] = part.numpy().astype(kind)
        raw = table.view(np.uint8).reshape(len(places), -1)
        table["sum"] = self._checksum(raw[:, :-8], places)
        _write_rows(self.folder / RECORDS, self._first_record, places, raw)
        self._mark(places, _MARK)

    def remove(self, index: Tensor, view: Tensor) -> None:
        """Mark the records of these samples and views as missing."""
        self._mark(self._places(index, view), 0)

    def damaged(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Reads everything; yields, block by block, samples and views of corrupt records, and how many it looked at."""
        step = max(1, _BLOCK // self._dtype.itemsize)
        for start in range(0, len(self._marks), step):
            places = torch.from_numpy(start + np.flatnonzero(self._marks[start : start + step]))
            index, view = places % self.samples, places // self.samples
            corrupt = self.read(index, view).corrupt
            yield index[corrupt], view[corrupt], len(places)

    def _mark(self, places: npt.NDArray[np.int64], mark: int) -> None:
        marks = np.full((len(places), 1), mark, np.uint8)
        _write_rows(self.folder / FILLED, self._first_mark, places, marks)

    def _places(self, index: Tensor, view: Tensor) -> npt.NDArray[np.int64]:
        for name, numbers, end in (("sample", index, self.samples), ("view", view, self.views)):
            outside = numbers[(numbers < 0) | (numbers >= end)]
            if len(outside):
                raise ValueError(f"expected a {name} in 0..{end - 1}, which {self.folder} holds, got {int(outside[0])}")
        # View by view, so that views that are epochs lie together.
        return (view * self.samples + index).numpy()

    def _parts(self, raw: npt.NDArray[np.uint8]) -> tuple[Tensor, ...]:
        table = raw.view(self._dtype)[:, 0]
        parts = (np.ascontiguousarray(table[name]) for name, _, _ in self.records.fields)
        return tuple(torch.from_numpy(part if part.dtype.kind == "f" else part.astype(np.int64)) for part in parts)


def open_or_create(folder: Path, *, records: Records, samples: int, views: int, identity: Mapping[str, Any]) -> Store:
    """The cache in `folder`, made where there is none; several processes may ask at once.

    views: how many of a sample there are; one that holds more will do. identity: what the records depend on, as of
    `dotkd.cache.identity`.

    Raises:
        ValueError: the cache there is of something else; the text names what differs.
        CacheError: as of `Store`. CheckpointError, OSError: the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        if not (folder / HEADER).exists():
            create(folder, records, samples, views, identity)
    return matching(folder, records=records, samples=samples, views=views, identity=identity)


def matching(folder: Path, *, records: Records, samples: int, views: int, identity: Mapping[str, Any]) -> Store:
    """The cache that is in `folder`. Arguments and errors are those of `open_or_create`."""
    store = Store(folder)
    expected = {"format": FORMAT, "records": records.describe(), "samples": samples, **identity}
    found = {"format": FORMAT, "records": store.records.describe(), "samples": store.samples, **store.identity}
    refuse_other(folder, found=found, expected=expected)
    if store.views < views:
        raise ValueError(
            f"{folder} holds {store.views} views of a sample (epochs, where each has its own), not {views}"
        )
    return store


def refuse_unfit(index: Tensor, view: Tensor, parts: tuple[Tensor, ...]) -> None:
    """Raise ValueError naming samples and views of which a part, (B, ...), is not finite."""
    for part in parts:
        bad = (~part.isfinite().flatten(1).all(1)).nonzero().flatten()
        if len(bad):
            named = ", ".join(f"sample {int(index[i])} view {int(view[i])}" for i in bad[:5])
            raise ValueError(
                f"the teacher's logits are not finite, or beyond the 65504 of float16, for {len(bad)} samples: {named}"
            )


def refuse_other(folder: Path, *, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ValueError where what a cache was made of is not what is wanted, naming all that differs."""
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    if names:
        lines = "".join(f"\n  {name}: {_short(found.get(name))}, not {_short(expected.get(name))}" for name in names)
        raise ValueError(f"{folder} was made with other {', '.join(names)}: choose another folder, or remove it{lines}")


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else shown(value)


def _write_rows(path: Path, begin: int, places: npt.NDArray[np.int64], rows: npt.NDArray[np.uint8]) -> None:
    """Write rows (B, S) of bytes to their places (B,) in the table that begins there, neighbours in one go."""
    order = np.argsort(places, kind="stable")
    ends = np.flatnonzero(np.diff(places[order], append=-1) != 1) + 1
    # Unbuffered: what is written is in the system's hands at once, where other processes see it.
    with path.open("r+b", buffering=0) as file:
        for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            run = order[start:end]
            file.seek(begin + int(places[run[0]]) * rows.shape[1])
            data = memoryview(rows[run].tobytes())
            try:
                while data:  # a disk that fills up takes a part, then refuses
                    data = data[file.write(data) :]
            except OSError as error:
                raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
