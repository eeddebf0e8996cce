"""Tiny-ImageNet (Le and Yang, Stanford CS 231N, 2015): 200 classes, 500 training and 50 validation images each of 64
pixels, from its official tree:

    PATH/wnids.txt, PATH/words.txt, PATH/train/WNID/images/, PATH/val/images/, PATH/val/val_annotations.txt

The validation images are the test split, as everywhere in the field; the official test images have no labels. Classes
are in the order of their sorted WordNet identifiers. A tree with a part of the classes is a smaller data set.
"""

from __future__ import annotations

from pathlib import Path

from dotkd.data import folders, paths
from dotkd.data.dataset import Dataset, Split, assemble
from dotkd.data.images import open_images

# As the published code of DKD and DOT normalises; other code has a standard deviation of (0.277, 0.269, 0.282).
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)

_WANTED = "the folder tiny-imagenet-200, with train, val and wnids.txt"


def load(argument: str, *, validation: float, image_size: int | None) -> Dataset:
    """inputs uint8 (N, 3, 64, 64), or of `image_size`; mean and std are the published ones.

    Raises FileNotFoundError (no such folder) and ValueError (a part of the tree is missing, classes that wnids.txt
    or train lacks, images that cannot be read).
    """
    root = paths.existing(argument, spec="tiny-imagenet:PATH", wanted=_WANTED)
    annotations = root / "val" / "val_annotations.txt"
    for needed in (root / "wnids.txt", root / "train", annotations, root / "val" / "images"):
        if not needed.exists():
            raise ValueError(f"tiny-imagenet:PATH: expected {_WANTED}, but {root} has no {needed.relative_to(root)}")
    official = {line.strip() for line in folders.lines_of(root / "wnids.txt")}
    found = {"train": folders.class_folders(root / "train")}
    unknown = sorted(set(found["train"]) - official)
    if unknown:
        raise ValueError(f"{root / 'train'} has classes that wnids.txt lacks: {folders.enumerated(unknown)}")
    found["val"] = folders.annotated(annotations, found["train"])
    folders.refuse_unknown(root, found)
    found["test"] = found.pop("val")
    classes = sorted(found["train"])
    splits = folders.divide(found, classes, validation)
    inputs = open_images(folders.paths_of(splits), image_size=image_size)
    words = read_words(root / "words.txt", separator="\t")
    return assemble(
        f"tiny-imagenet:{argument}",
        {title: Split(inputs[title], folders.labels_of(files)) for title, files in splits.items()},
        class_names=[words.get(name, name) for name in classes],
        fingerprint=folders.files_fingerprint(root, splits, image_size),
        statistics=(MEAN, STD),
    )


def read_words(path: Path, *, separator: str) -> dict[str, str]:
    """WordNet identifier -> its words, from lines of the two; empty where there is no such file."""
    if not path.is_file():
        return {}
    lines = (line.partition(separator) for line in folders.lines_of(path))
    return {name: words.strip() for name, _, words in lines if words.strip()}
