"""How the elements of a tensor lie in memory, which kernels that walk memory and not indices depend on."""

from __future__ import annotations

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one piece of memory."""
    return tensor.is_contiguous() or torch.empty_like(tensor).stride() == tensor.stride()


def laid_out_as(dense: Tensor, tensor: Tensor) -> Tensor:
    """A copy of ``tensor`` with the strides of ``dense``, which has its shape."""
    return torch.empty_like(dense).copy_(tensor)
