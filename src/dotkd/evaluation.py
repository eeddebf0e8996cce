"""Accuracy and both losses of a model over a whole split, in eval mode."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.data import Dataset, SplitName, batches
from dotkd.distiller import Distiller, logits_of


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
