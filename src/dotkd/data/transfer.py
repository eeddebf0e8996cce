"""From the host to a device without a wait."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, for kernels that are launched after this.

    A copy to a GPU is queued: only from pinned memory does neither side wait for the other. Torch keeps freed pinned
    blocks, and hands one out again when the copies out of it are done.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)
