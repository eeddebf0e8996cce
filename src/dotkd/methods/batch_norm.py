"""Batch normalisation that survives the last batch of an epoch, which may hold one sample."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, but a batch with one value a channel is normalised by the running statistics.

    One value has no variance, and torch refuses it. The running statistics stay as they are then.
    """

    def forward(self, input: Tensor) -> Tensor:  # named as in torch
        """Map (N, C, H, W) to (N, C, H, W)."""
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)
