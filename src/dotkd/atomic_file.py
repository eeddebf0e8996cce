"""A file that is whole or as it was: written beside, flushed to the disk, renamed. Needs no torch."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class CheckpointError(RuntimeError):
    """A checkpoint or a result could not be written, or none could be read; the text names the path."""


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace the file `path` by `data` (text as UTF-8): a reader sees the old file or the new, never a part.

    Raises CheckpointError where the disk refuses; the old file is then whole and no temporary is left.
    """
    path = Path(path)
    # One name for each target: what a killed writer left is overwritten by the next.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            write(temporary, data.encode() if isinstance(data, str) else data)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


def write(path: Path, data: bytes) -> None:
    """Write a new file and flush it to the disk; raises OSError where that refuses."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(directory: Path) -> None:
    """Make renames in `directory` survive a loss of power."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
