"""`dotkd eval`: accuracy, task loss and calibration of a run's student, or of its export, on any data."""

from __future__ import annotations

import dataclasses
import difflib
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dotkd.data import Dataset

EXAMPLE = """\
  dotkd eval runs/mnist1d-dot-seed0
  dotkd eval runs/mnist1d-dot-seed0 --weights export/student.onnx --split val
  dotkd eval runs/mine --data imagefolder:~/more-pictures
"""


class SplitChoice(str, Enum):
    """The splits that say something about new data."""

    test = "test"
    val = "val"


def evaluate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The run folder.")],
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Other data of the same classes. [the run's]")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help=".safetensors or .onnx, also inside DIR. [student.safetensors]")
    ] = None,
    split: Annotated[SplitChoice, typer.Option(help="Which split.")] = SplitChoice.test,
) -> None:
    """Measure a trained student or its export.

    Inputs are normalised as they were in training, whatever data they come from.
    """
    import torch

    from dotkd import data as sources
    from dotkd.cli.console import results, say
    from dotkd.evaluation import predict, score
    from dotkd.export import OnnxStudent, load_run

    path = directory / "student.safetensors" if weights is None else find_weights(directory, weights)
    onnx = path.suffix == ".onnx"
    loaded = load_run(directory, None if onnx else path)
    dataset, config = loaded.dataset, loaded.config
    if data is not None:
        other = sources.load(data, validation=config.validation, image_size=config.image_size if ":" in data else None)
        dataset = _as_trained(other, dataset)
    gpu = not onnx and config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    model = OnnxStudent(path) if onnx else loaded.student.to(device)
    logits = predict(model, dataset, split.value, batch_size=256, device=device)
    scores = score(logits, getattr(dataset, split.value).targets)
    say(
        results(),
        f"{path} on {data or config.data} ({split.value}): accuracy {100 * scores.accuracy:.2f} %, "
        f"task loss {scores.task_loss:.4g}, calibration error {scores.calibration_error:.4f}, n = {len(logits)}",
    )


def find_weights(directory: Path, weights: Path) -> Path:
    """`weights` as a path of its own or inside the run folder. Raises FileNotFoundError with the nearest name."""
    for path in (weights.expanduser(), directory / weights):
        if path.is_file():
            return path
    held = [str(path.relative_to(directory)) for kind in ("*.safetensors", "*.onnx") for path in directory.rglob(kind)]
    # Neither a checkpoint's, which come and go, nor the teacher's, which is a run of its own.
    held = sorted(name for name in held if Path(name).parts[0] not in ("checkpoints", "teacher"))
    near = difflib.get_close_matches(str(weights), held, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; it holds {', '.join(held)}" if held else ""
    raise FileNotFoundError(f"there is no {weights}, nor is it in {directory}{hint}")


def _as_trained(other: Dataset, trained: Dataset) -> Dataset:
    """`other`, normalised as the training data were. Raises ValueError where the student cannot take it."""
    if other.input_shape != trained.input_shape:
        raise ValueError(f"expected inputs of shape {trained.input_shape} as in training, got {other.input_shape}")
    if other.class_names != trained.class_names:
        raise ValueError(
            f"expected the classes of the training data ({_few(trained.class_names)}), got {_few(other.class_names)}"
        )
    return dataclasses.replace(other, mean=trained.mean, std=trained.std)


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:6])
    return f"{shown}, ... {len(names)} in all" if len(names) > 6 else shown
