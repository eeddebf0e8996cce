"""Reads run folders: what a run was, how it ended, and its losses and accuracies over the epochs.

A run folder is readable without the trainer that wrote it, and this file is the proof: it knows
`summary.json` and `metrics.jsonl` and imports neither torch nor the trainer. Accuracies are fractions in [0,
1]; losses are unweighted means over a whole split, the distillation loss None where the method has none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

SUMMARY = "summary.json"
METRICS = "metrics.jsonl"


class Scores(NamedTuple):
    """One model on one split; None where the run does not say, as older ones of the last two.

    accuracy: fraction. losses: unweighted means. agreement: fraction of the samples for which student and teacher
    predict the same class. calibration_error: the expected one, 15 bins, in [0, 1].
    """

    accuracy: float | None
    task_loss: float | None
    distill_loss: float | None
    agreement: float | None = None
    calibration_error: float | None = None


class EvalPoint(NamedTuple):
    """The evaluation at the end of an epoch; `step` counts optimizer steps from the start of the run."""

    step: int
    epoch: int
    val: Scores
    test: Scores


class DiagnosticPoint(NamedTuple):
    """What the streams did at a step, {quantity: {stream, or streams with a comma between: number}}."""

    step: int
    values: Mapping[str, Mapping[str, float | None]]


class Run(NamedTuple):
    """A finished run, taken from its `summary.json`.

    status: "done" or "diverged". Every accuracy is None where the run has none, as a diverged one may. `test` has the
    losses, agreement and calibration error of the last epoch's student, `train` its losses.
    """

    path: Path
    status: str
    method: str
    trainer: str
    seed: int
    val_selected: float | None
    last: float | None
    best_of_test: float | None
    teacher_accuracy: float | None
    train: Scores
    test: Scores
    seconds: float | None
    config: Mapping[str, Any]

    @property
    def selected(self) -> float | None:
        """The accuracy to report: of the epoch that was best on validation, the last where nothing was held out."""
        return self.last if self.val_selected is None else self.val_selected

    @property
    def diverged(self) -> bool:
        """Whether the run was given up, so that its last numbers are no result."""
        return self.status == "diverged"


def is_finished(directory: Path) -> bool:
    """Whether `directory` holds a run that ended by itself, well or badly."""
    return (directory / SUMMARY).is_file()


def read_run(directory: Path) -> Run:
    """The run in `directory`. Raises ValueError naming the file where it is missing or cannot be read."""
    path = directory / SUMMARY
    if not path.is_file():
        raise ValueError(f"{directory} holds no finished run: it has no {SUMMARY}")
    try:
        summary = _mapping(json.loads(path.read_text(encoding="utf-8")))
        status = summary["status"]
        if status not in ("done", "diverged"):
            raise ValueError(f'expected "status" to be done or diverged, got {status!r}')
        accuracy = _mapping(summary.get("test_accuracy"))
        losses = _mapping(summary.get("losses"))
        return Run(
            path=directory,
            status=status,
            method=str(summary["method"]),
            trainer=str(summary["trainer"]),
            seed=int(summary["seed"]),
            val_selected=_number(accuracy.get("val_selected")),
            last=_number(accuracy.get("last")),
            best_of_test=_number(accuracy.get("best_of_test")),
            teacher_accuracy=_number(summary.get("teacher_test_accuracy")),
            train=_losses(losses.get("train")),
            test=_losses(losses.get("test"))._replace(
                agreement=_number(summary.get("test_agreement")),
                calibration_error=_number(summary.get("test_calibration_error")),
            ),
            seconds=_number(summary.get("seconds")),
            config=_mapping(summary.get("config")),
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks the key {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as the summary of a run: {error}") from error


def read_evaluations(directory: Path) -> list[EvalPoint]:
    """The evaluations of a run, in order of their step; [] where there are none yet.

    A run that was stopped and resumed may have written a step twice: the later line counts. A last line cut
    short by a kill is passed over; a broken line before it raises ValueError with its number.
    """
    points: dict[int, EvalPoint] = {}
    for line in _lines(directory / METRICS):
        if line.get("kind") == "eval":
            step = int(line["step"])
            points[step] = EvalPoint(step, int(line["epoch"]), _scores(line.get("val")), _scores(line.get("test")))
    return [points[step] for step in sorted(points)]


def read_diagnostics(directory: Path) -> list[DiagnosticPoint]:
    """The diagnostics of the training steps that recorded some, in order; raises as `read_evaluations` does."""
    points: dict[int, DiagnosticPoint] = {}
    for line in _lines(directory / METRICS, holding='"diagnostics"'):
        found = {
            name: {stream: _number(value) for stream, value in _mapping(values).items()}
            for name, values in _mapping(line.get("diagnostics")).items()
        }
        points[int(line["step"])] = DiagnosticPoint(int(line["step"]), found)
    return [points[step] for step in sorted(points)]


def epochs_done(directory: Path) -> int:
    """How many evaluations the run has written, counted without parsing: cheap enough to ask every second."""
    path = directory / METRICS
    return path.read_bytes().count(b'"eval"') if path.is_file() else 0


def _lines(path: Path, *, holding: str = "") -> Iterator[Mapping[str, Any]]:
    """The records of a file; those without the text `holding` are not parsed."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, text in enumerate(lines, start=1):
        if not text.strip() or holding not in text:
            continue
        try:
            yield _mapping(json.loads(text))
        except (ValueError, TypeError) as error:
            # Only a line that lost its line break was cut short; any other broken line is damage to be told.
            if number == len(lines):
                return
            raise ValueError(f"{path}, line {number}: not a JSON object: {error}") from error


def _scores(value: object) -> Scores:
    scores = _mapping(value)
    return Scores(*(_number(scores.get(name)) for name in Scores._fields))


def _losses(value: object) -> Scores:
    """Scores from the {"task", "distill"} form that `summary.json` uses."""
    losses = _mapping(value)
    return Scores(None, _number(losses.get("task")), _number(losses.get("distill")))


def _mapping(value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {type(value).__name__}")
    return cast("dict[str, Any]", value)


def _number(value: object) -> float | None:
    """A finite float, or None for null, infinity and NaN: none of these can be averaged."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected a number or null, got {value!r}")
    return float(value) if math.isfinite(value) else None
