"""The data path of the published implementation, kept as it works there, to be measured against.

Each image is a picture of Pillow's, one at a time and in worker processes: black pixels all round, a random crop of
the old size, mirrored or not, then a tensor of its own in [0, 1], normalised channel by channel; the tensors of a batch
are stacked. These are the steps of torchvision's RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor and
Normalize, written from their description, so that torchvision is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.data
from PIL import Image, ImageOps
from torch import Tensor

from dotkd.data import Dataset

_PADDING = 4
WORKERS = 2  # as published


class PublishedPictures(torch.utils.data.Dataset[tuple[Tensor, int, int]]):
    """The training split of a data set in memory: image (C, H, W), label and position, drawn anew at each look."""

    def __init__(self, dataset: Dataset) -> None:
        if not isinstance(dataset.train.inputs, Tensor):
            raise TypeError(f"expected images in memory, {dataset.name} decodes them on demand")
        self._images: npt.NDArray[np.uint8] = dataset.train.inputs.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels: list[int] = dataset.train.targets.tolist()
        self._mean, self._std = dataset.mean.tolist(), dataset.std.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        picture = _flipped(_cropped(Image.fromarray(self._images[position])))
        return _normalised(_as_tensor(picture), self._mean, self._std), self._labels[position], position


def published_batches(
    dataset: Dataset, *, batch_size: int, device: torch.device, workers: int = WORKERS
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images, labels and positions on the device, epoch after epoch, without an end."""
    loader = torch.utils.data.DataLoader(
        PublishedPictures(dataset),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        # A fork of a process that has used a GPU, or has threads, does not work reliably.
        multiprocessing_context="spawn" if workers else None,
    )
    while True:
        for images, labels, positions in loader:
            yield tuple(part.to(device, non_blocking=True) for part in (images.float(), labels, positions))


def _cropped(picture: Image.Image) -> Image.Image:
    wide, high = picture.size
    padded = ImageOps.expand(picture, border=_PADDING, fill=0)
    top = int(torch.randint(0, padded.height - high + 1, (1,)).item())
    left = int(torch.randint(0, padded.width - wide + 1, (1,)).item())
    return padded.crop((left, top, left + wide, top + high))


def _flipped(picture: Image.Image) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if bool(torch.rand(1) < 0.5) else picture


def _as_tensor(picture: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(picture, np.uint8, copy=True))
    return pixels.permute((2, 0, 1)).contiguous().to(torch.float32).div(255)


def _normalised(image: Tensor, mean: list[float], std: list[float]) -> Tensor:
    means, deviations = (torch.tensor(values, dtype=image.dtype).view(-1, 1, 1) for values in (mean, std))
    return image.clone().sub_(means).div_(deviations)
