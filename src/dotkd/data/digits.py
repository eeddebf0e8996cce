"""The 1797 handwritten digits that scikit-learn carries: 8x8 pixels, ten classes (UCI, Alpaydin and Kaynak
1998)."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from dotkd.data.dataset import Dataset, Split, assemble, content_fingerprint, hold_out

_TEST_SHARE = 0.2  # a choice of this library: scikit-learn names no split
_CLASSES = tuple(str(digit) for digit in range(10))


def load(argument: str, *, validation: float) -> Dataset:
    """inputs (N, 1, 8, 8) float32 in [0, 1]; a fifth of each class is for testing, `validation` of the rest
    held out, nothing where that is 0."""
    if argument:
        raise ValueError(f"expected digits with nothing after it, got digits:{argument}")
    bunch = cast("Any", load_digits)()
    inputs = torch.as_tensor((bunch.images / 16).astype(np.float32)[:, None])
    targets = torch.as_tensor(bunch.target.astype(np.int64))
    rest, test = hold_out(targets, _TEST_SHARE, class_names=_CLASSES)
    parts = {"train": rest, "test": test}
    if validation > 0:
        kept, held = hold_out(targets[rest], validation, class_names=_CLASSES)
        parts = {"train": rest[kept], "val": rest[held], "test": test}
    splits = {title: Split(inputs[index], targets[index]) for title, index in parts.items()}
    return assemble("digits", splits, class_names=_CLASSES, fingerprint=content_fingerprint(*splits.values()))
