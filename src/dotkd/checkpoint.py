"""Checkpoints that are whole or absent: an atomic save, a verified load, and no pickle anywhere.

    DIRECTORY/step-00000123/student.safetensors   the weights, readable by anything that reads safetensors
                            state.safetensors     every other tensor (momenta, generators, ...)
                            state.json            everything else, and where the tensors belong in it
                            SHA256SUMS            `sha256sum -c SHA256SUMS` checks the three

A save writes into a hidden sibling, flushes it to the disk and renames it, so a process killed at any moment
leaves the previous checkpoint as it was; what it left behind is swept away by the next save. The two newest are
kept. There is one writer to a folder. Tensors come back on the CPU, contiguous, and two that shared memory come
back apart; parameters come back as plain tensors and any kind of dict as a dict, all else exactly as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from dotkd.atomic_file import CheckpointError, sync, write, write_atomically
from dotkd.packing import decode, encode, pack_tensors, unpack_tensors

FORMAT = 1
STUDENT, TENSORS, SKELETON, SUMS = "student.safetensors", "state.safetensors", "state.json", "SHA256SUMS"

_FOLDER = re.compile(r"step-([0-9]{8,})(\.old)?")


class _DamagedError(Exception):
    """One checkpoint is not what was written; an older one may do."""


@dataclass(frozen=True)
class Checkpoint:
    """What `load_latest` found; `skipped` lists newer checkpoints that were damaged, each with the reason."""

    step: int
    student: dict[str, Tensor]
    state: Any
    path: Path
    skipped: tuple[tuple[Path, str], ...] = ()


def save(directory: Path, step: int, *, student: Mapping[str, Tensor], state: object) -> Path:
    """Write the checkpoint of `step` and return its folder, `directory`/step-XXXXXXXX.

    `state` nests dict (keys of any kind below), list, tuple, Tensor, None, bool, int, float and str.

    Raises TypeError for what cannot be stored exactly, ValueError for a negative step and CheckpointError where
    the disk refuses (the earlier checkpoints are untouched) or where `directory` holds a later whole checkpoint,
    which a load would prefer to this one.
    """
    if type(step) is not int or step < 0:
        raise ValueError(f"expected `step` to be a whole number >= 0, got {step!r}")
    files = _pack(step, student, state)  # every refusal of the contents comes before the disk is touched
    final = Path(directory) / _name(step)
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        sync(final.parent.parent)
        _sweep(final.parent)
        _refuse_later(final.parent, step)
        try:
            temporary.mkdir()
            for name, data in files.items():
                write(temporary / name, data)
            sync(temporary)
            _swap_in(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {final}: {error.strerror or error}") from error
    try:
        _prune(final.parent, step)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{final} is written, but what it replaces cannot be removed: {reason}") from error
    return final


def load_latest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint in `directory` that is whole; None where there is none at all.

    Raises CheckpointError if there are checkpoints but all are damaged, or the newest whole one was written in
    a later format than this version reads.
    """
    skipped: list[tuple[Path, str]] = []
    try:
        found = _checkpoints(Path(directory))
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoints in {directory}: {error.strerror or error}") from error
    for step, path in found:
        try:
            student, state = _unpack(step, path, _read(path))
        except (_DamagedError, OSError) as error:
            skipped.append((path, str(error)))
        else:
            return Checkpoint(step, student, state, path, tuple(skipped))
    if skipped:
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in skipped)
        raise CheckpointError(f"every checkpoint in {directory} is damaged:{reasons}")
    return None


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write `weights` as one safetensors file, atomically; tied tensors are stored under each of their names.

    Raises TypeError for a tensor that safetensors cannot hold, CheckpointError where the disk refuses.
    """
    write_atomically(path, pack_tensors(weights, Path(path).name))


# -- contents <-> bytes


def _pack(step: int, student: Mapping[str, Tensor], state: object) -> dict[str, bytes]:
    tensors: dict[str, Tensor] = {}
    skeleton = encode(state, "state", tensors)
    document = {"format": FORMAT, "step": step, "state": skeleton}
    files = {
        SKELETON: (json.dumps(document, allow_nan=False) + "\n").encode(),
        TENSORS: pack_tensors(tensors, "state"),
        STUDENT: pack_tensors(student, "student"),
    }
    return {**files, SUMS: b"".join(_sums(files).values())}


def _unpack(step: int, path: Path, files: Mapping[str, bytes]) -> tuple[dict[str, Tensor], object]:
    try:
        document = json.loads(files[SKELETON])
        written = document["format"]
        if type(written) is int and written > FORMAT:
            raise CheckpointError(
                f"{path} has checkpoint format {written}, from a newer version of dotkd; "
                f"this version reads format {FORMAT}"
            )
        if written != FORMAT or document["step"] != step:
            raise _DamagedError(f"{SKELETON}: expected format {FORMAT} and step {step}")
        tensors = unpack_tensors(files[TENSORS])
        return unpack_tensors(files[STUDENT]), decode(document["state"], tensors)
    except SafetensorError as error:
        raise _DamagedError(f"not a safetensors file: {error}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _DamagedError(f"contents not understood: {type(error).__name__}: {error}") from error


# -- bytes <-> disk


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """Steps and folders, the newest first; a folder set aside (.old) comes after the one that replaced it."""
    try:
        names = [_FOLDER.fullmatch(path.name) for path in directory.iterdir()]
    except FileNotFoundError:
        return []
    found = [(int(match[1]), match[2] is None, directory / match[0]) for match in names if match]
    return [(step, path) for step, _, path in sorted(found, reverse=True)]


def _read(path: Path) -> dict[str, bytes]:
    """The files of a checkpoint, each held against its checksum."""
    files = {name: (path / name).read_bytes() for name in (SKELETON, TENSORS, STUDENT)}
    sums, written = _sums(files), (path / SUMS).read_bytes()
    differ = [name for name, line in sums.items() if line not in written]
    if differ:
        raise _DamagedError(f"{', '.join(differ)}: the checksum differs from {SUMS}")
    if written != b"".join(sums.values()):
        raise _DamagedError(f"{SUMS}: more than the checksums of {', '.join(files)}")
    return files


def _sums(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Lines as `sha256sum` writes them."""
    return {name: f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode() for name, data in files.items()}


