"""A finished run looked at again: the loss around its student, its curvature, its likeness to the teacher.

What is measured, on samples of the training split without augmentation, the student in eval mode (batch norm by its
running statistics), weight decay left out:

    line, plane   task loss, distillation loss and accuracy along random directions: dotkd.evidence.landscape
    hessian       of the task loss, the cross-entropy: the one loss that all trainers and methods have in common, and
                  that no trainer's hidden weights enter: dotkd.evidence.curvature
    objective     likewise of task_weight x task loss + distill_weight x distillation loss, by the weights of the
                  configuration; where nothing is distilled, of the task loss
    cka           features of the student against those of the teacher: dotkd.evidence.similarity

Losses are unweighted in the first two. Runs that are analysed with one seed share the samples, and those of one
architecture the directions. The distillation loss of a method that looks inside the models is left out: it is
no function of logits alone; that of a method that relates the samples of a batch is of the batches used here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.atomic_file import write_atomically
from dotkd.distiller import Distiller
from dotkd.evidence.curvature import Curvature, curvature
from dotkd.evidence.landscape import Score, line, plane, random_direction
from dotkd.evidence.similarity import linear_cka
from dotkd.evidence.subject import Subject, load
from dotkd.export import WEIGHTS
from dotkd.methods.activations import Activations, Observer, logits_of
from dotkd.methods.points import default_points
from dotkd.metrics import to_json
from dotkd.schedule import weights as loss_weights
from dotkd.teachers import Ensemble

ANALYSIS = "analysis.json"
USUAL = ("line", "hessian", "cka")
KINDS = (*USUAL, "plane", "objective")
_CKA_BATCH = 256


class Settings(NamedTuple):
    """samples: of the training split at most. points: along each axis of a landscape, from -1 to 1."""

    samples: int = 1024
    points: int = 21
    seed: int = 0


def analyse(directory: Path, kinds: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Measure what of `kinds` the run's `analysis.json` lacks, write it there, and return all that it holds.

    What was measured with other samples, another seed or other weights is measured again.

    Raises:
        FileNotFoundError: no run, or none that has ended, or the teacher's weights are gone.
        ValueError: an unreadable analysis, weights that do not fit, settings outside their rule.
        ModuleNotFoundError: curvlinops is missing for `hessian` or `objective`.
    """
    if settings.samples < 4:
        raise ValueError(f"expected at least 4 samples, got {settings.samples}")
    if settings.points < 3:
        raise ValueError(f"expected at least 3 points, got {settings.points}")
    path = directory / ANALYSIS
    key = {"samples_wanted": settings.samples, "seed": settings.seed, "weights": _checksum(directory)}
    held = _held(path, key)
    missing = [kind for kind in KINDS if kind in kinds and not _is_done(held, kind, settings)]
    if not missing:
        return held
    subject = load(directory, samples=settings.samples, seed=settings.seed)
    held |= {
        "split": "train",
        "samples": sum(len(batch[0]) for batch in subject.samples),
        "loss": "landscape: unweighted task loss (cross-entropy) and distillation loss; hessian: task loss alone; "
        "hessian_objective: task_weight x task loss + distill_weight x distillation loss; eval mode, no weight decay",
        **key,
    }
    held["absent"] = {**held.get("absent", {}), **subject.why}
    landscape = held.setdefault("landscape", {"line": None, "plane": None})
    for kind in missing:
        if kind == "line":
            landscape["line"] = _line(subject, settings)
        elif kind == "plane":
            landscape["plane"] = _plane(subject, settings)
        elif kind == "hessian":
            held["hessian"] = _curvature(subject, _task, settings)
        elif kind == "objective":
            held["hessian_objective"] = _curvature(subject, _objective(subject), settings)
        else:
            held["cka"] = _cka(subject)
        write_atomically(path, to_json(held, indent=1) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


# --- what is measured


def _task(logits: Tensor, targets: Tensor, *_taught: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets)


def _accuracy(logits: Tensor, targets: Tensor, *_taught: Tensor) -> Tensor:
    return (logits.argmax(1) == targets).double().mean()


def _distillation(distiller: Distiller) -> Score:
    def distill(logits: Tensor, targets: Tensor, taught: Tensor) -> Tensor:
        # Without augmentation the second view of a sample is the first.
        found = distiller.distill_losses(
            Activations(logits),
            Activations(taught),
            target=targets,
            progress=1.0,
            student_strong=logits,
            teacher_strong=taught,
        )
        return torch.stack([loss for stream, loss in found.items() if stream != "task"]).sum()

    return distill


def _objective(subject: Subject) -> Score:
    task_weight, distill_weight, _ = loss_weights(subject.config)
    if not distill_weight:
        return lambda *seen: task_weight * _task(*seen)
    if subject.distiller is None or "distill_loss" in subject.why:
        raise ValueError(f"there is no objective to take the curvature of: {subject.why['distill_loss']}")
    distill = _distillation(subject.distiller)
    return lambda *seen: task_weight * _task(*seen) + distill_weight * distill(*seen)


def _scores(subject: Subject) -> dict[str, Score]:
    scores: dict[str, Score] = {"task_loss": _task, "accuracy": _accuracy}
    if subject.distiller is not None and "distill_loss" not in subject.why:
        scores["distill_loss"] = _distillation(subject.distiller)
    return scores


def _axis(points: int) -> list[float]:
    return [(2 * k - (points - 1)) / (points - 1) for k in range(points)]


def _line(subject: Subject, settings: Settings) -> dict[str, Any]:
    alphas = _axis(settings.points)
    direction = random_direction(subject.student, seed=settings.seed)
    found = line(subject.student, subject.samples, direction, _scores(subject), alphas=alphas)
    return {"alpha": alphas, "distill_loss": None, **found}


def _plane(subject: Subject, settings: Settings) -> dict[str, Any]:
    axis = _axis(settings.points)
    first, second = (random_direction(subject.student, seed=settings.seed, number=number) for number in (0, 1))
    found = plane(subject.student, subject.samples, (first, second), _scores(subject), alphas=axis, betas=axis)
    return {"alpha": axis, "beta": axis, "distill_loss": None, **found}


def _curvature(subject: Subject, loss: Score, settings: Settings) -> dict[str, Any]:
    def of(normalised: bool) -> Curvature:
        return curvature(subject.student, subject.samples, loss, normalised=normalised, seed=settings.seed)

    plain, normalised = of(False), of(True)
    return {
        "eigenvalues": plain.eigenvalues,
        "trace": plain.trace._asdict(),
        "eigenvalues_normalised": normalised.eigenvalues,
        "trace_normalised": normalised.trace._asdict(),
    }


def _cka(subject: Subject) -> dict[str, Any] | None:
    """Of feature points where they are known, and of the logits in any case."""
    if "cka" in subject.why:
        return None
    assert subject.distiller is not None
    assert subject.distiller.teacher is not None
    config, teacher = subject.config, subject.distiller.teacher
    seen, students = _watch(subject.student, config.student_features, subject.example, "student")
    taught, teachers = _watch(teacher, config.teacher_features, subject.example, "teacher")
    inputs, targets, *_ = (torch.cat(parts) for parts in zip(*subject.samples, strict=True))

    def batches() -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        with torch.no_grad():
            for start in range(0, len(inputs), _CKA_BATCH):
                rows = slice(start, start + _CKA_BATCH)
                if len(inputs[rows]) >= 4:
                    yield seen(inputs[rows], targets[rows]), taught(inputs[rows], targets[rows])

    values = linear_cka(batches()).tolist()
    return {"student_points": students, "teacher_points": teachers, "values": values}


def _watch(
    model: nn.Module, points: Sequence[str], example: Tensor, role: str
) -> tuple[Callable[[Tensor, Tensor], list[Tensor]], list[str]]:
    """What a model's feature points and logits are for (inputs, targets), and their names."""
    if isinstance(model, Ensemble):
        return lambda inputs, targets: [model(inputs, targets)], ["logits"]
    try:
        names = tuple(points) or default_points(model, role)
    except ValueError:  # a family whose maps are not known
        return lambda inputs, _: [logits_of(model(inputs))], ["logits"]
    observer = Observer(model, role, ("features",), points=names, example=example)

    def watch(inputs: Tensor, _targets: Tensor) -> list[Tensor]:
        found = observer(inputs)
        return [*found.features, found.logits]

    return watch, [*observer.points, "logits"]


# --- what is there


def _checksum(directory: Path) -> str:
    path = directory / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no finished run: it has no {WEIGHTS}")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _held(path: Path, key: Mapping[str, object]) -> dict[str, Any]:
    """What was measured before by the same `key`; nothing else is kept."""
    if not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return held if all(held.get(name) == value for name, value in key.items()) else {}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as an analysis: {error}") from error


def _is_done(held: Mapping[str, Any], kind: str, settings: Settings) -> bool:
    if kind in ("line", "plane"):
        found = held.get("landscape", {}).get(kind)
        return found is not None and len(found["alpha"]) == settings.points
    return {"hessian": "hessian", "objective": "hessian_objective", "cka": "cka"}[kind] in held
