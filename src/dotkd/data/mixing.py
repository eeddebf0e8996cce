"""Mixing every sample with another of its batch, targets included.

MixUp (Zhang et al., arXiv 1710.09412, section 2):  x = l x_i + (1 - l) x_j,  y = l y_i + (1 - l) y_j.
CutMix (Yun et al., arXiv 1905.04899, equation 1 and section 3.1): x is x_i outside of a box and x_j inside of it, and
y = l y_i + (1 - l) y_j with l the share of pixels that stay. The box covers sqrt(1 - l') of either side, its middle
is drawn uniformly from all pixels, and what juts out is cut off; l then is what is left, counted in pixels.

l (MixUp) and l' (CutMix) ~ Beta(`alpha`, `alpha`), one a batch; j is a permutation of the batch, in which a sample may
meet itself. Both papers' code does so.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dotkd.data import draws
from dotkd.data.transfer import to_device

Mix = Literal["none", "mixup", "cutmix"]


class Mixture(NamedTuple):
    """share: l, of the sample itself, in [0, 1]. partner: (B,) int64 on the CPU, positions in what is mixed. box: top,
    bottom, left and right edge in pixels of what comes from the partner; None for MixUp."""

    share: float
    partner: Tensor
    box: tuple[int, int, int, int] | None


def draw_mixture(
    mix: Mix, count: int, shape: tuple[int, ...], *, alpha: float, seed: int, epoch: int, batch: int
) -> Mixture:
    """How that batch of `count` samples is mixed. shape: of a sample; (C, H, W) for CutMix."""
    generator = draws.legacy_generator(seed, draws.MIX, epoch, batch)
    share = float(generator.beta(alpha, alpha))
    # A tiny alpha underflows to 0/0; the limit of the distribution is a fair coin.
    share = share if math.isfinite(share) else float(generator.randint(2))
    partner = torch.as_tensor(generator.permutation(count).astype(np.int64))
    if mix != "cutmix":
        return Mixture(share, partner, None)
    edges: list[int] = []
    for size in shape[1:]:
        length, middle = int(size * math.sqrt(1 - share)), int(generator.randint(size))
        edges += [max(0, middle - length // 2), min(size, middle - length // 2 + length)]
    top, bottom, left, right = edges
    kept = 1 - (bottom - top) * (right - left) / (shape[1] * shape[2])
    return Mixture(kept, partner, (top, bottom, left, right))


def mix_inputs(inputs: Tensor, mixture: Mixture) -> Tensor:
    """The B samples first in `inputs` (B or more, ...), mixed with their partners in it; `inputs` stay as they are."""
    partner = to_device(mixture.partner, inputs.device)
    own = inputs[: len(partner)]
    if mixture.box is None:
        return inputs.index_select(0, partner).lerp_(own, mixture.share)
    top, bottom, left, right = mixture.box
    mixed = own.clone()
    mixed[:, :, top:bottom, left:right] = inputs[:, :, top:bottom, left:right].index_select(0, partner)
    return mixed


def mix_targets(targets: Tensor, mixture: Mixture, *, num_classes: int) -> Tensor:
    """(B, num_classes) float32 probabilities. targets: (B or more,) int64, as the inputs of `mix_inputs`."""
    each = torch.zeros(len(targets), num_classes, device=targets.device).scatter_(1, targets.unsqueeze(1), 1.0)
    partner = to_device(mixture.partner, targets.device)
    return mixture.share * each[: len(partner)] + (1 - mixture.share) * each[partner]