def _discard(path: Path) -> None:
    """Remove a folder so that no moment shows a part of it under a checkpoint's name."""
    hidden = path.with_name(f".{path.name}.tmp")
    os.rename(path, hidden)
    shutil.rmtree(hidden)


def _sweep(directory: Path) -> None:
    """Put right what a save that died here left behind."""
    for temporary in directory.glob(".step-*.tmp"):
        shutil.rmtree(temporary)
    for _, path in _checkpoints(directory):
        if path.suffix == ".old":
            replacement = path.with_suffix("")
            if replacement.exists():
                _discard(path)
            else:
                os.rename(path, replacement)


def _refuse_later(directory: Path, step: int) -> None:
    for later, path in _checkpoints(directory):
        if later > step:
            try:
                _read(path)
            except (_DamagedError, OSError):
                continue
            raise CheckpointError(
                f"cannot write the checkpoint of step {step}: {path} is a later one and whole; "
                "resume from it, or move it away"
            )


def _swap_in(temporary: Path, final: Path) -> None:
    """Rename `temporary` to `final`; one already there is set aside first, where a load still finds it."""
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        os.rename(final, old)
    os.rename(temporary, final)
    sync(final.parent)


def _prune(directory: Path, step: int) -> None:
    """Keep `step` and the one before; later ones are damaged (`_refuse_later`) and would only be passed over."""
    found = [(other, path) for other, path in _checkpoints(directory) if path.name != _name(step)]
    before = [path for other, path in found if other < step]
    for path in [path for other, path in found if other >= step] + before[1:]:
        _discard(path)
