"""Data by name: three splits, and batches that are a function of (seed, epoch, batch number) alone.

`load` reads a source, one file each: `mnist1d` and `digits` are embedded, `imagefolder:PATH` and
`arrays:PATH` are the user's own. `batches` iterates over a split.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from pathlib import Path

from dotkd.data.batches import Augment, Batch, batch_count, batches
from dotkd.data.dataset import Dataset, Split, SplitName

__all__ = ["SOURCES", "Augment", "Batch", "Dataset", "Split", "SplitName", "batch_count", "batches", "load"]

# Source -> how it is written. A source is imported when it is asked for: each needs a package of its own.
SOURCES: dict[str, str] = {
    "mnist1d": "mnist1d or mnist1d:NUMBER",
    "digits": "digits",
    "imagefolder": "imagefolder:PATH",
    "arrays": "arrays:PATH",
}

# Import name -> what to give pip, where it is not the same.
_PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn"}


def load(spec: str, *, validation: float = 0.1, image_size: int | None = None) -> Dataset:
    """The data set that `spec` names, with its validation and test splits held out the same way in every run.

    validation: share of the training samples, class by class, kept for validation; where the source has no
    test split, share of all samples that each of the two gets. image_size: pixels; resizes and crops images
    to a square, and is for `imagefolder` alone.

    Raises ValueError (unknown source, wrong options, unusable content), FileNotFoundError (no such path),
    ImportError (the source's package is missing).
    """
    kind, _, argument = spec.partition(":")
    if kind not in SOURCES:
        raise ValueError(f"unknown data '{spec}': expected {', '.join(SOURCES.values())}{_hint(spec, kind)}")
    if not 0 < validation < 0.5:
        raise ValueError(f"expected `validation` in (0, 0.5), got {validation}")
    if image_size is not None and kind != "imagefolder":
        raise ValueError(f"`image_size` is for imagefolder:PATH, got {image_size} with {spec}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"expected `image_size` of at least 1 pixel, got {image_size}")
    try:
        source: Callable[..., Dataset] = importlib.import_module(f"dotkd.data.{kind}").load
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise ImportError(
            f"data '{kind}' needs the package {package}: pip install {_PACKAGES.get(package, package)}",
            name=error.name,
        ) from error
    if kind == "imagefolder":
        return source(argument, validation=validation, image_size=image_size)
    return source(argument, validation=validation)


def _hint(spec: str, kind: str) -> str:
    path = Path(spec)
    if spec and path.is_dir():
        return f"; did you mean 'imagefolder:{spec}'?"
    if path.is_file():
        return f"; did you mean 'arrays:{spec}'?"
    near = difflib.get_close_matches(kind, SOURCES, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
