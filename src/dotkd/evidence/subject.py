"""What an analysis looks at: the student of a finished run, its teacher, and samples of the training split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from dotkd import data, models
from dotkd.assembly import Parts, assemble
from dotkd.config import Config
from dotkd.distiller import Distiller
from dotkd.evidence.landscape import Samples
from dotkd.export import WEIGHTS

_BATCH_NUMBERS = 2**16  # of the inputs of a batch: some MB of activations for each of the models at hand


class Subject(NamedTuple):
    """A run's student in eval mode with its samples in batches: inputs, targets (B,), teacher's logits (B, C).

    The last is missing without a teacher, and `why` says why there is none to look at, or no distillation loss.
    """

    config: Config
    student: nn.Module
    distiller: Distiller | None
    samples: Samples
    example: Tensor
    why: Mapping[str, str]


def load(directory: Path, *, samples: int, seed: int) -> Subject:
    """The student of a finished run, its teacher and at most so many samples of the training split, unaugmented.

    `seed` alone settles which, and their order.

    Raises:
        FileNotFoundError: no run, or none that has ended, or the teacher's weights are gone.
        ValueError: weights that do not fit.
    """
    config = Config.from_sources(directory / "config.yaml")
    own = directory / "teacher"
    changes: dict[str, object] = {"student_weights": None, "activation_checkpointing": False, "low_memory": False}
    changes |= {"sync_batch_norm": False}
    if config.teacher_weights is None and (own / WEIGHTS).is_file() and config.method != "none":
        changes["teacher_weights"] = str(own)
    parts = assemble(config.replace(**changes))
    if parts.teacher is not None:
        raise FileNotFoundError(f"{directory} was taught by {own}, which has no {WEIGHTS}: its teacher is gone")
    models.load_weights(parts.student, directory / WEIGHTS)
    distiller = parts.distiller
    if distiller is not None and (directory / "method.safetensors").is_file():
        models.load_weights(distiller.extra, directory / "method.safetensors")
    if parts.average is not None:
        models.load_weights(parts.average.module, directory / "student_ema.safetensors")
    why: dict[str, str] = {}
    if distiller is None:
        why = dict.fromkeys(("cka", "distill_loss"), "method none, and no teacher_weights to measure against")
    elif distiller.teacher is None:
        why = dict.fromkeys(("cka", "distill_loss"), f"method {config.method} has no teacher")
    elif distiller.looks_inside:
        why["distill_loss"] = f"that of method {config.method} is no function of logits alone"
    found = tuple(_samples(parts, samples, seed))
    return Subject(config, parts.student.eval(), distiller, found, parts.example, why)


def _samples(parts: Parts, most: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """The teacher is asked about each."""
    distiller = parts.distiller
    size = max(16, min(1024, _BATCH_NUMBERS // parts.example[0].numel()))
    left = min(most, len(parts.dataset.train.targets))
    batching = data.batches(parts.dataset, "train", batch_size=size, shuffle=True, seed=seed, device=parts.device)
    for batch in batching:
        inputs, targets = batch.inputs[:left], batch.targets[:left]
        if distiller is None or distiller.teacher is None:
            yield inputs, targets
        else:
            yield inputs, targets, distiller.teacher_logits(inputs, targets)
        left -= len(inputs)
        if not left:
            return
