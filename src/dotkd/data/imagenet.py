"""ImageNet's classification task, ILSVRC 2012 (Russakovsky et al., arXiv 1409.0575), from disk:

    PATH/train/WNID/  PATH/val/WNID/                              the validation images sorted into class folders
    PATH/train/WNID/  PATH/val/  PATH/LOC_val_solution.csv        flat, with the list that comes with them
    PATH/ILSVRC/Data/CLS-LOC/train/WNID/  .../val/  PATH/LOC_*    the same as it is unpacked

The validation images are the test split, as everywhere in the field. Classes are in the order of their sorted WordNet
identifiers; a tree with a part of them is a smaller data set. Images are never kept decoded: training crops them from
the files with augment "resized-crop-flip", and otherwise, as for evaluation, sees the central square of 7/8 of the
shorter side (256 pixels, of which 224 are kept).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from dotkd.data import folders, paths
from dotkd.data.dataset import Dataset, Split, assemble
from dotkd.data.images import Images
from dotkd.data.tiny_imagenet import read_words

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224
CENTRAL = 224 / 256

_LIST = "LOC_val_solution.csv"
_WANTED = "a folder with train/WNID, and val/WNID or val and " + _LIST


def load(argument: str, *, validation: float, image_size: int | None) -> Dataset:
    """inputs uint8 (N, 3, 224, 224), or of `image_size`, decoded on demand; mean and std are the published ones.

    Raises FileNotFoundError (no such folder) and ValueError (a part of the tree is missing, classes that train lacks);
    images that cannot be read are found when their turn comes.
    """
    top = paths.existing(argument, spec="imagenet:PATH", wanted=_WANTED)
    nested = top / "ILSVRC" / "Data" / "CLS-LOC"
    root = nested if nested.is_dir() else top
    for needed in (root / "train", root / "val"):
        if not needed.is_dir():
            raise ValueError(f"imagenet:PATH: expected {_WANTED}, but {root} has no {needed.name} folder")
    found = {"train": folders.class_folders(root / "train")}
    if folders.visible_folders(root / "val"):
        found["val"] = folders.class_folders(root / "val")
    elif (top / _LIST).is_file():
        found["val"] = folders.by_list(top / _LIST, _read_list(top / _LIST), root / "val", found["train"])
    else:
        raise ValueError(f"imagenet:PATH: expected class folders in {root / 'val'}, or {top / _LIST}; found neither")
    folders.refuse_unknown(root, found)
    found["test"] = found.pop("val")
    classes = sorted(found["train"])
    splits = folders.divide(found, classes, validation)
    side = image_size or SIDE
    words = read_words(top / "LOC_synset_mapping.txt", separator=" ") or read_words(top / "words.txt", separator="\t")
    return assemble(
        f"imagenet:{argument}",
        {
            title: Split(Images(files, image_size=side, central=CENTRAL), folders.labels_of(splits[title]))
            for title, files in folders.paths_of(splits).items()
        },
        class_names=[words.get(name, name) for name in classes],
        fingerprint=folders.files_fingerprint(root, splits, side),
        statistics=(MEAN, STD),
    )


def _read_list(path: Path) -> Iterator[tuple[str, str]]:
    """File name and WordNet identifier of each row `ImageId,PredictionString`, whose string starts with the latter."""
    for number, row in enumerate(csv.reader(folders.lines_of(path)), 1):
        if not row or (number == 1 and row[0] == "ImageId"):
            continue
        if len(row) != 2 or not row[1].split():
            raise ValueError(f"expected 'IMAGE,WNID ...' in line {number} of {path}, got '{','.join(row)}'")
        yield f"{row[0]}.JPEG", row[1].split()[0]
