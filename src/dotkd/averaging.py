"""The moving average of a model."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """Weights and buffers w of a model, averaged as m <- ``decay`` m + (1 - ``decay``) w; m starts as the first w.

    torch's own class with torch's own arithmetic, but for one thing: that one copies its counter to the device in every
    step, for which the host waits.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self._decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights and buffers of ``model``."""
        ours = [t.detach() for t in chain(self.module.parameters(), self.module.buffers())]
        theirs = [t.detach() for t in chain(model.parameters(), model.buffers())]
        if self.n_averaged == 0:  # on the CPU, wherever the model is
            torch._foreach_copy_(ours, theirs)
        else:
            real = [place for place, t in enumerate(ours) if t.is_floating_point()]
            torch._foreach_lerp_([ours[k] for k in real], [theirs[k] for k in real], 1 - self._decay)
            for t, other in zip(ours, theirs, strict=True):
                if not t.is_floating_point():
                    t.copy_(t * self._decay + other * (1 - self._decay))
        self.n_averaged += 1
