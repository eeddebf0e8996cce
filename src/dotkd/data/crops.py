"""Random resized crops: a box of random area and shape, enlarged to the size of the input (Szegedy et al., arXiv
1409.4842, section 6; the rule is that of torchvision's `RandomResizedCrop`).

For an image of height H and width W, up to ten times: draw the area a ~ U(0.08, 1) as a share of H W and the aspect
ratio r with log r ~ U(log 3/4, log 4/3); the box is w = round(sqrt(H W a r)) wide and h = round(sqrt(H W a / r))
high. The first that fits, 0 < w <= W and 0 < h <= H, is put at a place drawn uniformly from all whole ones. Where
none fits, it is the largest central box whose ratio is within the bounds.

All numbers of a sample are drawn first, in [0, 1) and whatever its size, so that a box can be made when the size of
its image is known: at decoding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dotkd.data.transfer import to_device

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
TRIES = 10
NUMBERS = 2 * TRIES + 3  # areas, aspect ratios, top, left, mirrored or not


def crop_boxes(draws: Tensor, height: Any, width: Any) -> npt.NDArray[np.int64]:
    """(B, 4): top, left, height and width in pixels of the box of each image.

    draws: (B, NUMBERS) float64 in [0, 1). height, width: of the images, an integer or (B,) each.
    """
    numbers = draws.numpy()
    count = len(numbers)
    high = np.broadcast_to(np.asarray(height, np.int64), (count,))
    wide = np.broadcast_to(np.asarray(width, np.int64), (count,))
    area = (high * wide)[:, None] * (AREA[0] + (AREA[1] - AREA[0]) * numbers[:, :TRIES])
    low, up = (math.log(ratio) for ratio in ASPECT)
    aspect = np.exp(low + (up - low) * numbers[:, TRIES : 2 * TRIES])
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (widths > 0) & (widths <= wide[:, None]) & (heights > 0) & (heights <= high[:, None])
    first = fits.argmax(axis=1)
    rows = np.arange(count)
    found = fits.any(axis=1)
    shape = wide / high
    # Where none fits: the whole image, or what is left of its longer side at the bound that it exceeds.
    w = np.where(found, widths[rows, first], np.where(shape > ASPECT[1], np.rint(high * ASPECT[1]), wide))
    h = np.where(found, heights[rows, first], np.where(shape < ASPECT[0], np.rint(wide / ASPECT[0]), high))
    w, h = w.astype(np.int64), h.astype(np.int64)
    top = np.where(found, np.floor(numbers[:, -3] * (high - h + 1)), (high - h) // 2)
    left = np.where(found, np.floor(numbers[:, -2] * (wide - w + 1)), (wide - w) // 2)
    return np.stack([top.astype(np.int64), left.astype(np.int64), h, w], axis=1)


def crop_resize(inputs: Tensor, boxes: npt.NDArray[np.int64]) -> Tensor:
    """Each image's box, enlarged to the size of the images by bilinear interpolation within the box.

    inputs: (B, C, H, W), uint8 or float32. boxes: (B, 4) as of `crop_boxes`. Nothing outside a box is looked at, as if
    it had been cut out first.
    """
    height, width = inputs.shape[2:]
    edges = to_device(torch.as_tensor(boxes).float(), inputs.device)
    top, left, high, wide = edges.unsqueeze(2).unbind(1)  # (B, 1) each
    grid = torch.empty(len(inputs), height, width, 2, device=inputs.device)
    grid[..., 0] = _positions(left, wide, width).mul_(2).add_(1).div_(width).sub_(1).unsqueeze(1)
    grid[..., 1] = _positions(top, high, height).mul_(2).add_(1).div_(height).sub_(1).unsqueeze(2)
    out = F.grid_sample(inputs.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out.round_().to(torch.uint8) if inputs.dtype == torch.uint8 else out


def mirror(inputs: Tensor, mirrored: Tensor) -> Tensor:
    """The images (B, C, H, W), those of `mirrored` from right to left. mirrored: (B,) bool on the CPU."""
    # Whole images are copied: on a CPU several times faster than choosing pixel by pixel.
    chosen = torch.arange(len(inputs)) + len(inputs) * mirrored
    return torch.cat([inputs, inputs.flip(3)]).index_select(0, to_device(chosen, inputs.device))


def _positions(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(B, size): where in the image the `size` pixels that a box becomes are sampled; centres are whole numbers."""
    steps = torch.arange(size, device=start.device).add(0.5).div_(size)
    inside = torch.minimum((steps * length - 0.5).clamp(min=0), length - 1)
    return start + inside
