"""Folders of images, one folder a class, in four layouts:

    PATH/train/CLASS/  PATH/val/CLASS/                      val is the test split, the habit of the field
    PATH/train/CLASS/  PATH/test/CLASS/  [PATH/val/CLASS/]  as named
    PATH/CLASS/                                             test and validation are held out
    PATH/train/WNID/images/  PATH/val/images/  PATH/val/val_annotations.txt
                                                            Tiny-ImageNet; its test, unlabelled, is ignored

What is not there is held out. Classes are sorted by name; images are found at any depth below their class,
symbolic links are followed, hidden files and folders are not looked at.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import NoReturn

import torch
from torch import Tensor

from dotkd.data import paths
from dotkd.data.dataset import Dataset, Split, assemble, complete
from dotkd.data.images import Images, extensions

# Decoded images are kept where all of them take no more bytes than this; others are decoded batch by batch.
MEMORY_CAP = 2 * 2**30

_ANNOTATIONS = "val_annotations.txt"
_SHOWN = 10  # names in a message

Classes = dict[str, list[Path]]  # class name -> its images, sorted
Files = list[tuple[Path, int]]  # image, label


def load(argument: str, *, validation: float, image_size: int | None) -> Dataset:
    """inputs uint8 (N, 3, H, W), decoded now where they fit in memory, else on demand.

    Raises FileNotFoundError (no such folder), PermissionError, ValueError (no class folders, classes without
    images or without a counterpart in train, images that cannot be read or differ in size while `image_size`
    is None).
    """
    root = paths.existing(argument, spec="imagefolder:PATH", wanted="a folder of class folders")
    if not root.is_dir():
        raise ValueError(f"imagefolder:PATH: expected a folder of class folders, got the file {root}")
    folders = _read_layout(root)
    classes = sorted(folders["train"])
    if "test" not in folders and "val" in folders:
        folders["test"] = folders.pop("val")
    stored = {title: _listed(found, classes) for title, found in folders.items()}
    parts = complete({title: _labels(files) for title, files in stored.items()}, validation, class_names=classes)
    splits: dict[str, Files] = {}
    for title in ("train", "val", "test"):
        source, index = parts[title]
        splits[title] = [stored[source][position] for position in index.numpy()]
    inputs = _open(splits, image_size)
    return assemble(
        f"imagefolder:{argument}",
        **{title: Split(inputs[title], _labels(files)) for title, files in splits.items()},
        class_names=classes,
        fingerprint=_fingerprint(root, splits, image_size),
    )


def _open(splits: Mapping[str, Files], image_size: int | None) -> Mapping[str, Tensor | Images]:
    reference = splits["train"][0][0]
    lazy = {
        title: Images([path for path, _ in files], image_size=image_size, reference=reference)
        for title, files in splits.items()
    }
    if sum(math.prod(images.shape) for images in lazy.values()) > MEMORY_CAP:
        return lazy
    return {title: images[torch.arange(len(images))] for title, images in lazy.items()}


def _read_layout(root: Path) -> dict[str, Classes]:
    """The images of each split that the folder itself names; a plain folder of classes is all "train"."""
    named = {title for title in ("train", "val", "test") if (root / title).is_dir()}
    if not named:
        return {"train": _class_folders(root)}
    if "train" not in named:
        raise ValueError(f"{root} has {' and '.join(sorted(named))} but no train folder")
    if named == {"train"}:
        others = [name for name in _visible_folders(root) if name != "train"]
        beside = f", only {', '.join(others[:_SHOWN])}" if others else ""
        raise ValueError(
            f"{root} has a train folder but neither val nor test{beside}; "
            f"to split one folder, give imagefolder:{root / 'train'}"
        )
    annotations = root / "val" / _ANNOTATIONS
    tiny = annotations.is_file() and (root / "val" / "images").is_dir()
    folders = {"train": _class_folders(root / "train")}
    if tiny:
        folders["val"] = _annotated(annotations, folders["train"])
    else:
        folders.update({title: _class_folders(root / title) for title in ("val", "test") if title in named})
    for title, found in folders.items():
        unknown = sorted(set(found) - set(folders["train"]))
        if unknown:
            raise ValueError(f"{root / title} has classes that {root / 'train'} lacks: {_enumerated(unknown)}")
    return folders


def _class_folders(folder: Path) -> Classes:
    names = _visible_folders(folder)
    if not names:
        loose = len(_images_under(folder))
        found = f"{loose} images directly in it" if loose else "nothing of the kind"
        raise ValueError(f"expected class folders with images in {folder}, found {found}")
    classes = {name: _images_under(folder / name) for name in names}
    empty = [name for name, images in classes.items() if not images]
    if empty:
        raise ValueError(f"{folder} has class folders without images: {_enumerated(empty)}")
    return classes


def _annotated(annotations: Path, train: Classes) -> Classes:
    """The validation images of Tiny-ImageNet; a line `NAME<tab>CLASS<tab>box` of the file tells the class.

    Lines for classes that are not in train and whose images are not there are passed over, so that a part of
    the data set, with the complete file, can be used.
    """
    present = {path.name: path for path in _images_under(annotations.parent / "images")}
    classes: Classes = {}
    lost: list[str] = []
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, tab, rest = line.partition("\t")
        if not tab:
            raise ValueError(f"expected 'NAME<tab>CLASS' in line {number} of {annotations}, got '{line}'")
        label = rest.split("\t")[0].strip()
        if name in present:
            classes.setdefault(label, []).append(present.pop(name))
        elif label in train:
            lost.append(name)
    if lost:
        raise ValueError(
            f"{annotations} names images that are not in {annotations.parent / 'images'}: {_enumerated(lost)}"
        )
    if present:
        raise ValueError(f"{annotations} gives no class for: {_enumerated(sorted(present))}")
    return {label: sorted(images) for label, images in classes.items()}


def _visible_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images_under(folder: Path) -> list[Path]:
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


def _listed(found: Classes, classes: Sequence[str]) -> Files:
    return [(path, label) for label, name in enumerate(classes) for path in found.get(name, [])]


def _labels(files: Files) -> Tensor:
    return torch.tensor([label for _, label in files], dtype=torch.int64)


def _enumerated(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _fingerprint(root: Path, splits: Mapping[str, Files], image_size: int | None) -> str:
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
