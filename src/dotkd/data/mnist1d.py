"""MNIST-1D: ten digit shapes as noisy signals of 40 points (Greydanus and Kobak, arXiv 2011.14439).

The `mnist1d` package makes them on the spot; nothing is downloaded. `mnist1d` is the published set: 4000
samples to train on, 1000 to test. `mnist1d:NUMBER` is a draw of its own of NUMBER samples, 4000 to train on
and all others to test, so that the test accuracy has a smaller standard error.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mnist1d.data import get_dataset_args, make_dataset  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
from torch import Tensor

from dotkd.data.dataset import Dataset, Split, assemble, complete_arrays

_TRAIN = 4000
_PUBLISHED = 5000
_CLASSES = tuple(str(digit) for digit in range(10))


def load(argument: str, *, validation: float) -> Dataset:
    """inputs (N, 1, 40) float32, ten classes; `argument` is empty or the number of samples.

    Raises ValueError for a number that is not a multiple of ten (the classes are of equal size) above 4000.
    """
    if argument and not (argument.isdecimal() and int(argument) > _TRAIN and int(argument) % 10 == 0):
        raise ValueError(f"expected mnist1d:NUMBER with a multiple of 10 above {_TRAIN}, got mnist1d:{argument}")
    number = int(argument) if argument else _PUBLISHED
    inputs, targets = _generate(number)
    stored = {"train": (inputs[:_TRAIN], targets[:_TRAIN]), "test": (inputs[_TRAIN:], targets[_TRAIN:])}
    splits = complete_arrays(stored, validation, class_names=_CLASSES)
    return assemble("mnist1d", splits, class_names=_CLASSES, fingerprint=_fingerprint(number, splits))


@functools.lru_cache(maxsize=2)
def _generate(number: int) -> tuple[Tensor, Tensor]:
    arguments: Any = get_dataset_args()  # pyright: ignore[reportUnknownVariableType]
    arguments.num_samples, arguments.train_split = number, _TRAIN / number
    with _global_generators_kept():
        made: Any = make_dataset(arguments)
    # Joined, to be cut by the caller: the package truncates a product that rounding can make one too small.
    inputs = np.concatenate([made["x"], made["x_test"]]).astype(np.float32)[:, None, :]
    targets = np.concatenate([made["y"], made["y_test"]]).astype(np.int64)
    return torch.as_tensor(inputs), torch.as_tensor(targets)


@contextmanager
def _global_generators_kept() -> Generator[None, None, None]:
    """`make_dataset` seeds the global generators of `random` and numpy: no business of the caller's."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def _fingerprint(number: int, splits: Mapping[str, Split]) -> str:
    """Of the recipe and the labels, which are exact; the signals may differ by an ulp between machines."""
    digest = hashlib.sha256(f"mnist1d {importlib.metadata.version('mnist1d')} {number}".encode())
    for split in splits.values():
        digest.update(str(len(split.targets)).encode() + split.targets.numpy().tobytes())
    return digest.hexdigest()
