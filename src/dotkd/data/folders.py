"""Class folders of images: finding, labelling and fingerprinting the files that they hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NoReturn

import torch
from torch import Tensor

from dotkd.data.dataset import complete
from dotkd.data.images import extensions

SHOWN = 10  # names in a message

Classes = dict[str, list[Path]]  # class name -> its images, sorted
Files = list[tuple[Path, int]]  # image, label


def class_folders(folder: Path) -> Classes:
    """The images of each folder in `folder`; raises ValueError where there is none, or one without images."""
    names = visible_folders(folder)
    if not names:
        loose = len(images_under(folder))
        found = f"{loose} images directly in it" if loose else "nothing of the kind"
        raise ValueError(f"expected class folders with images in {folder}, found {found}")
    classes = {name: images_under(folder / name) for name in names}
    empty = [name for name, images in classes.items() if not images]
    if empty:
        raise ValueError(f"{folder} has class folders without images: {enumerated(empty)}")
    return classes


def annotated(annotations: Path, train: Classes) -> Classes:
    """The validation images of Tiny-ImageNet; a line `NAME<tab>CLASS<tab>box` of the file tells the class."""
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(lines_of(annotations), 1):
        if not line.strip():
            continue
        name, tab, rest = line.partition("\t")
        if not tab:
            raise ValueError(f"expected 'NAME<tab>CLASS' in line {number} of {annotations}, got '{line}'")
        pairs.append((name, rest.split("\t")[0].strip()))
    return by_list(annotations, pairs, annotations.parent / "images", train)


def by_list(source: Path, pairs: Iterable[tuple[str, str]], folder: Path, train: Classes) -> Classes:
    """The images of `folder` by class, where the file `source` gives `pairs` of a file name and its class.

    Pairs for classes that are not in train and whose images are not there are passed over, so that a part of the
    data set, with the complete file, can be used.
    """
    present = {path.name: path for path in images_under(folder)}
    classes: Classes = {}
    named: set[str] = set()
    lost: list[str] = []
    twice: list[str] = []
    for name, label in pairs:
        if name in named:
            twice.append(name)
        elif name in present:
            classes.setdefault(label, []).append(present[name])
        elif label in train:
            lost.append(name)
        named.add(name)
    if twice:
        raise ValueError(f"{source} names images more than once: {enumerated(twice)}")
    if lost:
        raise ValueError(f"{source} names images that are not in {folder}: {enumerated(lost)}")
    if not present:
        raise ValueError(f"expected the images that {source} names in {folder}, found none")
    strays = sorted(set(present) - named)
    if strays:
        raise ValueError(f"{source} gives no class for: {enumerated(strays)}")
    return {label: sorted(images) for label, images in classes.items()}


def refuse_unknown(root: Path, folders: Mapping[str, Classes]) -> None:
    """ValueError for a split of `folders` that has classes which "train" lacks."""
    for title, found in folders.items():
        unknown = sorted(set(found) - set(folders["train"]))
        if unknown:
            raise ValueError(f"{root / title} has classes that {root / 'train'} lacks: {enumerated(unknown)}")


def divide(folders: Mapping[str, Classes], classes: Sequence[str], validation: float) -> dict[str, Files]:
    """The files of train, val and test, what is not stored held out of train: see `dotkd.data.dataset.complete`."""
    stored = {title: listed(found, classes) for title, found in folders.items()}
    parts = complete({title: labels_of(files) for title, files in stored.items()}, validation, class_names=classes)
    return {
        title: [stored[parts[title][0]][position] for position in parts[title][1].numpy()]
        for title in ("train", "val", "test")
        if title in parts
    }


def paths_of(splits: Mapping[str, Files]) -> dict[str, list[Path]]:
    """The images of each split, without their labels."""
    return {title: [path for path, _ in files] for title, files in splits.items()}


def lines_of(path: Path) -> list[str]:
    """The lines of a text file in UTF-8; raises ValueError, naming the file, where it is something else."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"expected {path} to be text in UTF-8: {error}") from error


def visible_folders(folder: Path) -> list[str]:
    """Their names, sorted."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def images_under(folder: Path) -> list[Path]:
    """Sorted by path. Each real folder is entered once, so that links in a circle end."""
    found: list[Path] = []
    entered: set[str] = set()
    for where, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(where)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = (name for name in files if not name.startswith("."))
        found += [Path(where, name) for name in visible if PurePath(name).suffix.lower() in extensions()]
    return sorted(found, key=Path.as_posix)


def _refuse(error: OSError) -> NoReturn:
    raise error  # os.walk would pass over a folder that it may not read


def listed(found: Classes, classes: Sequence[str]) -> Files:
    """The images with their labels, class by class in the order of `classes`."""
    return [(path, label) for label, name in enumerate(classes) for path in found.get(name, [])]


def labels_of(files: Files) -> Tensor:
    """(N,) int64."""
    return torch.tensor([label for _, label in files], dtype=torch.int64)


def enumerated(names: Sequence[str]) -> str:
    """Names for a message, the first ten of them."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def files_fingerprint(root: Path, splits: Mapping[str, Files], image_size: int | None) -> str:
    """sha256 over split, label, bytes and relative path of every file: reading them all takes too long."""
    digest = hashlib.sha256(f"{image_size}\n".encode())
    for title, files in splits.items():
        for path, label in files:
            try:
                size = path.stat().st_size
            except OSError as error:
                raise ValueError(f"cannot read the image {path}: {error.strerror}") from error
            name = os.fsencode(path.relative_to(root).as_posix())
            digest.update(f"{title} {label} {size} ".encode() + name + b"\n")
    return digest.hexdigest()
