"""The augmentations by name: each draws numbers on the CPU and applies them to a whole batch where it lies.

    crop-flip          4 black pixels on every side, a crop of the old size, mirrored or not: CIFAR (He et al., arXiv
                       1512.03385, section 4.2)
    rotate-flip        turned by U(-20, 20) degrees, mirrored or not: Tiny-ImageNet, as DOT's published code trains it
    resized-crop-flip  a random box enlarged, mirrored or not: ImageNet, see `dotkd.data.crops`

Half of the images are mirrored. What is drawn is a function of (seed, epoch, batch) alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dotkd.data import affine
from dotkd.data.crops import NUMBERS, crop_boxes, crop_resize, mirror
from dotkd.data.draws import VIEWS as WEAK
from dotkd.data.draws import generator
from dotkd.data.transfer import to_device

Augment = Literal["none", "crop-flip", "rotate-flip", "resized-crop-flip"]

PADDING = 4  # pixels on every side
_OFFSETS = 2 * PADDING + 1
VIEWS = _OFFSETS * _OFFSETS * 2  # distinct crops of an image, mirrored or not
DEGREES = 20.0


class Augmentation(NamedTuple):
    """draw(count, seed=, epoch=, batch=, purpose=) gives numbers for `apply(inputs, numbers)`.

    The numbers are on the CPU, wherever the inputs (B, C, H, W) are: (count, `numbers`) float64, uniform in [0, 1);
    or, where an image has so many distinct `views`, (count,) int64, uniform in [0, `views`).
    """

    draw: Callable[..., Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]
    numbers: int
    views: int | None = None

    def of(self, uniform: Tensor) -> Tensor:
        """The numbers for `apply` out of (count, `numbers`) float64, uniform in [0, 1)."""
        return uniform if self.views is None else (uniform[:, 0] * self.views).long()


def draw_views(count: int, *, seed: int, epoch: int, batch: int, purpose: int = WEAK) -> Tensor:
    """(count,) int64 in [0, VIEWS): the view of each image in that batch. purpose: as of `dotkd.data.draws`."""
    return torch.randint(VIEWS, (count,), generator=generator(seed, purpose, epoch, batch))


def crop_flip(inputs: Tensor, views: Tensor) -> Tensor:
    """The images (B, C, H, W) padded with 4 zeros all round, cropped to (H, W) and mirrored or not.

    views: (B,) int64, (mirrored * 9 + row) * 9 + column; row, column: the crop's corner in the padded image.
    """
    count, channels, height, width = inputs.shape
    padded = F.pad(inputs, [PADDING] * 4)
    rows, columns = padded.shape[2:]
    both = torch.stack([padded, padded.flip(3)], dim=1)  # (B, 2, C, H + 8, W + 8)
    # Every crop of either is a view that starts somewhere in this memory: one copy, from where it starts, is all.
    mirrored, row, column = views // (_OFFSETS * _OFFSETS), views // _OFFSETS % _OFFSETS, views % _OFFSETS
    column = torch.where(mirrored == 1, 2 * PADDING - column, column)  # counted from the right
    starts = ((2 * torch.arange(count) + mirrored) * channels * rows + row) * columns + column
    extent = (channels - 1) * rows * columns + (height - 1) * columns + width
    crops = both.as_strided((both.numel() - extent + 1, channels, height, width), (1, rows * columns, columns, 1))
    return crops.index_select(0, to_device(starts, inputs.device))


def draw_rotations(count: int, *, seed: int, epoch: int, batch: int, purpose: int = WEAK) -> Tensor:
    """(count, 2) float64 in [0, 1): the angle, and below 1/2 where the image is mirrored."""
    return torch.rand(count, 2, dtype=torch.float64, generator=generator(seed, purpose, epoch, batch))


def rotate_flip(inputs: Tensor, draws: Tensor) -> Tensor:
    """The images (B, C, H, W) turned by (2 draw - 1) 20 degrees about their middle, then mirrored or not.

    draws: (B, 2) as of `draw_rotations`.
    """
    degrees = ((2 * draws[:, 0] - 1) * DEGREES).float()
    matrices = to_device(affine.rotations(degrees, inputs.shape[2], inputs.shape[3]), inputs.device)
    return mirror_as_drawn(affine.transform(inputs, matrices), draws)


def draw_crops(count: int, *, seed: int, epoch: int, batch: int, purpose: int = WEAK) -> Tensor:
    """(count, NUMBERS) float64 in [0, 1): what `dotkd.data.crops` makes a box of, and mirrored below 1/2."""
    return torch.rand(count, NUMBERS, dtype=torch.float64, generator=generator(seed, purpose, epoch, batch))


def resized_crop_flip(inputs: Tensor, draws: Tensor) -> Tensor:
    """A box of each image (B, C, H, W), enlarged to (H, W) and mirrored or not. draws: as of `draw_crops`."""
    return mirror_as_drawn(crop_resize(inputs, crop_boxes(draws, inputs.shape[2], inputs.shape[3])), draws)


def mirror_as_drawn(inputs: Tensor, draws: Tensor) -> Tensor:
    """The images (B, C, H, W), mirrored where the last number of `draws` (B, ...) is below 1/2."""
    return mirror(inputs, draws[:, -1] < 0.5)


AUGMENTATIONS: dict[str, Augmentation] = {
    "crop-flip": Augmentation(draw_views, crop_flip, 1, VIEWS),
    "rotate-flip": Augmentation(draw_rotations, rotate_flip, 2),
    "resized-crop-flip": Augmentation(draw_crops, resized_crop_flip, NUMBERS),
}
