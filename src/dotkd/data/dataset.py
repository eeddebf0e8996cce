"""What every source returns: three splits, their channel statistics and a fingerprint.

The splits are a property of the data, never of a run: what is held out is drawn with a constant seed, so two
runs with different seeds are judged on the same samples.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dotkd.data.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dotkd.data.images import Images
    from dotkd.data.resized import Resized

SplitName = Literal["train", "val", "test"]

# Enough for a mean and a deviation to three digits; more would be slow where images are decoded on demand.
_STATISTICS_SAMPLES = 4096
_STATISTICS_BLOCK = 256


class Split(NamedTuple):
    """inputs: `inputs[index]`, with index (B,) int64, gives (B, *input_shape), uint8 or float32.

    targets: (N,) int64.
    """

    inputs: Tensor | Images | Resized
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits and what a trainer must know about them.

    val: None where nothing was held out and the source stores no such split. input_shape: (D,), (C, L) or
    (C, H, W). mean, std: float32, one value a channel (the first dimension of input_shape), after uint8 has been
    scaled to [0, 1]: measured on the training split, where the std of a constant channel is 1, or the published
    ones where the source is a benchmark that has some. fingerprint: 64 hex digits that change with the samples,
    their labels or their order in the splits.

    Raises ValueError for a split that is empty, has labels outside 0..num_classes-1, or is of another shape.
    """

    name: str
    train: Split
    val: Split | None
    test: Split
    num_classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    mean: Tensor
    std: Tensor
    fingerprint: str

    def __post_init__(self) -> None:
        if self.num_classes < 2 or len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{self.name}: expected at least 2 classes and a name for each, "
                f"got {self.num_classes} classes and {len(self.class_names)} names"
            )
        for title, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            if split is not None:
                self._check(title, split)

    def _check(self, title: str, split: Split) -> None:
        targets, shape = split.targets, tuple(split.inputs.shape)
        if targets.dtype != torch.int64 or targets.dim() != 1:
            raise ValueError(
                f"{self.name}: expected int64 labels of shape (N,) in {title}, got {targets.dtype} of shape "
                f"{tuple(targets.shape)}"
            )
        if len(targets) == 0:
            raise ValueError(f"{self.name}: the {title} split has no samples")
        if shape != (len(targets), *self.input_shape):
            raise ValueError(
                f"{self.name}: expected inputs of shape {(len(targets), *self.input_shape)} in {title}, got {shape}"
            )
        wrong = ((targets < 0) | (targets >= self.num_classes)).nonzero()
        if len(wrong) > 0:
            position = int(wrong[0])
            raise ValueError(
                f"{self.name}: expected labels in 0..{self.num_classes - 1}, "
                f"got {int(targets[position])} at position {position} of {title}"
            )


