"""Image files decoded to uint8 RGB with Pillow, in threads: it decodes without the interpreter lock."""

from __future__ import annotations

import functools
import io
import os
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

# Formats that Pillow recognises but hands to another program or plug-in to decode.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

# Pillow has no one exception for a damaged file: its decoders raise these on truncated and altered ones.
_DAMAGED = (
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)

_READ_PAUSES = (0.1, 0.5)  # seconds before a failed read is tried again: network file systems recover
_THREADS = min(16, os.cpu_count() or 1)
_BLOCK = 8  # images a task: fewer cost overhead, more leave threads without work


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats read, by Pillow's names."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - _NOT_DECODED))


@functools.cache
def extensions() -> frozenset[str]:
    """The file name endings of those formats: lower case, with the dot."""
    return frozenset(ending for ending, form in Image.registered_extensions().items() if form in formats())


class Images:
    """Image files as if a uint8 tensor of `shape` (N, 3, H, W): `images[index]` decodes those of a batch.

    image_size: the side in pixels of the square that each is resized and cropped to; None keeps them as they
    are, and then all must be of the first one's size.

    Raises ValueError, naming the file, for one that cannot be read or is of another size.
    """

    def __init__(self, paths: Sequence[Path], *, image_size: int | None, reference: Path | None = None) -> None:
        """reference: the file that sets the size (default: the first)."""
        self._paths = tuple(paths)
        self._image_size = image_size
        self._reference = reference or self._paths[0]
        if image_size is None:
            frame = read_image(self._reference, image_size=None).shape
        else:
            frame = (3, image_size, image_size)
        self.shape: tuple[int, int, int, int] = (len(self._paths), frame[0], frame[1], frame[2])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Tensor) -> Tensor:
        """index: (B,) int64. uint8 (B, 3, H, W)."""
        chosen = [self._paths[int(position)] for position in index.numpy()]
        batch = torch.empty((len(chosen), *self.shape[1:]), dtype=torch.uint8)
        rows = batch.numpy()

        def decode(first: int) -> None:
            for row, path in enumerate(chosen[first : first + _BLOCK], first):
                rows[row] = self._read(path)

        with ThreadPoolExecutor(_THREADS) as pool:
            # Going through the results raises what a task raised, and cancels the others.
            for _ in pool.map(decode, range(0, len(chosen), _BLOCK)):
                pass
        return batch

    def _read(self, path: Path) -> npt.NDArray[np.uint8]:
        pixels = read_image(path, image_size=self._image_size)
        if pixels.shape != self.shape[1:]:
            ours, others = (f"{shape[2]}x{shape[1]}" for shape in (pixels.shape, self.shape[1:]))
            raise ValueError(
                f"images differ in size: {path} is {ours}, {self._reference} is {others}; "
                "give image_size= to resize and crop them all"
            )
        return pixels


def read_image(path: Path, *, image_size: int | None) -> npt.NDArray[np.uint8]:
    """(3, H, W) RGB of the first frame.

    image_size: resize the shorter side to so many pixels and crop the centre; None leaves the size alone.
    Grey and palette images become RGB, 16 bits are scaled to 8, transparency is dropped (as ImageFolder of
    torchvision does), EXIF rotation is ignored (likewise). Raises ValueError, naming the path.
    """
    try:
        rgb = _to_rgb(Image.open(io.BytesIO(_read_bytes(path)), formats=formats()))
        if image_size is not None:
            rgb = _resize_and_crop(rgb, image_size)
    except _DAMAGED as error:
        raise ValueError(f"cannot read the image {path}: {_reason(error)}") from error
    return np.moveaxis(np.asarray(rgb), 2, 0)


def _read_bytes(path: Path) -> bytes:
    for pause in _READ_PAUSES:
        try:
            return path.read_bytes()
        except OSError:
            time.sleep(pause)
    return path.read_bytes()


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "its content is in none of the formats that Pillow decodes"
    return f"{error} ({type(error).__name__})"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        values: npt.NDArray[Any] = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"expected 8 or 16 bits a channel, got mode {image.mode}, which has no fixed range")
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if "transparency" in image.info:  # Pillow warns where this is taken to RGB in one step
        image = image.convert("RGBA")
    return image.convert("RGB")


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    # Cropping first is the same picture for less work.
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
