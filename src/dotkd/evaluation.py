"""Accuracy, both losses, calibration and agreement with the teacher over a whole split, in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd import distributed
from dotkd.calibration import calibration_error
from dotkd.data import Batch, Dataset, SplitName, batch_count, batches
from dotkd.distiller import Distiller, refuse_non_finite
from dotkd.methods.activations import Activations, in_eval_mode, logits_of


class Scores(NamedTuple):
    """Of one model on one split; the losses are means over the samples. None where not known.

    accuracy: fraction of the samples.
    agreement: fraction of the samples for which student and teacher predict the same class.
    calibration_error: see `dotkd.calibration`.
    """

    accuracy: float
    task_loss: float
    distill_loss: float | None = None
    agreement: float | None = None
    calibration_error: float | None = None


@torch.no_grad()
def predict(model: nn.Module, dataset: Dataset, split: SplitName, *, batch_size: int, device: torch.device) -> Tensor:
    """The model's logits for a whole split without augmentation, in the split's order: (N, C), float32.

    The model is put into eval mode for it, and its modules back into the modes they were in. Several processes share
    the batches, and each gets all the logits.
    """
    with in_eval_mode(model):
        return _logits(
            lambda batch: logits_of(model(batch.inputs)), dataset, split, batch_size=batch_size, device=device
        )


def _logits(
    ask: Callable[[Batch], Tensor], dataset: Dataset, split: SplitName, *, batch_size: int, device: torch.device
) -> Tensor:
    """What ``ask`` says of each batch, (B, C), for a whole split: (N, C), float32."""
    batching = _own_share(dataset, split, batch_size=batch_size, device=device)
    parts = [logits for logits, counts in ((ask(batch).float(), counts) for batch, counts in batching) if counts]
    if distributed.size() == 1:
        return torch.cat(parts)
    samples = len(getattr(dataset, split).targets)
    shares = distributed.shares_of(batch_count(dataset, split, batch_size=batch_size))
    counts = [min(share.stop * batch_size, samples) - min(share.start * batch_size, samples) for share in shares]
    none = torch.empty(0, dataset.num_classes, device=device)
    return distributed.joined_shares(torch.cat([none, *parts]), counts)


def _own_share(
    dataset: Dataset, split: SplitName, *, batch_size: int, device: torch.device
) -> Iterator[tuple[Batch, bool]]:
    """The batches of a split that this process looks at, and whether they are its own share.

    All processes look at equally many, which a sharded model needs; one that they do not share out evenly twice.
    """
    count = batch_count(dataset, split, batch_size=batch_size)
    shares = distributed.shares_of(count)
    share, most = shares[distributed.rank()], max(map(len, shares))
    start = min(share.start, count - most)
    found = batches(dataset, split, batch_size=batch_size, start=start, device=device)
    return ((batch, number in share) for number, batch in enumerate(islice(found, most), start))


def score(logits: Tensor, targets: Tensor, taught: Tensor | None = None) -> Scores:
    """Scores of (N, C) logits against (N,) targets and, for the agreement, the teacher's logits (N, C)."""
    targets = targets.to(logits.device)
    predicted = logits.argmax(1)
    return Scores(
        accuracy=int((predicted == targets).sum()) / len(targets),
        task_loss=F.cross_entropy(logits, targets).item(),
        agreement=None if taught is None else int((predicted == taught.argmax(1)).sum()) / len(targets),
        calibration_error=calibration_error(logits, targets).item(),
    )


