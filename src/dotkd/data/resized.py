"""Images in memory, brought to another size batch by batch: larger ones need not fit."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


class Resized:
    """uint8 square images as if a tensor of `shape` (N, C, image_size, image_size); bilinear, antialiased."""

    def __init__(self, images: Tensor, *, image_size: int) -> None:
        """images: (N, C, H, H) uint8, kept as they are."""
        self._images, self._image_size = images, image_size
        self.shape: tuple[int, int, int, int] = (len(images), images.shape[1], image_size, image_size)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Tensor) -> Tensor:
        """index: (B,) int64. uint8 (B, C, image_size, image_size)."""
        chosen = self._images.index_select(0, index).float()
        size = (self._image_size, self._image_size)
        larger = F.interpolate(chosen, size, mode="bilinear", align_corners=False, antialias=True)
        return larger.round_().to(torch.uint8)

    def pending(self, index: Tensor, *, pinned: bool = False) -> tuple[Tensor, list[Callable[[], None]]]:
        """As of `dotkd.data.images.Images`: an empty batch (1, B, C, image_size, image_size), and what fills it."""
        batch = torch.empty((1, len(index), *self.shape[1:]), dtype=torch.uint8, pin_memory=pinned)

        def fill() -> None:
            batch[0] = self[index]

        return batch, [fill]
