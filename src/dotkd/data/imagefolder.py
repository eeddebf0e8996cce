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

from pathlib import Path

from dotkd.data import folders, paths
from dotkd.data.dataset import Dataset, Split, assemble
from dotkd.data.folders import Classes
from dotkd.data.images import open_images

_ANNOTATIONS = "val_annotations.txt"


def load(argument: str, *, validation: float, image_size: int | None) -> Dataset:
    """inputs uint8 (N, 3, H, W), decoded now where they fit in memory, else on demand.

    Raises FileNotFoundError (no such folder), PermissionError, ValueError (no class folders, classes without
    images or without a counterpart in train, images that cannot be read or differ in size while `image_size`
    is None).
    """
    root = paths.existing(argument, spec="imagefolder:PATH", wanted="a folder of class folders")
    if not root.is_dir():
        raise ValueError(f"imagefolder:PATH: expected a folder of class folders, got the file {root}")
    found = _read_layout(root)
    classes = sorted(found["train"])
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    splits = folders.divide(found, classes, validation)
    inputs = open_images(folders.paths_of(splits), image_size=image_size)
    return assemble(
        f"imagefolder:{argument}",
        {title: Split(inputs[title], folders.labels_of(files)) for title, files in splits.items()},
        class_names=classes,
        fingerprint=folders.files_fingerprint(root, splits, image_size),
    )


def _read_layout(root: Path) -> dict[str, Classes]:
    """The images of each split that the folder itself names; a plain folder of classes is all "train"."""
    named = {title for title in ("train", "val", "test") if (root / title).is_dir()}
    if not named:
        return {"train": folders.class_folders(root)}
    if "train" not in named:
        raise ValueError(f"{root} has {' and '.join(sorted(named))} but no train folder")
    if named == {"train"}:
        others = [name for name in folders.visible_folders(root) if name != "train"]
        beside = f", only {', '.join(others[: folders.SHOWN])}" if others else ""
        raise ValueError(
            f"{root} has a train folder but neither val nor test{beside}; "
            f"to split one folder, give imagefolder:{root / 'train'}"
        )
    annotations = root / "val" / _ANNOTATIONS
    tiny = annotations.is_file() and (root / "val" / "images").is_dir()
    found = {"train": folders.class_folders(root / "train")}
    if tiny:
        found["val"] = folders.annotated(annotations, found["train"])
    else:
        found.update({title: folders.class_folders(root / title) for title in ("val", "test") if title in named})
    folders.refuse_unknown(root, found)
    return found
