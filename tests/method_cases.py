"""What tests of feature methods share: activations and anatomies made by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dotkd.methods.activations import Activations, Anatomy


def activations(
    *shapes: tuple[int, int, int],
    batch: int = 4,
    classes: int = 5,
    embedding: int = 6,
    seed: int = 0,
    dtype=torch.float64,
) -> Activations:
    """Random activations with these (C, H, W) features; the features are the rectified preactivations."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    before = tuple(draw(batch, *shape) for shape in shapes)
    return Activations(draw(batch, classes), tuple(b.relu() for b in before), before, draw(batch, embedding))


def anatomy(given: Activations, classifier: nn.Linear | None = None) -> Anatomy:
    """The anatomy that belongs to `activations`."""

    def shapes(maps: tuple[Tensor, ...]) -> tuple[tuple[int, int, int], ...]:
        return tuple((m.shape[1], m.shape[2], m.shape[3]) for m in maps)

    return Anatomy(
        given.logits.shape[-1],
        shapes(given.features),
        shapes(given.preactivations),
        given.embedding.shape[-1],
        classifier,
    )


def requiring_grad(given: Activations) -> Activations:
    """The same with every tensor a leaf that requires grad."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_()

    return Activations(
        leaf(given.logits),
        tuple(leaf(f) for f in given.features),
        tuple(leaf(p) for p in given.preactivations),
        leaf(given.embedding),
    )
