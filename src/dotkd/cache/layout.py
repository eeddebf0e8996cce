"""The files of a cache, and what they say of themselves: see `dotkd.cache.store`."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dotkd.atomic_file import write_atomically
from dotkd.cache.records import Records

FORMAT = 1
HEADER, RECORDS, FILLED, LOCK = "cache.json", "records.npy", "filled.npy", "cache.lock"


class CacheError(RuntimeError):
    """A cache that is damaged beyond single records, or no cache; the text names the path."""


def room_needed(records: Records, count: int) -> int:
    """Bytes that `count` records take."""
    return count * record_dtype(records).itemsize


def record_dtype(records: Records) -> np.dtype[np.void]:
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


def create(folder: Path, records: Records, samples: int, views: int, identity: Mapping[str, Any]) -> None:
    """Fill `folder`, cache.json last: without it what an interrupted call left is made anew."""
    headers: dict[str, Any] = {}
    for name, dtype in ((RECORDS, record_dtype(records)), (FILLED, np.dtype(np.uint8))):
        buffer = io.BytesIO()
        kind = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (views, samples)}
        np.lib.format.write_array_header_1_0(buffer, kind)
        header = buffer.getvalue()
        headers[name] = {"bytes": len(header), "sha256": hashlib.sha256(header).hexdigest()}
        with (folder / name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + views * samples * dtype.itemsize)
    content = {
        "format": FORMAT,
        "samples": samples,
        "views": views,
        "records": records.describe(),
        "identity": dict(identity),
        "headers": headers,
    }
    text = json.dumps({**content, "sha256": content_hash(content)}, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / HEADER, text)


def described(folder: Path) -> dict[str, Any]:
    """What cache.json says. Raises CacheError where it, or the header of another file, is not what was written."""
    path = folder / HEADER
    try:
        content = json.loads(path.read_bytes())
        written = content.pop("sha256")
    except FileNotFoundError:
        raise CacheError(f"{folder} holds no teacher cache: it has no {HEADER}") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise CacheError(f"{path} is damaged ({error}): remove the cache, or put the file back") from error
    if written != content_hash(content):
        raise CacheError(f"{path} is damaged (its checksum differs): remove the cache, or put the file back")
    if content["format"] != FORMAT:
        raise CacheError(f"{path} has format {content['format']}; this version of dotkd reads format {FORMAT}")
    for name, expected in content["headers"].items():
        with (folder / name).open("rb") as file:
            if hashlib.sha256(file.read(expected["bytes"])).hexdigest() != expected["sha256"]:
                raise CacheError(f"{folder / name} is damaged: its header is not what was written")
    return content


def content_hash(content: Mapping[str, Any]) -> str:
    """sha256 of what cache.json says besides, in hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, int]) -> tuple[npt.NDArray[Any], int]:
    """The array of a .npy file, read-only, and where in the file it begins."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise CacheError(f"{path} is damaged: {error}") from error
    if found.dtype != dtype or found.shape != shape:
        raise CacheError(f"{path} is damaged: expected {dtype} {shape}, got {found.dtype} {found.shape}")
    return np.asarray(found), int(found.offset)