def assemble(
    name: str,
    splits: Mapping[str, Split],
    *,
    class_names: Sequence[str],
    fingerprint: str,
    statistics: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Dataset:
    """The Dataset of `splits`: "train", "test" and, where there is one, "val". Its shape is that of "train".

    statistics: published mean and std of each channel; None measures them on the training split.
    """
    if statistics is None:
        mean, std = channel_statistics(splits["train"].inputs)
    else:
        mean, std = (torch.tensor(values, dtype=torch.float32) for values in statistics)
    return Dataset(
        name=name,
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
        num_classes=len(class_names),
        input_shape=tuple(splits["train"].inputs.shape[1:]),
        class_names=tuple(class_names),
        mean=mean,
        std=std,
        fingerprint=fingerprint,
    )


def to_unit(inputs: Tensor) -> Tensor:
    """float32 inputs as they are, uint8 ones scaled from 0..255 to [0, 1]."""
    return inputs.float().div_(255) if inputs.dtype == torch.uint8 else inputs


def taken(inputs: Tensor | Images | Resized, index: Tensor) -> Tensor:
    """`inputs[index]`, where index (B,) int64 is on the CPU; for a tensor many times faster than written so."""
    return inputs.index_select(0, to_device(index, inputs.device)) if isinstance(inputs, Tensor) else inputs[index]


def hold_out(targets: Tensor, share: float, *, class_names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Positions (kept, held), each ascending: `share` of every class is held, always the same samples.

    targets: (N,) int64. Of every class at least one sample is kept and one is held. Raises ValueError for a
    class with fewer than two samples.
    """
    # The legacy generator: the only one whose stream numpy promises never to change.
    generator = np.random.RandomState(0)
    held = torch.zeros(len(targets), dtype=torch.bool)
    for label, name in enumerate(class_names):
        members = (targets == label).nonzero().flatten()
        if len(members) < 2:
            raise ValueError(
                f"cannot hold out {share:.0%} of class '{name}': expected at least 2 samples, "
                f"{len(members)} left in the training split"
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        chosen = torch.as_tensor(generator.permutation(len(members))[:count])
        held[members[chosen]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def complete(
    targets: Mapping[str, Tensor], validation: float, *, class_names: Sequence[str]
) -> dict[str, tuple[str, Tensor]]:
    """For each of "train", "val" and "test": the stored split its samples come from, and their positions.

    targets: the labels (N,) of "train" and of those of "val" and "test" that are stored. One that is not is
    held out of "train": the share `validation` of what "train" has at first, class by class. With `validation` 0
    nothing is held out, and "val" is left out unless it is stored; raises ValueError where there is no test split.
    """
    positions = {title: torch.arange(len(labels)) for title, labels in targets.items()}
    parts = {title: (title, index) for title, index in positions.items()}
    if validation == 0:
        if "test" not in parts:
            raise ValueError("expected `validation` above 0, the share that the missing test split gets as well, got 0")
        return parts
    share = validation
    for title in ("test", "val"):
        if title not in parts:
            remaining = parts["train"][1]
            kept, held = hold_out(targets["train"][remaining], share, class_names=class_names)
            parts["train"], parts[title] = ("train", remaining[kept]), ("train", remaining[held])
            share = validation / (1 - validation)
    return parts


def complete_arrays(
    stored: Mapping[str, tuple[Tensor, Tensor]], validation: float, *, class_names: Sequence[str]
) -> dict[str, Split]:
    """`complete` for (inputs, targets) in memory, in the order train, val, test."""
    parts = complete({title: labels for title, (_, labels) in stored.items()}, validation, class_names=class_names)
    splits: dict[str, Split] = {}
    for title in (title for title in ("train", "val", "test") if title in parts):
        source, index = parts[title]
        inputs, labels = stored[source]
        splits[title] = Split(taken(inputs, index), labels[index])
    return splits


def channel_statistics(inputs: Tensor | Images | Resized) -> tuple[Tensor, Tensor]:
    """Mean and (population) standard deviation of each channel, float32, over up to 4096 samples.

    inputs: (N, C, ...), of which evenly spaced samples are taken. Blocks are merged as by Chan, Golub and
    LeVeque (1983), so that a large mean costs no digits.
    """
    samples, channels = inputs.shape[0], inputs.shape[1]
    chosen = torch.arange(min(samples, _STATISTICS_SAMPLES)) * samples // min(samples, _STATISTICS_SAMPLES)
    mean = torch.zeros(channels, dtype=torch.float64)
    squares = torch.zeros(channels, dtype=torch.float64)  # sum of squared distances from the mean
    count = 0
    for first in range(0, len(chosen), _STATISTICS_BLOCK):
        raw = inputs[chosen[first : first + _STATISTICS_BLOCK]]
        block = to_unit(raw).double().transpose(0, 1).flatten(1)  # (C, values)
        size = block.shape[1]
        block_var, block_mean = torch.var_mean(block, dim=1, correction=0)
        shift = block_mean - mean
        squares += block_var * size + shift**2 * (count * size / (count + size))
        mean += shift * (size / (count + size))
        count += size
    std = (squares / count).sqrt()
    # A channel that varies in its last bit only is constant too: dividing by that would amplify rounding.
    constant = std <= torch.finfo(torch.float32).eps * mean.abs()
    return mean.float(), std.masked_fill(constant, 1.0).float()


def content_fingerprint(*splits: Split) -> str:
    """sha256 over type, shape and bytes of the inputs, which must be in memory, and targets of `splits`."""
    digest = hashlib.sha256()
    for split in splits:
        for tensor in split:
            assert isinstance(tensor, Tensor), "images on disk are fingerprinted by path and size"
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
