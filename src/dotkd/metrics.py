"""What a run says while it trains: ``metrics.jsonl`` always, TensorBoard by option, a bar or plain lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dotkd import distributed

Record = Mapping[str, Any]


class Means:
    """Sample-weighted means of the losses and the accuracy, summed on the device and read only when asked for."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, device=device)  # task loss, distillation loss, hits, samples

    @torch.no_grad()
    def add(self, losses: Mapping[str, Tensor], logits: Tensor, targets: Tensor) -> None:
        """Count one batch: losses by stream, of shape () each; logits (N, C); targets (N,).

        In mixed samples, with targets (N, C), the class of the larger share counts as the right one.
        """
        labels = targets.argmax(1) if targets.dim() == 2 else targets
        hits = (logits.argmax(1) == labels).float().mean()
        distill = sum((loss.float() for name, loss in losses.items() if name != "task"), torch.zeros_like(hits))
        row = [losses["task"].float(), distill, hits, torch.ones_like(hits)]
        self.sums.add_(torch.stack(row), alpha=len(targets))

    def read(self) -> tuple[float, float, float, float]:
        """Mean task loss, mean distillation loss, accuracy and the number of samples; starts again from nothing.

        Over the samples of all processes, which have to call this together.
        """
        task, distill, hits, count = distributed.summed(self.sums).tolist()
        self.sums.zero_()
        return task / count, distill / count, hits / count, count


class Display(Protocol):
    """Where a person watches the run."""

    def start(self, title: str, *, steps: int, done: int) -> None:
        """Begin; ``done`` of the ``steps`` lie behind where a run is resumed."""
        ...

    def step(self) -> None:
        """One optimizer step is done."""
        ...

    def show(self, record: Record) -> None:
        """A record was written to ``metrics.jsonl``."""
        ...

    def stop(self) -> None:
        """The run ended, one way or another."""
        ...


class Bar:
    """A live bar, for a terminal."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._train = self._test = ""

    def start(self, title: str, *, steps: int, done: int) -> None:
        """Begin; ``done`` steps lie behind where a run is resumed."""
        self._task = self._bar.add_task(title, total=steps, completed=done, figures="")
        self._bar.start()

    def step(self) -> None:
        """One optimizer step is done."""
        self._bar.advance(self._task)

    def show(self, record: Record) -> None:
        """Put the newest figures beside the bar."""
        if record["kind"] == "train":
            self._train = figures(record)
        else:
            self._test = f"test {record['test']['accuracy']:.1%}"
        self._bar.update(self._task, figures=f"{self._train} {self._test}")

    def stop(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


class Lines:
    """One plain line an epoch, for a file or a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._train = ""

    def start(self, title: str, *, steps: int, done: int) -> None:
        """Say what begins."""
        self._say(f"{title}: {steps} steps" + (f", resumed at {done}" if done else ""))

    def step(self) -> None:
        """Say nothing."""

    def show(self, record: Record) -> None:
        """Say a line at the end of each epoch."""
        if record["kind"] == "train":
            self._train = figures(record)
        else:
            scores = " ".join(f"{s} {record[s]['accuracy']:.1%}" for s in ("val", "test") if s in record)
            self._say(f"epoch {record['epoch']:3d}  {self._train}  {scores}")

    def stop(self) -> None:
        """Say nothing."""

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def figures(record: Record) -> str:
    """The figures of a training record as people read them."""
    distill = "" if record["distill_loss"] is None else f" distill {record['distill_loss']:.3f}"
    rate = f"{record['images_per_second']:.0f} images/s"
    skipped = f" skipped {record['skipped_steps']}" if record["skipped_steps"] else ""
    return f"task {record['task_loss']:.3f}{distill} accuracy {record['accuracy']:.1%} {rate}{skipped}"


class Log:
    """Appends records to ``metrics.jsonl``, and passes them on.

    Args:
        keep: bytes of an existing file to keep. A resumed run writes again what came after its checkpoint.
    """

    def __init__(self, out: Path, *, keep: int, step: int, tensorboard: bool, display: Display | None) -> None:
        self._board = _board(out, step) if tensorboard else None
        self._file = (out / "metrics.jsonl").open("ab")
        self._file.truncate(keep)
        self._file.seek(keep)  # or `position` would still be where the file ended before
        self._display = display

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(self, record: Record) -> None:
        """Write one record; a process that dies afterwards has not lost it."""
        self._file.write(to_json(record).encode() + b"\n")
        self._file.flush()
        if self._display:
            self._display.show(record)
        if self._board:
            for name, value in _scalars(record):
                self._board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board:
            self._board.close()


class NoLog:
    """The log of a process that is not the main one."""

    position = 0

    def write(self, record: Record) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Close nothing."""


def to_json(record: Record, *, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is not finite, which JSON does not know, becomes null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(record), indent=indent, allow_nan=False)


def display_for(console: Console) -> Display:
    """A bar in a terminal, lines elsewhere."""
    return Bar(console) if console.is_terminal else Lines(console)


def _board(out: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard=true needs the package tensorboard: pip install 'dotkd[plots]'") from error
    return SummaryWriter(str(out / "tensorboard"), purge_step=step)


def _scalars(record: Record) -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat += [(f"{key}/{name}", number) for name, number in _scalars(value)]
        elif isinstance(value, (int, float)) and key not in {"step", "epoch"}:
            flat.append((key, value))
    return flat
