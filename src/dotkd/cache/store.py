"""Records on disk, by the number of a sample and of its view. A folder of

    cache.json     what the records are of, and how they are laid out
    records.npy    (views, samples) structured: the parts of a record, padding, `sum`, its checksum
    filled.npy     (views, samples) uint8: 1 where there is a record, written after it

Two plain .npy files: `numpy.load(path, mmap_mode="r")` reads them without this library, a batch is one gather from
mapped memory, and what is not filled takes no room (a hole in a sparse file). Formats that would do more - Zarr, LMDB,
HDF5 - store chunks or trees, where a batch of random records is a hundred look-ups, and are one more dependency.

Several processes of one machine may read and write one cache: a record is written by one system call, with its
checksum, and then marked. Two that write the same record at once leave either's, or a mixture that fails its checksum
and counts as none. Writing does not go through mapped memory, where a full disk would kill the process.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from dotkd.cache.checksum import Checksum
from dotkd.cache.identity import refuse_other
from dotkd.cache.records import Records, records_of
from dotkd.checkpoint import write_atomically

FORMAT = 1
HEADER, RECORDS, FILLED, LOCK = "cache.json", "records.npy", "filled.npy", "cache.lock"

_MARK = 1
_BLOCK = 1 << 24  # bytes looked at in one go when everything is read


class CacheError(RuntimeError):
    """A cache that is damaged beyond single records, or no cache; the text names the path."""


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
        described = _described(folder)
        self.samples, self.views = int(described["samples"]), int(described["views"])
        self.identity: Mapping[str, Any] = described["identity"]
        self.records: Records = records_of(**described["record"])
        self._dtype = _record_dtype(self.records)
        self._checksum = Checksum(self._dtype.itemsize - 8)
        shape = (self.views, self.samples)
        records, self._first_record = _mapped(folder / RECORDS, self._dtype, shape)
        self._records = records.reshape(-1).view(np.uint8).reshape(-1, self._dtype.itemsize)
        marks, self._first_mark = _mapped(folder / FILLED, np.dtype(np.uint8), shape)
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
        size = self._dtype.itemsize
        with _open(self.folder / RECORDS) as file:
            for place, record in zip(places.tolist(), raw, strict=True):
                _write_at(file, self._first_record + place * size, record.tobytes())
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
        with _open(self.folder / FILLED) as file:
            for place in places.tolist():
                _write_at(file, self._first_mark + place, bytes([mark]))

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
            _create(folder, records, samples, views, identity)
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


def room_needed(records: Records, count: int) -> int:
    """Bytes that `count` records take."""
    return count * _record_dtype(records).itemsize


# --- files


def _record_dtype(records: Records) -> np.dtype[np.void]:
    """The parts one after the other, padding to a multiple of 8 bytes, the checksum."""
    names, kinds, offsets, end = list[str](), list[Any](), list[int](), 0
    for name, kind, shape in records.fields:
        names.append(name)
        kinds.append((kind, shape))
        offsets.append(end)
        end += np.dtype(kind).itemsize * math.prod(shape)
    end = -(-end // 8) * 8
    layout = {"names": [*names, "sum"], "formats": [*kinds, "<u8"], "offsets": [*offsets, end], "itemsize": end + 8}
    return np.dtype(layout)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _create(folder: Path, records: Records, samples: int, views: int, identity: Mapping[str, Any]) -> None:
    """Fill `folder`, cache.json last: without it what an interrupted call left is made anew."""
    headers: dict[str, Any] = {}
    for name, dtype in ((RECORDS, _record_dtype(records)), (FILLED, np.dtype(np.uint8))):
        with (folder / name).open("wb") as file:
            description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**description, "shape": (views, samples)})
            file.flush()
            headers[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            file.truncate(file.tell() + views * samples * dtype.itemsize)
    described = {
        "format": FORMAT,
        "samples": samples,
        "views": views,
        "record": records.describe(),
        "identity": dict(identity),
        "headers": headers,
    }
    text = json.dumps({**described, "sha256": _sum(described)}, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / HEADER, text)


def _described(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    try:
        described = json.loads(path.read_bytes())
        written = described.pop("sha256")
    except FileNotFoundError:
        raise CacheError(f"{folder} holds no teacher cache: it has no {HEADER}") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise CacheError(f"{path} is damaged ({error}): remove the cache, or put the file back") from error
    if written != _sum(described):
        raise CacheError(f"{path} is damaged (its checksum differs): remove the cache, or put the file back")
    if described["format"] != FORMAT:
        raise CacheError(f"{path} has format {described['format']}; this version of dotkd reads format {FORMAT}")
    for name, expected in described["headers"].items():
        with (folder / name).open("rb") as file:
            np.lib.format.read_magic(file)
            length = int.from_bytes(file.read(2), "little")
            file.seek(0)
            if hashlib.sha256(file.read(10 + length)).hexdigest() != expected:
                raise CacheError(f"{folder / name} is damaged: its header is not what was written")
    return described


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, int]) -> tuple[npt.NDArray[Any], int]:
    """The array of a .npy file, read-only, and where in the file it begins."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise CacheError(f"{path} is damaged: {error}") from error
    if found.dtype != dtype or found.shape != shape:
        raise CacheError(f"{path} is damaged: expected {dtype} {shape}, got {found.dtype} {found.shape}")
    return np.asarray(found), int(found.offset)


def _sum(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _open(path: Path) -> FileIO:
    # Unbuffered: what is written is in the system's hands at once, where other processes see it.
    return path.open("r+b", buffering=0)


def _write_at(file: FileIO, place: int, data: bytes) -> None:
    file.seek(place)
    try:
        written = file.write(data)
        while written < len(data):  # a disk that fills up takes a part, then refuses
            written += file.write(data[written:])
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), file.name) from error
