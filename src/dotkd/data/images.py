"""Image files decoded to uint8 RGB with Pillow, in threads: it decodes without the interpreter lock."""

from __future__ import annotations

import functools
import io
import math
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dotkd.data.crops import crop_boxes
from dotkd.data.pipeline import decoding_threads

# Decoded images are kept where all of them take no more bytes than this; others are decoded batch by batch.
MEMORY_CAP = 2 * 2**30

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
_BLOCK = 8  # images a task: fewer cost overhead, more leave threads without work


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats read, by Pillow's names: the usual ones first, as it tries one after the other."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - _NOT_DECODED, key=lambda form: (form not in ("JPEG", "PNG"), form)))


@functools.cache
def extensions() -> frozenset[str]:
    """The file name endings of those formats: lower case, with the dot."""
    return frozenset(ending for ending, form in Image.registered_extensions().items() if form in formats())


class Encoded(Protocol):
    """An image file, or what stands for one: a `Path` is one. `str` of it names it in messages."""

    def read_bytes(self) -> bytes:
        """What the file holds. Raises OSError where it cannot be read."""
        ...


class Images:
    """Encoded images as if a uint8 tensor of `shape` (N, 3, H, W): `images[index]` decodes those of a batch.

    image_size: the side in pixels of the square that each is resized and cropped to; None keeps them as they
    are, and then all must be of the first one's size. central: the share of the shorter side that is kept.

    Raises ValueError, naming the file, for one that cannot be read or is of another size.
    """

    def __init__(
        self,
        files: Sequence[Encoded],
        *,
        image_size: int | None,
        reference: Encoded | None = None,
        central: float = 1.0,
    ) -> None:
        """reference: the file that sets the size (default: the first)."""
        self._files = files
        self._image_size, self._central = image_size, central
        self._reference = reference or self._files[0]
        if image_size is None:
            frame = read_image(self._reference, image_size=None).shape
        else:
            frame = (3, image_size, image_size)
        self.shape: tuple[int, int, int, int] = (len(self._files), frame[0], frame[1], frame[2])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Tensor) -> Tensor:
        """index: (B,) int64. uint8 (B, 3, H, W)."""
        batch, calls = self.pending(index)
        with ThreadPoolExecutor(decoding_threads()) as pool:
            # Going through the results raises what a call raised, and cancels the others.
            for _ in pool.map(_call, calls):
                pass
        return batch[0]

    def pending(
        self, index: Tensor, draws: Tensor | None = None, *, pinned: bool = False
    ) -> tuple[Tensor, list[Callable[[], None]]]:
        """A batch that is still empty, uint8 (V, B, 3, H, W), and the calls that fill it, each some images.

        index: (B,) int64. draws: (V, B, NUMBERS), as of `dotkd.data.crops`: V crops of each image in its full size,
        brought to (H, W), for which each file is decoded once; None: the images themselves, V = 1. pinned: in memory
        that a GPU can copy from by itself. A call raises ValueError, naming the file, for one that cannot be read.
        """
        chosen = [self._files[position] for position in index.tolist()]
        views = 1 if draws is None else len(draws)
        batch = torch.empty((views, len(chosen), *self.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        rows = batch.numpy()

        def read(row: int) -> list[npt.NDArray[np.uint8]]:
            if draws is None:
                return [self._read(chosen[row])]
            return read_crops(chosen[row], draws[:, row], height=self.shape[2], width=self.shape[3])

        def fill(first: int) -> None:
            for row in range(first, min(first + _BLOCK, len(chosen))):
                for view, pixels in enumerate(read(row)):
                    rows[view, row] = pixels

        return batch, [functools.partial(fill, first) for first in range(0, len(chosen), _BLOCK)]

    def _read(self, file: Encoded) -> npt.NDArray[np.uint8]:
        pixels = read_image(file, image_size=self._image_size, central=self._central)
        if pixels.shape != self.shape[1:]:
            ours, others = (f"{shape[2]}x{shape[1]}" for shape in (pixels.shape, self.shape[1:]))
            raise ValueError(
                f"images differ in size: {file} is {ours}, {self._reference} is {others}; "
                "give image_size= to resize and crop them all"
            )
        return pixels


def _call(call: Callable[[], None]) -> None:
    call()


def open_images(splits: Mapping[str, Sequence[Encoded]], *, image_size: int | None) -> dict[str, Tensor | Images]:
    """The images of each split, decoded now where all of them fit under MEMORY_CAP, else on demand."""
    reference = splits["train"][0]
    lazy = {title: Images(files, image_size=image_size, reference=reference) for title, files in splits.items()}
    if sum(math.prod(images.shape) for images in lazy.values()) > MEMORY_CAP:
        return dict(lazy)
    return {title: images[torch.arange(len(images))] for title, images in lazy.items()}


def read_image(file: Encoded, *, image_size: int | None, central: float = 1.0) -> npt.NDArray[np.uint8]:
    """(3, H, W) RGB of the first frame.

    image_size: crop the central square, `central` times the shorter side, and resize it to so many pixels; None
    leaves the size alone. Grey and palette images become RGB, 16 bits are scaled to 8, transparency is dropped (as
    ImageFolder of torchvision does), EXIF rotation is ignored (likewise). Raises ValueError, naming the file.
    """

    def finish(rgb: Image.Image) -> Image.Image:
        return rgb if image_size is None else _resize_and_crop(rgb, image_size, central)

    return _read(file, lambda rgb: [finish(rgb)])[0]


def read_crops(file: Encoded, draws: Tensor, *, height: int, width: int) -> list[npt.NDArray[np.uint8]]:
    """A box of the image for each row of `draws` (V, NUMBERS), see `dotkd.data.crops`, each as (3, height, width)."""

    def cut(rgb: Image.Image) -> list[Image.Image]:
        boxes = crop_boxes(draws, rgb.height, rgb.width).tolist()
        parts = [rgb.crop((left, top, left + wide, top + high)) for top, left, high, wide in boxes]
        return [part.resize((width, height), Image.Resampling.BILINEAR) for part in parts]

    return _read(file, cut)


def _read(file: Encoded, finish: Callable[[Image.Image], list[Image.Image]]) -> list[npt.NDArray[np.uint8]]:
    try:
        pictures = finish(_to_rgb(Image.open(io.BytesIO(_read_bytes(file)), formats=formats())))
    except _DAMAGED as error:
        raise ValueError(f"cannot read the image {file}: {_reason(error)}") from error
    return [np.moveaxis(np.asarray(picture), 2, 0) for picture in pictures]


def _read_bytes(file: Encoded) -> bytes:
    for pause in _READ_PAUSES:
        try:
            return file.read_bytes()
        except OSError:
            time.sleep(pause)
    return file.read_bytes()


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


def _resize_and_crop(image: Image.Image, size: int, central: float) -> Image.Image:
    if image.size == (size, size) and central == 1:
        return image
    # Cropping first is the same picture for less work.
    side = min(image.size) * central
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
