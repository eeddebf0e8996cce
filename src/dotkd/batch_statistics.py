"""Running statistics of normalisation layers, which a forward pass moves before anybody knows that it went wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class BatchStatistics:
    """Puts back what a skipped step did to the running means and variances of a model.

    One activation that is not finite would otherwise stay in them for good: training goes on by the statistics of each
    batch, and every evaluation is lost.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [module for module in model.modules() if isinstance(module, _NormBase)]
        self._now = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
        self._before = [buffer.clone() for buffer in self._now]

    @torch.no_grad()
    def remember(self) -> None:
        """Before the forward passes of a step."""
        if self._now:
            torch._foreach_copy_(self._before, self._now)

    @torch.no_grad()
    def put_back_if(self, skipped: Tensor) -> None:
        """After the step; ``skipped``, shape (), true where it was skipped. Decided on the device."""
        if self._now:
            chosen = [torch.where(skipped, b, n) for b, n in zip(self._before, self._now, strict=True)]
            torch._foreach_copy_(self._now, chosen)
