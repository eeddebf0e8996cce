"""Batches without state: order is a function of (seed, epoch), augmentation of (seed, epoch, batch).

Starting at batch k therefore gives the same bits as having iterated up to it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dotkd.data.dataset import Dataset, Split, SplitName, to_unit

Augment = Literal["none", "crop-flip"]

# Pixels on every side: the habit on CIFAR (He et al., arXiv 1512.03385, section 4.2) and Tiny-ImageNet.
PADDING = 4
_OFFSETS = 2 * PADDING + 1
VIEWS = _OFFSETS * _OFFSETS * 2  # distinct crops of an image, mirrored or not

# What a generator is for. Streams of equal (seed, epoch) stay independent.
_ORDER, _VIEWS = 0, 1


class Batch(NamedTuple):
    """inputs (B, *input_shape) float32, normalised, and targets (B,) int64, both on the device asked for.

    index: (B,) int64, positions in the split, always on the CPU, where reading it costs no synchronisation.
    """

    inputs: Tensor
    targets: Tensor
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  tuple.index is of no use here


def batch_count(dataset: Dataset, split: SplitName, *, batch_size: int, drop_last: bool = False) -> int:
    """How many batches an epoch of `split` has. Raises ValueError where that would be none."""
    size = len(_split(dataset, split).targets)
    if batch_size < 1:
        raise ValueError(f"expected `batch_size` of at least 1, got {batch_size}")
    count = size // batch_size if drop_last else math.ceil(size / batch_size)
    if count == 0:
        raise ValueError(
            f"no batch left: the {split} split of {dataset.name} has {size} samples, "
            f"fewer than batch_size {batch_size}, and drop_last drops them"
        )
    return count


def batches(
    dataset: Dataset,
    split: SplitName,
    *,
    batch_size: int,
    epoch: int = 0,
    seed: int = 0,
    start: int = 0,
    shuffle: bool = False,
    drop_last: bool = False,
    augment: Augment = "none",
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """The batches `start`, `start` + 1, ... of one epoch, augmented if asked for, then normalised.

    augment: "crop-flip" pads images with 4 black pixels, crops at random back to their size and mirrors half
    of them. start: may equal the number of batches; then nothing is left.

    Raises ValueError at the call for arguments that do not fit, and while iterating for an image that cannot
    be read.
    """
    count = batch_count(dataset, split, batch_size=batch_size, drop_last=drop_last)
    if augment not in get_args(Augment):
        near = difflib.get_close_matches(augment, get_args(Augment), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"expected `augment` to be 'none' or 'crop-flip', got '{augment}'{hint}")
    if augment == "crop-flip" and len(dataset.input_shape) != 3:
        raise ValueError(f"augment 'crop-flip' needs inputs (C, H, W), {dataset.name} has {dataset.input_shape}")
    for name, value in (("epoch", epoch), ("seed", seed)):
        if value < 0:
            raise ValueError(f"expected `{name}` of at least 0, got {value}")
    if not 0 <= start <= count:
        raise ValueError(f"expected `start` in 0..{count}, the number of batches, got {start}")

    samples, where = _split(dataset, split), torch.device(device)
    size = len(samples.targets)
    order = torch.randperm(size, generator=_generator(seed, _ORDER, epoch)) if shuffle else torch.arange(size)
    indices = [order[batch_size * number :][:batch_size] for number in range(start, count)]
    channels = (-1, *[1] * (len(dataset.input_shape) - 1))
    mean, std = dataset.mean.view(channels).to(where), dataset.std.view(channels).to(where)

    def generate() -> Iterator[Batch]:
        for number, (index, raw) in enumerate(_fetch(samples, indices), start):
            # uint8 crosses to the device, a quarter of the bytes; the rest is done there.
            inputs = _to_device(raw, where)
            if augment == "crop-flip":
                views = draw_views(len(index), seed=seed, epoch=epoch, batch=number)
                inputs = crop_flip(inputs, _to_device(views, where))
            yield Batch((to_unit(inputs) - mean) / std, _to_device(samples.targets[index], where), index)

    return generate()


def draw_views(count: int, *, seed: int, epoch: int, batch: int) -> Tensor:
    """(count,) int64 in [0, VIEWS): the view of each image in that batch."""
    return torch.randint(VIEWS, (count,), generator=_generator(seed, _VIEWS, epoch, batch))


def crop_flip(inputs: Tensor, views: Tensor) -> Tensor:
    """The images (B, C, H, W) padded with 4 zeros all round, cropped to (H, W) and mirrored or not.

    views: (B,) int64, (mirrored * 9 + row) * 9 + column; row, column: the crop's corner in the padded image.
    """
    height, width = inputs.shape[2:]
    row, column = views // _OFFSETS % _OFFSETS, views % _OFFSETS
    # A view of all 81 crops, one of which is copied: four times faster than gathering pixels.
    crops = F.pad(inputs, [PADDING] * 4).unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 9, 9, H, W)
    chosen = crops[torch.arange(len(inputs), device=inputs.device), :, row, column]
    flip = views >= _OFFSETS * _OFFSETS
    return torch.where(flip.view(-1, 1, 1, 1), chosen.flip(3), chosen)


def _fetch(split: Split, indices: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """(index, inputs[index]); images that must be decoded are read one batch ahead, in a thread."""
    if isinstance(split.inputs, Tensor):
        for index in indices:
            yield index, split.inputs[index]
        return
    with ThreadPoolExecutor(max_workers=1) as ahead:
        pending: tuple[Tensor, Future[Tensor]] | None = None
        for index in indices:
            following = index, ahead.submit(split.inputs.__getitem__, index)
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = following
        if pending is not None:
            yield pending[0], pending[1].result()


def _generator(seed: int, *key: int) -> torch.Generator:
    # SeedSequence is specified to give the same words everywhere and mixes neighbouring seeds well.
    word = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word))


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _split(dataset: Dataset, split: SplitName) -> Split:
    if split not in get_args(SplitName):
        raise ValueError(f"expected `split` to be one of {', '.join(get_args(SplitName))}, got '{split}'")
    return getattr(dataset, split)
