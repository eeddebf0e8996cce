"""Which feature map of the student learns from which of the teacher, and how two maps are brought to one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")
Shape = tuple[int, int, int]


def paired(student: Sequence[T], teacher: Sequence[T]) -> list[tuple[T, T]]:
    """The deepest with the deepest, and so on towards the input; what the longer sequence has more is left out."""
    count = min(len(student), len(teacher))
    return list(zip(student[len(student) - count :], teacher[len(teacher) - count :], strict=True))


def refuse_one_place(student: Sequence[Shape], teacher: Sequence[Shape], method: str) -> None:
    """Raise ValueError where all pairs of (C, H, W) are compared at one pixel, for methods that compare pixels."""
    sizes = [(min(s[1], t[1]), min(s[2], t[2])) for s, t in paired(student, teacher)]
    if all(size == (1, 1) for size in sizes):
        raise ValueError(
            f"expected feature maps of more than one pixel, for {method} compares where in the picture they are "
            f"active, got {len(sizes)} of one pixel"
        )


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both (N, C, H, W) at the smaller height and the smaller width of the two, by average pooling."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return _pooled(student, size), _pooled(teacher, size)


def lifted(values: Tensor) -> Tensor:
    """Half precision as float32, for squares and exponentials that half precision cannot hold; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)
