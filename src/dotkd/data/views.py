"""What a training batch shows, drawn before a pixel is read: which samples, and which view of each.

A view has a number. Sample and number together settle the inputs, so that what a teacher says of a view can be kept:

    no augmentation            0
    crop-flip                  one of 162, see `dotkd.data.augment`
    `limit` views a sample     one of 0..limit-1; what is drawn for view v of sample i is a function of (i, v) alone
    anything else              the epoch; then seed and batch size settle the inputs too
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from dotkd.data import draws
from dotkd.data.arguments import check_name, check_number, check_whole
from dotkd.data.augment import AUGMENTATIONS, Augment
from dotkd.data.mixing import Mix, Mixture, draw_mixture
from dotkd.data.randaugment import Draws, draw_operations


class Shown(NamedTuple):
    """What is drawn for a batch, all on the CPU.

    rows: (R,) int64, positions in the split; the first `size` are the batch, what follows is only mixed into it.
    view: (size,) int64, the numbers of the views. numbers: what the augmentation draws, (R, ...), for the view and,
    where it is asked for, the strong one; empty without augmentation.
    """

    rows: Tensor
    size: int
    view: Tensor
    numbers: list[Tensor]
    operations: Draws | None
    mixture: Mixture | None


@dataclass(frozen=True)
class Views:
    """How samples are shown in training.

    limit: how many views of a sample there are; None: as many as the augmentation makes. only: the number of the one
    view that is shown of every sample; None: it is drawn. Raises ValueError or TypeError for values that do not fit.
    """

    augment: Augment = "none"
    mix: Mix = "none"
    mix_alpha: float = 1.0
    strong: bool = False
    limit: int | None = None
    seed: int = 0
    only: int | None = None

    def __post_init__(self) -> None:
        check_name("augment", self.augment, get_args(Augment))
        check_name("mix", self.mix, get_args(Mix))
        check_number("mix_alpha", self.mix_alpha)
        if not 0 < self.mix_alpha < math.inf:
            raise ValueError(f"expected `mix_alpha` above 0, got {self.mix_alpha}")
        check_whole("seed", self.seed, least=0)
        if self.limit is not None:
            check_whole("views", self.limit, least=1)
            if self.augment == "none" or self.mix != "none" or self.strong:
                given = f"augment '{self.augment}', mix '{self.mix}'" + (" and a second view" if self.strong else "")
                raise ValueError(f"`views` is for an augmentation alone, without mixing: got {self.limit} with {given}")
        if self.only is not None:
            check_whole("view", self.only, least=0)
            if self.count is None or self.only >= self.count:
                counted = f"0..{self.count - 1}" if self.count else "none, where each epoch has its own"
                raise ValueError(f"expected `view` in {counted}, got {self.only}")

    @property
    def count(self) -> int | None:
        """How many views of a sample there are in all; None where every epoch has its own."""
        if self.mix != "none" or self.strong:
            return None
        if self.augment == "none":
            return 1
        return self.limit or AUGMENTATIONS[self.augment].views

    def draw(self, index: Tensor, shape: tuple[int, ...], *, epoch: int, batch: int, part: tuple[int, int]) -> Shown:
        """What that batch shows.

        index: (B,) int64, the whole batch. shape: of a sample. part: (k, n), the k-th of n equal parts is drawn: the
        parts together are what one alone would be.
        """
        key = {"seed": self.seed, "epoch": epoch, "batch": batch}
        size = len(index) // part[1]
        rows = torch.arange(part[0] * size, (part[0] + 1) * size)
        mixture = None
        if self.mix != "none":
            mixture = draw_mixture(self.mix, len(index), shape, alpha=self.mix_alpha, **key)
            if part[1] > 1:
                rows = torch.cat([rows, mixture.partner[rows]])
                mixture = mixture._replace(partner=torch.arange(size, 2 * size))
        view = torch.full((size,), 0 if self.count == 1 else epoch)
        numbers: list[Tensor] = []
        if augmentation := AUGMENTATIONS.get(self.augment):
            for purpose in (draws.VIEWS, draws.STRONG_VIEWS)[: 1 + self.strong]:
                numbers.append(augmentation.draw(len(index), **key, purpose=purpose)[rows])
            if self.limit:
                source = draws.generator(self.seed, draws.CHOICE, epoch, batch)
                view = torch.randint(self.limit, (len(index),), generator=source)[rows]
            elif self.count:
                view = numbers[0]
            if self.only is not None:
                view = torch.full_like(view, self.only)
            if self.limit:
                numbers = [augmentation.of(draws.numbers_of_views(index[rows], view, augmentation.numbers))]
            elif self.count:
                numbers = [view]
        operations = None
        if self.strong:
            drawn = draw_operations(len(index), **key)
            operations = Draws(drawn.choice[:, rows], drawn.strength[:, rows], drawn.square[rows])
        return Shown(index[rows], size, view, numbers, operations, mixture)
