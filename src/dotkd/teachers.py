"""Teachers that are more than one plain model: one trained on other pictures or more classes, and several at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.methods.activations import logits_of
from dotkd.models.arguments import check_whole


class AdaptedTeacher(nn.Module):
    """A teacher that is fed the student's batches and answers in the student's classes.

    A value x of channel c that the student sees stands for x data_std_c + data_mean_c; the teacher is given

        (x data_std_c + data_mean_c - mean_c) / std_c

    at its own size, and its logits z are reduced to those of the student. A student class that stands for the teacher's
    classes G has the logit log sum_{k in G} exp z_k: the softmax, at temperature 1, adds up their probabilities. What
    is not asked for is skipped, and changes no bit.

    Args:
        model: the teacher; it returns logits, a tuple that starts with them, or an object with ``.logits``.
        image_size: side in pixels that pictures (N, C, H, W) are brought to, by bilinear interpolation with antialias,
            both sides alike; None: as they come.
        mean, std: what the teacher's training pictures were normalised by: one value a channel, or one for all; None:
            by what the student's are.
        data_mean, data_std: likewise, of the student's; needed where `mean` and `std` are given.
        classes: for each class of the student the teacher's, or several whose probabilities are added up; None: all, in
            their order. Two classes of the student may share one, which the teacher does not tell apart then.
        num_classes: of the teacher, where known, for `classes` to be checked at once instead of at the first batch.

    Raises:
        TypeError: `image_size` or a class that is no integer.
        ValueError: values that are not finite, `std` not > 0, lengths that differ, one of a pair without the other, a
            class that does not exist or comes twice in one group; when called, inputs that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        data_mean: Sequence[float] | None = None,
        data_std: Sequence[float] | None = None,
        classes: Sequence[int | Sequence[int]] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if image_size is not None:
            check_whole("image_size", image_size, least=1)
        normalisation = _renormalisation(mean, std, data_mean, data_std)
        groups = None if classes is None else _class_groups(classes)
        if groups is not None and num_classes is not None:
            _refuse_unknown_class(max(max(group) for group in groups), num_classes)
        self.adapted = model
        self.image_size = image_size
        # Not part of the weights: a teacher's file is the model's own.
        self.register_buffer("_scale", normalisation and normalisation[0], persistent=False)
        self.register_buffer("_shift", normalisation and normalisation[1], persistent=False)
        self.register_buffer("_columns", None if groups is None else _padded(groups), persistent=False)
        self._largest = -1 if groups is None else max(max(group) for group in groups)
        self._merges = groups is not None and any(len(group) > 1 for group in groups)

    _scale: Tensor | None
    _shift: Tensor | None
    _columns: Tensor | None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, classes of the student) for the student's inputs, (N, C, H, W) or (N, C, ...)."""
        return self.select_classes(logits_of(self.adapted(self.adapt(inputs))))

    def adapt(self, inputs: Tensor) -> Tensor:
        """The teacher's inputs for the student's, (N, C, ...); in the dtype in which they came."""
        given = inputs
        if self._scale is not None and self._shift is not None:
            if len(self._scale) not in (1, inputs.shape[1]):
                raise ValueError(
                    f"expected inputs with the {len(self._scale)} channels of `mean`, got shape {tuple(inputs.shape)}"
                )
            shape = (-1,) + (1,) * (inputs.dim() - 2)
            inputs = inputs.to(torch.promote_types(given.dtype, torch.float32))
            inputs = inputs * self._scale.view(shape) + self._shift.view(shape)
        if self.image_size is not None:
            if inputs.dim() != 4:
                raise ValueError(f"expected pictures (N, C, H, W) to bring to `image_size`, got {tuple(inputs.shape)}")
            size = (self.image_size, self.image_size)
            if inputs.shape[2:] != size:
                inputs = inputs.to(torch.promote_types(given.dtype, torch.float32))
                inputs = F.interpolate(inputs, size, mode="bilinear", align_corners=False, antialias=True)
        return inputs.to(given.dtype)

    def select_classes(self, logits: Tensor) -> Tensor:
        """Logits in the student's classes for logits in the teacher's, (..., teacher's) -> (..., student's)."""
        if self._columns is None:
            return logits
        _refuse_unknown_class(self._largest, logits.shape[-1])
        if not self._merges:
            return logits[..., self._columns[:, 0]]
        members = logits[..., self._columns.clamp(min=0)].masked_fill(self._columns < 0, -math.inf)
        return members.logsumexp(dim=-1)


