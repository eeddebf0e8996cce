"""Batches without state: order is a function of (seed, epoch), augmentation of (seed, epoch, batch).

Starting at batch k therefore gives the same bits as having iterated up to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from dotkd.data import draws
from dotkd.data.arguments import check_whole, hint
from dotkd.data.augment import AUGMENTATIONS, Augment, mirror_as_drawn
from dotkd.data.dataset import Dataset, Split, SplitName, taken, to_unit
from dotkd.data.mixing import Mix, mix_inputs, mix_targets
from dotkd.data.pipeline import decoded_ahead, decoding_threads, on_device
from dotkd.data.randaugment import rand_augment
from dotkd.data.resized import Resized
from dotkd.data.transfer import to_device
from dotkd.data.views import Shown, Views


class Batch(NamedTuple):
    """inputs (B, *input_shape) float32, normalised, and targets, both on the device asked for.

    targets: (B,) int64, or (B, C) float32, rows that add up to 1, where samples are mixed. index: (B,) int64, positions
    in the split, always on the CPU, where reading it costs no synchronisation; view: likewise, the numbers of the views
    (see `dotkd.data.views`). strong: a second view of the same samples, like `inputs`, where it is asked for. taught:
    (B, C) float32, a teacher's logits, where somebody has put them there.
    """

    inputs: Tensor
    targets: Tensor
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  tuple.index is of no use here
    view: Tensor
    strong: Tensor | None = None
    taught: Tensor | None = None

    def chunks(self, count: int) -> list[Batch]:
        """At most `count` parts, one after the other, as of `torch.chunk`."""
        always = [part.chunk(count) for part in (self.inputs, self.targets, self.index, self.view)]
        others = [[None] * len(always[0]) if part is None else part.chunk(count) for part in (self.strong, self.taught)]
        return [Batch(*parts) for parts in zip(*always, *others, strict=True)]


def batch_count(dataset: Dataset, split: SplitName, *, batch_size: int, drop_last: bool = False) -> int:
    """How many batches an epoch of `split` has. Raises ValueError where that would be none, TypeError for a
    `batch_size` that is no integer."""
    size = len(_split(dataset, split).targets)
    check_whole("batch_size", batch_size, least=1)
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
    mix: Mix = "none",
    mix_alpha: float = 1.0,
    strong: bool = False,
    views: int | None = None,
    view: int | None = None,
    part: tuple[int, int] = (0, 1),
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """The batches `start`, `start` + 1, ... of one epoch, augmented if asked for, normalised, then mixed.

    augment: see `dotkd.data.augment`; "resized-crop-flip" takes its boxes from the whole files of images that are
    decoded on demand, else from what is in memory. mix, mix_alpha: see `dotkd.data.mixing`. strong: a second view as
    well, by an `augment` of its own draw and then `dotkd.data.randaugment`; mixing does the same to both views.
    views: how many views of a sample there are, see `dotkd.data.views`; view: the one to show of each. part: (k, n), of
    each batch the k-th (from 0) of n equal parts. start: may equal the number of batches; then nothing is left.

    Raises ValueError or TypeError at the call for arguments that do not fit, and ValueError while iterating for an
    image that cannot be read.
    """
    count = batch_count(dataset, split, batch_size=batch_size, drop_last=drop_last)
    samples = _split(dataset, split)
    where = torch.empty(0, device=device).device  # "cuda" by its whole name
    shown = Views(augment, mix, mix_alpha, strong, views, seed, view)
    _check_inputs(dataset, samples, shown)
    _check_part(part, batch_size, drop_last)
    check_whole("epoch", epoch, least=0)
    check_whole("start", start)
    if not 0 <= start <= count:
        raise ValueError(f"expected `start` in 0..{count}, the number of batches, got {start}")

    size = len(samples.targets)
    order = torch.arange(size)
    if shuffle:
        order = torch.randperm(size, generator=draws.generator(seed, draws.ORDER, epoch))
    channels = (-1, *[1] * (len(dataset.input_shape) - 1))
    mean, std = (to_device(values.view(channels), where) for values in (dataset.mean, dataset.std))
    fill = to_device((dataset.mean * 255).round().clamp(0, 255).to(torch.uint8), where)
    augmentation = AUGMENTATIONS.get(augment)
    samples = on_device(dataset, split, samples, where)
    images = samples.inputs
    # Whether every view is cut from the whole file, and not from what is in memory.
    from_files = augment == "resized-crop-flip" and not isinstance(images, (Tensor, Resized))

    def draw(number: int) -> Shown:
        index = order[batch_size * number :][:batch_size]
        return shown.draw(index, dataset.input_shape, epoch=epoch, batch=number, part=part)

    def begin(number: int) -> tuple[tuple[Shown, Tensor], list[Callable[[], None]]]:
        """What the batch shows and its pixels, (V, R, ...) or (1, R, ...), and the calls that decode these."""
        assert not isinstance(images, Tensor)
        drawn, pinned = draw(number), where.type == "cuda"
        if from_files:
            assert not isinstance(images, Resized)
            pixels, calls = images.pending(drawn.rows, torch.stack(drawn.numbers), pinned=pinned)
        else:
            pixels, calls = images.pending(drawn.rows, pinned=pinned)
        return (drawn, pixels), calls

    def raw() -> Iterator[tuple[Shown, Tensor]]:
        if isinstance(images, Tensor):
            for number in range(start, count):
                drawn = draw(number)
                yield drawn, taken(images, drawn.rows).unsqueeze(0)
        else:
            yield from decoded_ahead(begin, range(start, count), threads=decoding_threads())

    def inputs_of(pixels: Tensor, drawn: Shown) -> list[Tensor]:
        if augmentation is None:
            return [pixels[0]] * (1 + strong)
        if from_files:
            return [mirror_as_drawn(view, numbers) for view, numbers in zip(pixels, drawn.numbers, strict=True)]
        return [augmentation.apply(pixels[0], numbers) for numbers in drawn.numbers]

    def generate() -> Iterator[Batch]:
        for drawn, pixels in raw():
            # uint8 crosses to the device, a quarter of the bytes; the rest is done there.
            both = inputs_of(to_device(pixels, where), drawn)
            if drawn.operations is not None:
                both[1] = rand_augment(both[1], drawn.operations, fill)
            both = [to_unit(inputs).sub(mean).div_(std) for inputs in both]
            targets = to_device(taken(samples.targets, drawn.rows), where)
            if drawn.mixture is not None:
                both = [mix_inputs(inputs, drawn.mixture) for inputs in both]
                targets = mix_targets(targets, drawn.mixture, num_classes=dataset.num_classes)
            yield Batch(both[0], targets, drawn.rows[: drawn.size], drawn.view, both[1] if strong else None)

    return generate()


def _check_part(part: tuple[int, int], batch_size: int, drop_last: bool) -> None:
    mine, parts = part
    if not 0 <= mine < parts:
        raise ValueError(f"expected `part` (k, n) with 0 <= k < n, got {part}")
    if parts > 1 and (batch_size % parts or not drop_last):
        rule = "expected a batch_size that the number of parts divides, and drop_last"
        raise ValueError(f"{rule}: got {batch_size} in {parts} parts, drop_last {drop_last}")


def _check_inputs(dataset: Dataset, samples: Split, shown: Views) -> None:
    """Raises ValueError for inputs that are no images where images are needed."""
    shape = dataset.input_shape
    needing = ((shown.augment != "none", f"augment '{shown.augment}'"), (shown.mix == "cutmix", "mix 'cutmix'"))
    for needs, name in needing:
        if needs and len(shape) != 3:
            raise ValueError(f"{name} needs inputs (C, H, W), {dataset.name} has {shape}")
    if shown.strong:
        floats = isinstance(samples.inputs, Tensor) and samples.inputs.dtype != torch.uint8
        if len(shape) != 3 or shape[0] not in (1, 3) or floats:
            kind = "float32" if floats else "uint8"
            raise ValueError(
                "a second, strongly augmented view needs uint8 images of 1 or 3 channels, "
                f"{dataset.name} has {kind} {shape}"
            )


def _split(dataset: Dataset, split: SplitName) -> Split:
    if split not in get_args(SplitName):
        names = get_args(SplitName)
        raise ValueError(f"expected `split` to be one of {', '.join(names)}, got '{split}'{hint(split, names)}")
    found: Split | None = getattr(dataset, split)
    if found is None:
        raise ValueError(
            f"{dataset.name} has no {split} split: it was loaded with validation=0, which holds nothing out"
        )
    return found
