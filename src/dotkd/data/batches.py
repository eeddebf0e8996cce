"""Batches without state: order is a function of (seed, epoch), augmentation of (seed, epoch, batch).

Starting at batch k therefore gives the same bits as having iterated up to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

from dotkd.data import draws
from dotkd.data.arguments import check_name, check_number, check_whole, hint
from dotkd.data.augment import AUGMENTATIONS, Augment, mirror_as_drawn
from dotkd.data.dataset import Dataset, Split, SplitName, taken, to_unit
from dotkd.data.mixing import Mix, draw_mixture, mix_inputs, mix_targets
from dotkd.data.randaugment import draw_operations, rand_augment
from dotkd.data.resized import Resized

Raw = TypeVar("Raw")


class Batch(NamedTuple):
    """inputs (B, *input_shape) float32, normalised, and targets, both on the device asked for.

    targets: (B,) int64, or (B, C) float32, rows that add up to 1, where samples are mixed. index: (B,) int64, positions
    in the split, always on the CPU, where reading it costs no synchronisation. strong: a second view of the same
    samples, like `inputs`, where it is asked for.
    """

    inputs: Tensor
    targets: Tensor
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  tuple.index is of no use here
    strong: Tensor | None = None

    def chunks(self, count: int) -> list[Batch]:
        """At most `count` parts, one after the other, as of `torch.chunk`."""
        inputs, targets, index = (part.chunk(count) for part in (self.inputs, self.targets, self.index))
        strong = [None] * len(inputs) if self.strong is None else self.strong.chunk(count)
        return [Batch(*parts) for parts in zip(inputs, targets, index, strong, strict=True)]


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
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """The batches `start`, `start` + 1, ... of one epoch, augmented if asked for, normalised, then mixed.

    augment: see `dotkd.data.augment`; "resized-crop-flip" takes its boxes from the whole files of images that are
    decoded on demand, else from what is in memory. mix, mix_alpha: see `dotkd.data.mixing`. strong: a second view as
    well, by an `augment` of its own draw and then `dotkd.data.randaugment`; mixing does the same to both views.
    start: may equal the number of batches; then nothing is left.

    Raises ValueError or TypeError at the call for arguments that do not fit, and ValueError while iterating for an
    image that cannot be read.
    """
    count = batch_count(dataset, split, batch_size=batch_size, drop_last=drop_last)
    samples, where = _split(dataset, split), torch.device(device)
    _check_views(dataset, samples, augment, mix, mix_alpha, strong)
    check_whole("epoch", epoch, least=0)
    check_whole("seed", seed, least=0)
    check_whole("start", start)
    if not 0 <= start <= count:
        raise ValueError(f"expected `start` in 0..{count}, the number of batches, got {start}")

    size = len(samples.targets)
    order = torch.arange(size)
    if shuffle:
        order = torch.randperm(size, generator=draws.generator(seed, draws.ORDER, epoch))
    channels = (-1, *[1] * (len(dataset.input_shape) - 1))
    mean, std = dataset.mean.view(channels).to(where), dataset.std.view(channels).to(where)
    fill = (dataset.mean * 255).round().clamp(0, 255).to(torch.uint8).to(where)
    augmentation = AUGMENTATIONS.get(augment)
    purposes = (draws.VIEWS, draws.STRONG_VIEWS)[: 1 + strong]
    files = None
    if augment == "resized-crop-flip" and not isinstance(samples.inputs, (Tensor, Resized)):
        files = samples.inputs

    def read(number: int) -> tuple[int, Tensor, list[Tensor], Tensor]:
        """Number and samples of a batch, what the augmentation draws for each of V views, and the pixels: (1, B, ...),
        or (V, B, ...) where each view is cut from the files."""
        index = order[batch_size * number :][:batch_size]
        drawn: list[Tensor] = []
        if augmentation is not None:
            key = {"seed": seed, "epoch": epoch, "batch": number}
            drawn = [augmentation.draw(len(index), **key, purpose=purpose) for purpose in purposes]
        if files is not None:
            return number, index, drawn, files.cropped(index, torch.stack(drawn))
        return number, index, drawn, taken(samples.inputs, index).unsqueeze(0)

    def views_of(pixels: Tensor, drawn: list[Tensor]) -> list[Tensor]:
        if augmentation is None:
            return [pixels[0] for _ in purposes]
        if files is not None:
            return [mirror_as_drawn(view, numbers) for view, numbers in zip(pixels, drawn, strict=True)]
        return [augmentation.apply(pixels[0], numbers) for numbers in drawn]

    def generate() -> Iterator[Batch]:
        decoding = not isinstance(samples.inputs, Tensor)
        for number, index, drawn, raw in _ahead(read, range(start, count), decoding=decoding):
            # uint8 crosses to the device, a quarter of the bytes; the rest is done there.
            views = views_of(_to_device(raw, where), drawn)
            if strong:
                operations = draw_operations(len(index), seed=seed, epoch=epoch, batch=number)
                views[1] = rand_augment(views[1], operations, fill)
            views = [to_unit(view).sub(mean).div_(std) for view in views]
            targets = _to_device(samples.targets[index], where)
            if mix != "none":
                mixture = draw_mixture(
                    mix, len(index), dataset.input_shape, alpha=mix_alpha, seed=seed, epoch=epoch, batch=number
                )
                views = [mix_inputs(inputs, mixture) for inputs in views]
                targets = mix_targets(targets, mixture, num_classes=dataset.num_classes)
            yield Batch(views[0], targets, index, views[1] if strong else None)

    return generate()


def _check_views(dataset: Dataset, samples: Split, augment: str, mix: str, mix_alpha: float, strong: bool) -> None:
    """Raises ValueError for names that do not exist and for inputs that are no images where images are needed."""
    check_name("augment", augment, get_args(Augment))
    check_name("mix", mix, get_args(Mix))
    check_number("mix_alpha", mix_alpha)
    if not 0 < mix_alpha < math.inf:
        raise ValueError(f"expected `mix_alpha` above 0, got {mix_alpha}")
    shape = dataset.input_shape
    for needs, name in ((augment != "none", f"augment '{augment}'"), (mix == "cutmix", "mix 'cutmix'")):
        if needs and len(shape) != 3:
            raise ValueError(f"{name} needs inputs (C, H, W), {dataset.name} has {shape}")
    if strong:
        floats = isinstance(samples.inputs, Tensor) and samples.inputs.dtype != torch.uint8
        if len(shape) != 3 or shape[0] not in (1, 3) or floats:
            kind = "float32" if floats else "uint8"
            raise ValueError(
                "a second, strongly augmented view needs uint8 images of 1 or 3 channels, "
                f"{dataset.name} has {kind} {shape}"
            )


def _ahead(read: Callable[[int], Raw], numbers: range, *, decoding: bool) -> Iterator[Raw]:
    """`read` of each number; where that means `decoding`, one ahead, in a thread."""
    if not decoding:
        yield from map(read, numbers)
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        pending: Future[Raw] | None = None
        for number in numbers:
            following = thread.submit(read, number)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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
