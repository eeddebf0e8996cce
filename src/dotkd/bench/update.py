"""What DOT's update costs by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dotkd.bench.measure import Measure, compared, ratio
from dotkd.bench.published import PublishedUpdate
from dotkd.bench.rounds import Conditions, timed_in_turns
from dotkd.bench.student_step import CLASSES, DELTA, LR, MOMENTUM, WEIGHT_DECAY
from dotkd.optim import DOT

_UPDATES_A_ROUND = 20  # one update alone lasts milliseconds


def optimizer_step(conditions: Conditions) -> Measure:
    """The time of `DOT.step` alone over the published update (`dotkd.bench.published`), on 161 small tensors."""
    shapes = resnet50_shapes(shrink=16)
    with conditions.held():
        draws = [[torch.randn(shape).to(conditions.device) for shape in shapes] for _ in range(4)]
        (mine, theirs), grads = draws[:2], {"task": draws[2], "distill": draws[3]}
        optimizer = DOT(mine, lr=LR, momentum=MOMENTUM, delta=DELTA, weight_decay=WEIGHT_DECAY)
        for p in mine:
            p.requires_grad_()
        optimizer.backward(**linear_losses(mine, grads))
        published = PublishedUpdate(theirs, lr=LR, momentum=MOMENTUM, delta=DELTA, weight_decay=WEIGHT_DECAY)
        ours, other = timed_in_turns(
            [optimizer.step, lambda: published.step(grads["task"], grads["distill"])],
            conditions,
            repeats=_UPDATES_A_ROUND,
        )
    return compared(
        ours,
        other,
        unit="seconds",
        what=f"DOT.step / the published update, transcribed; the {len(shapes)} parameters of a ResNet-50 with a "
        f"sixteenth of its channels, {sum(p.numel() for p in mine):,} numbers",
        goal=0.45,
        official=ratio(other, other),
    )


def resnet50_shapes(*, shrink: int) -> list[tuple[int, ...]]:
    """The shapes of ResNet-50's 161 parameters (He et al., arXiv 1512.03385, table 1), channels divided by `shrink`.

    With the normalisation's scale and shift after each convolution, a projection shortcut in the first block of each
    stage, and 100 classes.
    """
    shapes: list[tuple[int, ...]] = []

    def convolution(channels: int, out: int, kernel: int) -> int:
        shapes.extend([(out, channels, kernel, kernel), (out,), (out,)])
        return out

    channels = convolution(3, 64 // shrink, 7)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 // shrink * 2**stage
        for block in range(blocks):
            convolution(channels, inner, 1)
            convolution(inner, inner, 3)
            convolution(inner, 4 * inner, 1)
            if block == 0:
                convolution(channels, 4 * inner, 1)
            channels = 4 * inner
    return [*shapes, (CLASSES, channels), (CLASSES,)]


def linear_losses(params: Sequence[Tensor], grads: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """One scalar per stream whose gradients at `params` are those given."""
    return {
        stream: torch.stack([(p * grad).sum() for p, grad in zip(params, of_stream, strict=True)]).sum()
        for stream, of_stream in grads.items()
    }
