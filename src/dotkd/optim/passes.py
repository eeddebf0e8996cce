"""Backward passes: one of a loss, and one of a sum that becomes one of each of its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Fill = Callable[[Mapping[str, Tensor], "Tensor | None"], None]  # losses by stream, and the gradient of their sum


class Join(torch.autograd.Function):
    """The sum of the losses; its backward fills the streams.

    The losses travel inside a mapping, out of autograd's sight: were they inputs, the engine would walk on into graphs
    that the streams' own backward passes have just freed. ``anchor`` only makes the result require grad.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, fill: Fill, losses: Mapping[str, Tensor]) -> Tensor:
        """The sum of ``losses``, shape (); ``fill`` is called with them in the backward pass."""
        ctx.fill, ctx.losses = fill, losses
        wide = [loss.detach().to(torch.promote_types(loss.dtype, torch.float32)) for loss in losses.values()]
        return torch.stack(wide).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Call ``fill``; the anchor gets nothing."""
        # The incoming gradient carries whatever the caller multiplied the joined loss by (a loss scale, 1 / steps).
        ctx.fill(ctx.losses, grad_outputs[0])
        return None, None, None


def backward_pass(loss: Tensor, scale: Tensor | None, *, last: bool) -> None:
    """An ordinary backward pass, the gradient of ``loss`` being ``scale``; only the last one frees the graph.

    Raises RuntimeError where a compiled graph serves one pass only.
    """
    try:
        torch.autograd.backward(loss, None if scale is None else scale.to(loss.dtype), retain_graph=not last)
    except RuntimeError as error:
        if "donated buffer" in str(error):
            raise RuntimeError(
                "the model was compiled and run before this optimizer existed, so its graph serves one backward "
                "pass only: build the optimizer first, or call torch._dynamo.reset() and compile again"
            ) from error
        raise
