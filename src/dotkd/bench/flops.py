"""Floating-point operations, counted by torch on tensors without content."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Flops(NamedTuple):
    """Of one pass each: two for every multiplication and addition of convolutions and matrix products."""

    forward: int
    backward: int

    @property
    def plain_step(self) -> int:
        """Of a step with one backward pass."""
        return self.forward + self.backward

    @property
    def exact_step(self) -> int:
        """Of a step with two backward passes."""
        return self.forward + 2 * self.backward


def flops(model: nn.Module, shape: tuple[int, ...]) -> Flops:
    """Of a batch of inputs of `shape` (N, ...); the model, which gives logits (N, C), is left as it is.

    The backward pass is a little under two forward passes: nobody asks for the gradient of the inputs.
    """
    weights = {
        name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad and isinstance(tensor, nn.Parameter))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    inputs = torch.empty(shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        logits: Tensor = torch.func.functional_call(model, weights, (inputs,))
        forward = counter.get_total_flops()
        if logits.requires_grad:
            logits.sum().backward()
    return Flops(forward, counter.get_total_flops() - forward)