class Ensemble(nn.Module):
    """Several teachers as one.

    "mean": z = sum_i w_i z_i, the weights adding up to 1. At every temperature softmax(z / T) is then the normalised
    weighted geometric mean of the teachers' softmax(z_i / T), one of the two means that Hinton et al. 2015 (arXiv
    1503.02531) name for an ensemble; the other, of the probabilities themselves, is that of You et al. 2017 (Learning
    from multiple teacher networks, KDD).

    "best": for each sample the logits of the teacher with the smallest cross-entropy on its target, the first of equal
    ones: the hard form of the weighting by cross-entropy of Zhang et al. 2022 (arXiv 2201.00007). It looks at targets,
    and can therefore not be evaluated without them. A teacher that gives NaN is chosen, and so noticed.

    Args:
        teachers: at least one; each returns logits, a tuple that starts with them, or an object with ``.logits``.
        weights: of the mean, each > 0 and finite; only their ratios count. None: all alike.
        choose: "mean" or "best".

    Raises:
        ValueError: no teacher, weights that do not fit, a choice that does not exist; when called, teachers that
            disagree on the shape of their logits, and "best" without a target.
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        *,
        weights: Sequence[float] | None = None,
        choose: Literal["mean", "best"] = "mean",
    ) -> None:
        super().__init__()
        if not teachers:
            raise ValueError("expected at least one teacher, got none")
        if choose not in ("mean", "best"):
            raise ValueError(f"expected `choose` to be 'mean' or 'best', got {choose!r}")
        if weights is not None:
            if choose == "best":
                raise ValueError(f"expected no `weights` where the best teacher is chosen, got {list(weights)}")
            if len(weights) != len(teachers):
                raise ValueError(f"expected one weight for each of {len(teachers)} teachers, got {len(weights)}")
            for weight in weights:
                if not 0 < weight < math.inf:
                    raise ValueError(f"expected `weights` > 0 and finite, got {weight}")
        self.teachers = nn.ModuleList(teachers)
        self.choose = choose
        shares = [1.0] * len(teachers) if weights is None else [float(weight) for weight in weights]
        self.weights = tuple(share / math.fsum(shares) for share in shares)

    def forward(self, inputs: Tensor, target: Tensor | None = None) -> Tensor:
        """Return logits (N, C), at least float32, for inputs (N, ...) and, for "best", `target` (N,) int64."""
        if self.choose == "best" and target is None:
            raise ValueError(
                "expected a target: the best teacher of a sample is the one with the smallest cross-entropy"
            )
        every = [logits_of(teacher(inputs)) for teacher in self.teachers]
        shapes = [tuple(logits.shape) for logits in every]
        if len(set(shapes)) > 1:
            raise ValueError(f"expected all teachers to give logits of one shape, got {', '.join(map(str, shapes))}")
        dtype = torch.float32
        for logits in every:
            dtype = torch.promote_types(dtype, logits.dtype)
        if target is None or self.choose == "mean":
            shared = [share * logits.to(dtype) for share, logits in zip(self.weights, every, strict=True)]
            return sum(shared[1:], shared[0])
        stacked = torch.stack([logits.to(dtype) for logits in every])
        losses = torch.stack([F.cross_entropy(logits, target, reduction="none") for logits in stacked])
        best = losses.argmin(dim=0)
        return stacked[best, torch.arange(len(best), device=best.device)]


def _renormalisation(
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    data_mean: Sequence[float] | None,
    data_std: Sequence[float] | None,
) -> tuple[Tensor, Tensor] | None:
    """The factor and the summand of each channel, (C,); None where nothing changes."""
    for first, second, names in ((mean, std, ("mean", "std")), (data_mean, data_std, ("data_mean", "data_std"))):
        if (first is None) != (second is None):
            given, missing = names if second is None else names[::-1]
            raise ValueError(f"expected `{given}` and `{missing}` together, got `{given}` alone")
    given = {"mean": mean, "std": std, "data_mean": data_mean, "data_std": data_std}
    values = {name: [float(value) for value in value] for name, value in given.items() if value is not None}
    for name, numbers in values.items():
        if not numbers or not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"expected `{name}` as finite numbers, one a channel, got {numbers}")
        if name.endswith("std") and min(numbers) <= 0:
            raise ValueError(f"expected `{name}` > 0, got {numbers}")
    if mean is None:
        return None
    if data_mean is None:
        raise ValueError("expected `data_mean` and `data_std`, which `mean` and `std` are to replace, got neither")
    channels = max(len(numbers) for numbers in values.values())
    for name, numbers in values.items():
        if len(numbers) not in (1, channels):
            raise ValueError(f"expected `{name}` of length 1 or {channels}, got {len(numbers)}")
    own_mean, own_std, data_mean_, data_std_ = (
        torch.tensor(values[name], dtype=torch.float64).expand(channels) for name in given
    )
    if torch.equal(own_mean, data_mean_) and torch.equal(own_std, data_std_):
        return None
    return (data_std_ / own_std).float(), ((data_mean_ - own_mean) / own_std).float()


def _class_groups(classes: Sequence[int | Sequence[int]]) -> list[list[int]]:
    groups: list[list[int]] = []
    for entry in classes:
        if isinstance(entry, Sequence) and not isinstance(entry, str):
            groups.append(list(entry))
        else:  # a string is one wrong class, not a group of letters
            groups.append([cast("int", entry)])
    if not groups or not all(groups):
        raise ValueError(f"expected `classes` to name at least one of the teacher's for each class, got {groups}")
    for group in groups:
        for index in group:
            check_whole("classes", index, least=0)
        if len(set(group)) < len(group):
            raise ValueError(f"expected each of the teacher's classes once in a group, got {group}")
    return groups


def _padded(groups: list[list[int]]) -> Tensor:
    """(student's classes, largest group) int64, filled up with -1."""
    width = max(len(group) for group in groups)
    return torch.tensor([group + [-1] * (width - len(group)) for group in groups])


def _refuse_unknown_class(largest: int, num_classes: int) -> None:
    if largest >= num_classes:
        raise ValueError(f"expected `classes` below {num_classes}, the teacher's number of classes, got {largest}")