class Examiner:
    """Scores models on the splits of a data set, against a teacher where there is one.

    Args:
        distiller: whose teacher and method to measure with; None: the distillation loss stays unknown.
        fixed: splits that a fixed teacher sees alike in every epoch. Its logits for them are computed once, for a
            method that looks inside those held out alone.
        batch_size: also what a method that relates the samples of a batch is measured in.

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
        for split in fixed:
            if distiller and not (distiller.looks_inside and split == "train"):
                self._known[split] = self._ask_teacher(split)
                refuse_non_finite(self._known[split])

    def known(self, split: SplitName) -> Tensor | None:
        """The teacher's logits for a fixed split, (N, C), in the split's order; None if there are none."""
        return self._known.get(split)

    def scores(self, model: nn.Module, split: SplitName) -> Scores:
        """Scores of ``model`` in eval mode on the whole split, without augmentation.

        The loss of a method that looks inside is left out: it costs a pass of the teacher (see :meth:`final_scores`).
        So is the agreement, where the teacher's logits are neither known nor asked for by a loss.
        """
        logits = predict(model, self._dataset, split, batch_size=self._batch_size, device=self._device)
        taught = self._known.get(split)
        if self._distiller is None or self._distiller.looks_inside:
            return score(logits, self._targets(split), taught)
        taught = self._ask_teacher(split) if taught is None else taught
        loss = self._loss_on_logits(self._distiller, logits, taught, split)
        return score(logits, self._targets(split), taught)._replace(distill_loss=loss)

    def final_scores(self, split: SplitName) -> Scores:
        """Scores of the distiller's student with the distillation loss of any method.

        It stays None where the method knows the samples of the training split alone and ``split`` is another.
        """
        assert self._distiller is not None
        scores = self.scores(self._distiller.student, split)
        if not self._distiller.looks_inside or (self._distiller.objective.wants_index and split != "train"):
            return scores
        return scores._replace(distill_loss=self._loss_inside(self._distiller, split))

    def teacher_accuracy(self, split: SplitName) -> float | None:
        """The teacher's own accuracy; None where there is no teacher."""
        if self._distiller is None or self._distiller.teacher is None:
            return None
        logits = self._known[split] if split in self._known else self._ask_teacher(split)
        return score(logits, self._targets(split)).accuracy

    @torch.no_grad()
    def _loss_on_logits(self, distiller: Distiller, logits: Tensor, taught: Tensor, split: SplitName) -> float:
        targets = self._targets(split).to(logits.device)
        total = torch.zeros((), device=logits.device)
        for student, teacher, target in zip(
            logits.split(self._batch_size), taught.split(self._batch_size), targets.split(self._batch_size), strict=True
        ):
            # Without augmentation the second view of a sample is the first.
            found = distiller.distill_losses(
                Activations(student),
                Activations(teacher),
                target=target,
                progress=1.0,
                student_strong=student,
                teacher_strong=teacher,
            )
            total += _distillation(found) * len(target)
        return total.item() / len(targets)

    @torch.no_grad()
    def _loss_inside(self, distiller: Distiller, split: SplitName) -> float:
        total, count = torch.zeros((), device=self._device), 0
        module = distiller.objective.module
        assert module is not None
        with in_eval_mode(distiller.student), in_eval_mode(module):
            batching = _own_share(self._dataset, split, batch_size=self._batch_size, device=self._device)
            for batch, counts in batching:
                index = batch.index.to(self._device)
                seen, taught = distiller.observe(batch.inputs, batch.targets, index=index)
                found = distiller.distill_losses(seen, taught, target=batch.targets, index=index, progress=1.0)
                total += _distillation(found) * len(batch.targets) * counts
                count += len(batch.targets) * counts
        total, samples = distributed.summed(torch.stack([total, torch.full_like(total, count)])).tolist()
        return total / samples

    @torch.no_grad()
    def _ask_teacher(self, split: SplitName) -> Tensor:
        assert self._distiller is not None
        distiller = self._distiller
        return _logits(
            lambda batch: distiller.teacher_logits(batch.inputs, batch.targets),
            self._dataset,
            split,
            batch_size=self._batch_size,
            device=self._device,
        )

    def _targets(self, split: SplitName) -> Tensor:
        return getattr(self._dataset, split).targets


def _distillation(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of the losses that are not part of the task loss."""
    return torch.stack([loss.float() for stream, loss in losses.items() if stream != "task"]).sum()
