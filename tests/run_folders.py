"""Run folders as a trainer leaves them, made from numbers: for tests of what only reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dotkd.evidence.runs import Run, Scores

EPOCHS = 3


def make_run(
    directory: Path,
    *,
    method: str = "kd",
    trainer: str = "sgd",
    seed: int = 0,
    accuracy: float | None = 0.9,
    task: float | None = 0.4,
    distill: float | None = 1.2,
    status: str = "done",
    config: Mapping[str, Any] | None = None,
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for epoch in range(1, EPOCHS + 1):
        still = EPOCHS - epoch
        scores = {
            "accuracy": None if accuracy is None else accuracy - 0.1 * still,
            "task_loss": None if task is None else task + 0.3 * still,
            "distill_loss": None if distill is None else distill + 2.0 * still,
        }
        lines.append({"kind": "train", "step": 10 * epoch - 5, "epoch": epoch, "task_loss": 1.0})
        lines.append({"kind": "eval", "step": 10 * epoch, "epoch": epoch, "val": scores, "test": scores})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "status": status,
        "trainer": trainer,
        "method": method,
        "seed": seed,
        "config": {"lr": 0.05} if config is None else dict(config),
        "test_accuracy": {"last": accuracy, "val_selected": accuracy, "best_of_test": accuracy},
        "losses": {"train": {"task": task, "distill": distill}, "test": {"task": task, "distill": distill}},
        "teacher_test_accuracy": 0.95,
        "seconds": 12.5,
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def runs_of(
    accuracies: Sequence[float | None],
    task: Sequence[float] = (),
    distill: Sequence[float] = (),
    method: str = "kd",
    path: Path = Path(),
) -> list[Run]:
    """One run a seed, read from no folder; an accuracy of None is a run that diverged."""
    made: list[Run] = []
    for seed, accuracy in enumerate(accuracies):
        scores = Scores(accuracy, task[seed] if task else 0.4, distill[seed] if distill else 1.0, 0.8, 0.04)
        status = "diverged" if accuracy is None else "done"
        made.append(
            Run(
                path / f"seed-{seed}",
                status,
                method,
                "sgd",
                seed,
                accuracy,
                accuracy,
                accuracy,
                0.95,
                scores,
                scores,
                3.0,
                {},
            )
        )
    return made
