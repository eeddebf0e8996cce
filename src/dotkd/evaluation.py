"""Accuracy and both losses of a model over a whole split, in eval mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.data import Dataset, SplitName, batches
from dotkd.distiller import Distiller, logits_of, refuse_non_finite


class Scores(NamedTuple):
    """``accuracy`` is a fraction; the losses are means over the samples, ``distill_loss`` None without a teacher."""

    accuracy: float
    task_loss: float
    distill_loss: float | None


@torch.no_grad()
def predict(model: nn.Module, dataset: Dataset, split: SplitName, *, batch_size: int, device: torch.device) -> Tensor:
    """The model's logits for a whole split without augmentation, in the split's order: (N, C), float32.

    The model is put into eval mode for it, and back into the mode it was in.
    """
    was_training = model.training
    model.eval()
    try:
        parts = [
            logits_of(model(b.inputs)).float() for b in batches(dataset, split, batch_size=batch_size, device=device)
        ]
    finally:
        model.train(was_training)
    return torch.cat(parts)


def score(
    logits: Tensor, targets: Tensor, distiller: Distiller | None = None, teacher_logits: Tensor | None = None
) -> Scores:
    """Scores of (N, C) logits against (N,) targets, and against the teacher's logits where there is one."""
    targets = targets.to(logits.device)
    accuracy = int((logits.argmax(1) == targets).sum()) / len(targets)
    task = F.cross_entropy(logits, targets).item()
    if distiller is None or teacher_logits is None:
        return Scores(accuracy, task, None)
    return Scores(accuracy, task, distiller.distill_loss(logits, teacher_logits, targets).item())


class Examiner:
    """Scores models on the splits of a data set, against a teacher where there is one.

    Args:
        distiller: whose teacher and distillation loss to measure with; None: the distillation loss stays unknown.
        fixed: splits whose samples look the same in every epoch. The teacher's logits for them are computed once.

    Raises:
        ValueError: the teacher's logits for a fixed split are not finite; the text names the samples.
    """

    def __init__(
        self,
        dataset: Dataset,
        distiller: Distiller | None,
        *,
        fixed: Sequence[SplitName],
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._dataset, self._distiller, self._batch_size, self._device = dataset, distiller, batch_size, device
        self._known: dict[SplitName, Tensor] = {}
        for split in fixed if distiller else ():
            logits = self._teacher_logits(split)
            assert logits is not None
            refuse_non_finite(logits)
            self._known[split] = logits

    def known(self, split: SplitName) -> Tensor | None:
        """The teacher's logits for a fixed split, (N, C), in the split's order; None if there are none."""
        return self._known.get(split)

    def scores(self, model: nn.Module, split: SplitName) -> Scores:
        """Scores of ``model`` in eval mode on the whole split, without augmentation."""
        return score(self._predict(model, split), self._targets(split), self._distiller, self._teacher_logits(split))

    def teacher_accuracy(self, split: SplitName) -> float | None:
        """The teacher's own accuracy; None where there is no teacher."""
        logits = self._teacher_logits(split)
        return None if logits is None else score(logits, self._targets(split)).accuracy

    def _teacher_logits(self, split: SplitName) -> Tensor | None:
        if self._distiller is None or split in self._known:
            return self._known.get(split)
        return self._predict(self._distiller.teacher, split)

    def _predict(self, model: nn.Module, split: SplitName) -> Tensor:
        return predict(model, self._dataset, split, batch_size=self._batch_size, device=self._device)

    def _targets(self, split: SplitName) -> Tensor:
        return getattr(self._dataset, split).targets
