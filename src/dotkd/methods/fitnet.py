"""FitNets, hints for thin deep nets (Romero et al. 2015, arXiv 1412.6550)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.batch_norm import BatchNorm
from dotkd.methods.card import Card
from dotkd.methods.pairing import Shape, lifted, paired, same_size


class FitNet(nn.Module):
    """Mean squared difference between one map of the teacher, the hint, and what is regressed to it from the student's.

        loss = mean((F_T - r(F_S))^2)

    r is trained with the student: a convolution that brings F_S to the channels and the size of F_T, batch
    normalisation and ReLU. Its kernel is 1 pixel for equal sizes; 3, stride 2, where the student has twice the size; 4,
    stride 2, transposed, where it has half. For any other sizes both maps are pooled to the smaller height and width
    before a kernel of 1 pixel.

    Deviations: equation 3 takes half the squared 2-norm and is a stage of its own, trained before the distillation of
    logits. All results published since train it together with the task, with the mean, batch normalisation and a
    weight of 100; that is what is done here. The paper brings F_S to size by an unpadded convolution, whose kernel
    would be 50 pixels for maps of 56 and 7; pooling takes its place. A batch that leaves one value a channel has no
    variance: it is normalised by the running estimates.

    Args:
        hint: which pair of maps, 0 the shallowest; None: the middle one, the shallower of two.
        rectified: whether r ends in ReLU, as the hint does; False for hints that take negative values.

    Raises:
        ValueError: `hint` is the index of no pair.
    """

    card = Card(
        title="FitNet",
        paper="Romero et al. 2015, arXiv 1412.6550, equation 3",
        equation="mean((F_T - r(F_S))^2), r a trained regressor",
        distill_weight=100.0,
        needs=("features",),
    )

    def __init__(self, student: Anatomy, teacher: Anatomy, *, hint: int | None = None, rectified: bool = True) -> None:
        super().__init__()
        pairs = paired(student.features, teacher.features)
        if hint is None:
            hint = (len(pairs) - 1) // 2
        if not 0 <= hint < len(pairs):
            raise ValueError(f"expected `hint` in [0, {len(pairs)}), the number of pairs of feature maps, got {hint}")
        self.hint = hint
        self.regressor = _Regressor(*pairs[hint], rectified=rectified)

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Return the loss, shape ()."""
        source, wanted = (lifted(maps) for maps in paired(student.features, teacher.features)[self.hint])
        if self.regressor.is_pooled:
            source, wanted = same_size(source, wanted)
        # Sizes other than those of the anatomy may be rounded differently on their way through the two models.
        regressed, wanted = same_size(lifted(self.regressor(source)), wanted)
        return F.mse_loss(regressed, wanted)


class _Regressor(nn.Module):
    """r. `is_pooled`: it keeps the size of what it is given, which is to be pooled before."""

    def __init__(self, student: Shape, teacher: Shape, *, rectified: bool) -> None:
        super().__init__()
        ratios = [(s / t) for s, t in zip(student[1:], teacher[1:], strict=True)]
        self.is_pooled = not (set(ratios) <= {1.0, 2.0} or set(ratios) <= {1.0, 0.5})
        kernels, strides, pads = (
            [(1, 1), (1, 1), (0, 0)]
            if self.is_pooled
            else zip(*({1.0: (1, 1, 0), 2.0: (3, 2, 1), 0.5: (4, 2, 1)}[ratio] for ratio in ratios), strict=True)
        )
        layer = nn.ConvTranspose2d if 0.5 in ratios and not self.is_pooled else nn.Conv2d
        # The normalisation brings its own shift, which makes the convolution's redundant.
        self.conv = layer(student[0], teacher[0], kernels, strides, pads, bias=False)
        self.norm = BatchNorm(teacher[0])
        self.rectified = rectified

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.norm(self.conv(maps))
        return maps.relu() if self.rectified else maps
