"""Arrays from one `.npz` or `.safetensors` file: `x_train`, `y_train`, `x_test`, `y_test` and, if at hand,
`x_val` and `y_val`; or `x` and `y` alone, from which the splits are held out.

Inputs are uint8 (0..255) or floating point: (N, D) vectors, (N, C, L) signals or (N, C, H, W) images. Three
dimensions of uint8 are taken for grey images (N, H, W) and get a channel, since signals are not stored as
bytes; grey images of floats must be saved as (N, 1, H, W). Labels are integers 0..C-1, each of which occurs
in training.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from dotkd.data import paths
from dotkd.data.arguments import hint
from dotkd.data.dataset import Dataset, assemble, complete_arrays, content_fingerprint

_SPLIT_KEYS = ("x_train", "y_train", "x_test", "y_test")
_VAL_KEYS = ("x_val", "y_val")
_WHOLE_KEYS = ("x", "y")


def load(argument: str, *, validation: float) -> Dataset:
    """inputs uint8 or float32, of the shape stored.

    Raises FileNotFoundError, or ValueError for another format, missing or unknown arrays, unsuitable types
    and shapes, labels outside 0..C-1 and inputs that are not finite; each names the array and the value.
    """
    path = paths.existing(argument, spec="arrays:PATH", wanted="an .npz or .safetensors file")
    arrays = _read(path)
    _check_keys(arrays, path)
    whole = "x" in arrays
    titles = (
        {"train": ""} if whole else {title: f"_{title}" for title in ("train", "val", "test") if f"x_{title}" in arrays}
    )
    stored = {title: _split(arrays, suffix, path) for title, suffix in titles.items()}
    classes = _check_labels({titles[title]: labels for title, (_, labels) in stored.items()}, path)
    trained = stored["train"][0]
    for title, (inputs, _) in stored.items():
        if inputs.shape[1:] != trained.shape[1:] or inputs.dtype != trained.dtype:
            raise ValueError(
                f"{path}: x_{title} is {_described(inputs)}, x_train is {_described(trained)}; "
                "expected the same type and shape of a sample"
            )
    splits = complete_arrays(stored, validation, class_names=classes)
    return assemble(
        f"arrays:{argument}", splits, class_names=classes, fingerprint=content_fingerprint(*splits.values())
    )


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"expected arrays:PATH to end in .npz or .safetensors, got {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Without pickles: a file of data must not be able to run code.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (SafetensorError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    return {name: _tensor(array, name, path) for name, array in arrays.items()}


def _tensor(array: Any, name: str, path: Path) -> Tensor:
    try:
        return torch.as_tensor(array.astype(array.dtype.newbyteorder("="), copy=False))
    except TypeError as error:
        raise ValueError(f"{path}: expected numbers in {name}, got {array.dtype}") from error


def _check_keys(arrays: dict[str, Tensor], path: Path) -> None:
    allowed = (*_SPLIT_KEYS, *_VAL_KEYS, *_WHOLE_KEYS)
    rule = (
        "expected x_train, y_train, x_test, y_test (and x_val, y_val), or x and y; "
        f"{path} has {', '.join(arrays) or 'no array'}"
    )
    for name in arrays:
        if name not in allowed:
            raise ValueError(f"unknown array '{name}': {rule}{hint(name, allowed)}")
    if set(arrays) not in ({*_WHOLE_KEYS}, {*_SPLIT_KEYS}, {*_SPLIT_KEYS, *_VAL_KEYS}):
        raise ValueError(rule)


def _split(arrays: dict[str, Tensor], suffix: str, path: Path) -> tuple[Tensor, Tensor]:
    """One split, its inputs as uint8 or float32 with a channel dimension, its labels as int64."""
    inputs, targets = arrays[f"x{suffix}"], arrays[f"y{suffix}"]
    if inputs.dim() not in (2, 3, 4) or 0 in inputs.shape:
        raise ValueError(
            f"{path}: expected x{suffix} of shape (N, D), (N, C, L), (N, H, W) in uint8 or (N, C, H, W), "
            f"no size 0, got {tuple(inputs.shape)}"
        )
    if inputs.dim() == 4 and inputs.shape[3] in (1, 3, 4) and min(inputs.shape[1:3]) > 4:
        raise ValueError(
            f"{path}: expected x{suffix} of shape (N, C, H, W), got {tuple(inputs.shape)}, "
            "which has its channels last; save x.transpose(0, 3, 1, 2)"
        )
    if inputs.dtype != torch.uint8:
        if not inputs.dtype.is_floating_point:
            raise ValueError(f"{path}: expected x{suffix} in uint8 or floating point, got {inputs.dtype}")
        inputs = inputs.float()
        wrong = (~inputs.isfinite()).nonzero()
        if len(wrong) > 0:
            position = tuple(int(place) for place in wrong[0])
            raise ValueError(
                f"{path}: expected finite inputs, got {float(inputs[position])} at x{suffix}{list(position)}"
            )
    elif inputs.dim() == 3:
        inputs = inputs.unsqueeze(1)
    if targets.dtype == torch.bool or targets.dtype.is_floating_point or targets.dtype.is_complex:
        raise ValueError(f"{path}: expected integer labels in y{suffix}, got {targets.dtype}")
    if targets.shape != inputs.shape[:1]:
        raise ValueError(
            f"{path}: expected y{suffix} of shape ({len(inputs)},), one label a sample, got {tuple(targets.shape)}"
        )
    return inputs, targets.long()


def _check_labels(labels: dict[str, Tensor], path: Path) -> list[str]:
    """The class names "0", "1", ...: as many as the first, the training labels, have different values.

    labels: suffix of the array's name -> (N,) int64.
    """
    trained = next(iter(labels))
    count = len(np.unique(labels[trained].numpy()))
    for suffix, values in labels.items():
        wrong = ((values < 0) | (values >= count)).nonzero()
        if len(wrong) > 0:
            position = int(wrong[0])
            raise ValueError(
                f"{path}: expected labels in 0..{count - 1}, since y{trained} has {count} different ones, "
                f"got {int(values[position])} at y{suffix}[{position}]"
            )
    return [str(label) for label in range(count)]


def _described(inputs: Tensor) -> str:
    return f"{str(inputs.dtype).removeprefix('torch.')} {tuple(inputs.shape)}"
