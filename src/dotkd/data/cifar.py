"""Reading CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) as published: the archives themselves, or what they unpack to.

Both versions are read. The binary one is plain bytes: for each image its labels, then 3072 bytes of red, green and
blue. The one "for Python" is made of pickles, which could run code when they are read: see `dotkd.data.pickles`.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import os
import shutil
import tarfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dotkd.data import paths
from dotkd.data.dataset import Dataset, Split, assemble, complete_arrays, content_fingerprint
from dotkd.data.pickles import PickledArray, text_of, unpickle
from dotkd.data.resized import Resized

SIDE = 32
_PIXELS = 3 * SIDE * SIDE
_URL = "https://www.cs.toronto.edu/~kriz/"


class Form(NamedTuple):
    """One published form of the data: its archive and the files that are read of it.

    name: of the folder in the archive. md5: of the archive. labels: bytes before each image, the last of which is the
    class, in the binary form; None in that for Python. key, names_key: of the pickled dictionaries.
    """

    archive: str
    md5: str
    name: str
    train: tuple[str, ...]
    test: str
    names: str
    labels: int | None = None
    key: str = ""
    names_key: str = ""


class Cifar(NamedTuple):
    """A data set: its classes, the published mean and std, and its forms, the first of which is downloaded."""

    source: str
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    forms: tuple[Form, ...]


Arrays = dict[str, tuple[Tensor, Tensor]]


def read(cifar: Cifar, argument: str, *, validation: float, image_size: int | None) -> Dataset:
    """inputs uint8 (N, 3, 32, 32), or of `image_size`; mean and std are the published ones.

    argument: an archive, a folder that holds one or its files; empty: `$DOTKD_DATA` or `~/.cache/dotkd`, to which the
    binary archive is downloaded where it is missing. Raises FileNotFoundError (nothing there, and nothing to be
    downloaded) and ValueError (another checksum, damaged files).
    """
    spec = f"{cifar.source}:PATH"
    place = paths.existing(argument, spec=spec, wanted=_wanted(cifar)) if argument else _home()
    form, files = _find(cifar, place)
    if form is None and not argument:
        form, files = cifar.forms[0], _from_archive(cifar.forms[0], _download(cifar.forms[0], place, spec))
    if form is None:
        raise FileNotFoundError(f"{spec}: expected {_wanted(cifar)}; {place} holds none of them")
    stored, names = (_binary if form.labels else _pickled)(cifar, form, files)
    splits = complete_arrays(stored, validation, class_names=names)
    fingerprint = content_fingerprint(*splits.values())
    if image_size not in (None, SIDE):
        fingerprint = hashlib.sha256(f"{image_size} {fingerprint}".encode()).hexdigest()
        splits = {title: _resized(split, image_size) for title, split in splits.items()}
    return assemble(
        f"{cifar.source}:{argument}" if argument else cifar.source,
        splits,
        class_names=names,
        fingerprint=fingerprint,
        statistics=(cifar.mean, cifar.std),
    )


def _wanted(cifar: Cifar) -> str:
    archives = " or ".join(form.archive for form in cifar.forms)
    return f"{archives}, a folder with it, or the folder {' or '.join(form.name for form in cifar.forms)}"


def _home() -> Path:
    return Path(os.path.expanduser(os.environ.get("DOTKD_DATA") or "~/.cache/dotkd"))


def _resized(split: Split, image_size: int) -> Split:
    assert isinstance(split.inputs, Tensor)
    return Split(Resized(split.inputs, image_size=image_size), split.targets)


# --- the files --------------------------------------------------------------------------------------------------------

Files = Mapping[str, Callable[[], bytes]]  # file name -> its content


def _find(cifar: Cifar, place: Path) -> tuple[Form | None, Files]:
    """The first form that is in `place`, unpacked or not."""
    if place.is_file():
        content = place.read_bytes()
        found = _md5(content)
        for form in cifar.forms:
            if found == form.md5:
                return form, _from_archive(form, place, content)
        expected = " or ".join(f"{form.md5} ({form.archive})" for form in cifar.forms)
        raise ValueError(f"{cifar.source}:PATH: expected a file with the md5 sum {expected}, got {found} for {place}")
    for form in cifar.forms:
        for folder in (place, place / form.name):
            if (folder / form.test).is_file():
                return form, {name: (folder / name).read_bytes for name in (*form.train, form.test, form.names)}
    for form in cifar.forms:
        if (place / form.archive).is_file():
            return form, _from_archive(form, place / form.archive)
    return None, {}


def _from_archive(form: Form, path: Path, content: bytes | None = None) -> Files:
    """The files of an archive, read without unpacking it; raises ValueError where its checksum is another one."""
    content = path.read_bytes() if content is None else content
    found = _md5(content)
    if found != form.md5:
        raise ValueError(f"expected {path} to have the md5 sum {form.md5}, got {found}: it is damaged or another file")
    wanted = {f"{form.name}/{name}": name for name in (*form.train, form.test, form.names)}
    held: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() and member.name in wanted else None
                if file is not None:
                    held[wanted[member.name]] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    missing = sorted(set(wanted.values()) - set(held))
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}")
    return {name: _constant(content) for name, content in held.items()}


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _constant(content: bytes) -> Callable[[], bytes]:
    return lambda: content


def _download(form: Form, place: Path, spec: str) -> Path:
    path, partial, url = place / form.archive, place / f"{form.archive}.{os.getpid()}.part", _URL + form.archive
    try:
        place.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file)
        found = _md5(partial.read_bytes())
        if found != form.md5:
            raise ValueError(f"expected {url} to have the md5 sum {form.md5}, got {found}: nothing was kept of it")
        os.replace(partial, path)
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"{spec.removesuffix(':PATH')}: {path} is not there and {url} cannot be had ({error}); "
            f"put that file there, md5 sum {form.md5}, or give {spec}"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be: nothing was written
            partial.unlink(missing_ok=True)
    return path


# --- their content ----------------------------------------------------------------------------------------------------


def _binary(cifar: Cifar, form: Form, files: Files) -> tuple[Arrays, list[str]]:
    assert form.labels is not None
    stored: Arrays = {}
    for title, parts in (("train", form.train), ("test", (form.test,))):
        rows: list[Tensor] = []
        for name in parts:
            content = _content(files, name)
            if len(content) == 0 or len(content) % (form.labels + _PIXELS):
                raise ValueError(
                    f"{form.name}/{name}: expected a multiple of {form.labels + _PIXELS} bytes, got {len(content)}"
                )
            rows.append(torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, form.labels + _PIXELS))
        table = torch.cat(rows)
        images = table[:, form.labels :].contiguous().view(-1, 3, SIDE, SIDE)
        stored[title] = images, table[:, form.labels - 1].long()
    names = _content(files, form.names).decode("utf-8", errors="replace").split()
    return stored, _checked_names(cifar, form, names)


def _pickled(cifar: Cifar, form: Form, files: Files) -> tuple[Arrays, list[str]]:
    stored: Arrays = {}
    for title, parts in (("train", form.train), ("test", (form.test,))):
        images: list[Tensor] = []
        labels: list[int] = []
        for name in parts:
            batch = unpickle(_content(files, name), f"{form.name}/{name}")
            pixels, classes = _pixels(batch.get("data"), f"{form.name}/{name}"), batch.get(form.key)
            if not isinstance(classes, list) or len(classes) != len(pixels):
                raise ValueError(f"{form.name}/{name}: expected a list {form.key} of {len(pixels)} labels")
            if not all(isinstance(label, int) for label in classes):
                raise ValueError(f"{form.name}/{name}: expected whole numbers in {form.key}")
            images.append(pixels)
            labels += classes
        stored[title] = torch.cat(images), torch.tensor(labels, dtype=torch.int64)
    names = unpickle(_content(files, form.names), f"{form.name}/{form.names}").get(form.names_key)
    texts = [text_of(name) for name in names] if isinstance(names, list) else []
    return stored, _checked_names(cifar, form, texts)


def _pixels(data: object, name: str) -> Tensor:
    """(N, 3, 32, 32) of a pickled array (N, 3072) of uint8."""
    if not isinstance(data, PickledArray) or data.kind != "u1" or data.shape[1:] != (_PIXELS,) or not data.content:
        raise ValueError(f"{name}: expected data to be an array of uint8 and of shape (N, {_PIXELS})")
    return torch.frombuffer(bytearray(data.content), dtype=torch.uint8).view(-1, 3, SIDE, SIDE)


def _content(files: Files, name: str) -> bytes:
    try:
        return files[name]()
    except OSError as error:
        raise FileNotFoundError(f"cannot read {error.filename or name}: {error.strerror}") from error


def _checked_names(cifar: Cifar, form: Form, names: list[str]) -> list[str]:
    if len(names) != cifar.classes:
        raise ValueError(f"{form.name}/{form.names}: expected {cifar.classes} class names, got {len(names)}")
    return names
