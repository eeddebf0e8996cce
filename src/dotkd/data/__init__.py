"""Data by name: three splits, and batches that are a function of (seed, epoch, batch number) alone.

`load` reads a source, one file each: `mnist1d` and `digits` are embedded, `cifar10`, `cifar100`, `tiny-imagenet`
and `imagenet` are the benchmarks in their official forms, `hf:` is Hugging Face's, `imagefolder:PATH` and
`arrays:PATH` are the user's own. `batches` iterates over a split.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from dotkd.data.arguments import check_number, check_whole, hint
from dotkd.data.augment import Augment
from dotkd.data.batches import Batch, batch_count, batches
from dotkd.data.dataset import Dataset, Split, SplitName
from dotkd.data.mixing import Mix

__all__ = [
    "IMAGE_SOURCES",
    "SOURCES",
    "Augment",
    "Batch",
    "Dataset",
    "Mix",
    "Split",
    "SplitName",
    "batch_count",
    "batches",
    "load",
]

# Source -> how it is written. A source is imported when it is asked for: each needs a package of its own.
SOURCES: dict[str, str] = {
    "mnist1d": "mnist1d or mnist1d:NUMBER",
    "digits": "digits",
    "imagefolder": "imagefolder:PATH",
    "arrays": "arrays:PATH",
    "cifar10": "cifar10[:PATH]",
    "cifar100": "cifar100[:PATH]",
    "tiny-imagenet": "tiny-imagenet:PATH",
    "imagenet": "imagenet:PATH",
    "hf": "hf:NAME_OR_PATH",
}

# Sources whose images can be brought to another size.
IMAGE_SOURCES = ("imagefolder", "cifar10", "cifar100", "tiny-imagenet", "imagenet", "hf")

# Import name -> what to give pip, where it is not the same.
_PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "datasets": "'dotkd[hf]'", "pyarrow": "'dotkd[hf]'"}


def load(spec: str, *, validation: float = 0.1, image_size: int | None = None) -> Dataset:
    """The data set that `spec` names, with its validation and test splits held out the same way in every run.

    validation: share of the training samples, class by class, kept for validation; where the source has no
    test split, share of all samples that each of the two gets. 0 holds nothing out: the data set then has the
    validation split that the source stores, or None, and a source without a test split is refused. image_size:
    pixels; brings images to a square of that side (`imagenet`: 224 unless given), and is for IMAGE_SOURCES alone.

    Raises ValueError (unknown source, wrong options, unusable content), TypeError (arguments of another type),
    FileNotFoundError (no such path), ImportError (the source's package is missing).
    """
    kind, _, argument = spec.partition(":")
    if kind not in SOURCES:
        raise ValueError(f"unknown data '{spec}': expected {', '.join(SOURCES.values())}{_hint(spec, kind)}")
    check_number("validation", validation)
    if not 0 <= validation < 0.5:
        raise ValueError(f"expected `validation` in [0, 0.5), got {validation}")
    if image_size is not None and kind not in IMAGE_SOURCES:
        raise ValueError(f"`image_size` is for {', '.join(IMAGE_SOURCES)}, got {image_size} with {spec}")
    if image_size is not None:
        check_whole("image_size", image_size, least=1, unit=" pixel")
    try:
        source: Callable[..., Dataset] = importlib.import_module(f"dotkd.data.{kind.replace('-', '_')}").load
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise ImportError(
            f"data '{kind}' needs the package {package}: pip install {_PACKAGES.get(package, package)}",
            name=error.name,
        ) from error
    if kind in IMAGE_SOURCES:
        return source(argument, validation=validation, image_size=image_size)
    return source(argument, validation=validation)


def _hint(spec: str, kind: str) -> str:
    path = Path(spec)
    if spec and path.is_dir():
        return f"; did you mean 'imagefolder:{spec}'?"
    if path.is_file():
        return f"; did you mean 'arrays:{spec}'?"
    return hint(kind, SOURCES)
