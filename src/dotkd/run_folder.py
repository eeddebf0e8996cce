"""The folder of a run, which all its processes see: the main one writes, and what fails there fails everywhere."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from dotkd import checkpoint, distributed, sharding
from dotkd.checkpoint import Checkpoint, save_weights, write_atomically
from dotkd.config import Config
from dotkd.metrics import Display, Log, NoLog, to_json


class RunFolder:
    """Every method has to be called in all processes together. Raises CheckpointError where the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, config: Config) -> dict[str, Any] | None:
        """Make the folder and write ``config.yaml``; returns the summary of the run that ended in it, if one did."""
        return distributed.main_decides(partial(self._begin, config))

    def _begin(self, config: Config) -> dict[str, Any] | None:
        if (self.path / "summary.json").exists():
            return json.loads((self.path / "summary.json").read_text())
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "config.yaml", config.to_yaml())
        return None

    def log(self, *, keep: int, step: int, tensorboard: bool, display: Display | None) -> Log | NoLog:
        """``metrics.jsonl``, of which ``keep`` bytes are kept; nothing in any process but the main one."""
        if not distributed.is_main():
            return NoLog()
        return Log(self.path, keep=keep, step=step, tensorboard=tensorboard, display=display)

    def save_weights(self, name: str, model: nn.Module) -> None:
        """Write ``name``.safetensors."""
        weights = sharding.whole(model.state_dict())
        distributed.main_decides(partial(save_weights, self.path / f"{name}.safetensors", weights))

    def save_checkpoint(self, step: int, student: nn.Module, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of ``step``."""
        weights = sharding.whole(student.state_dict())
        save = partial(checkpoint.save, self.path / "checkpoints", step, student=weights, state=state)
        distributed.main_decides(lambda: str(save()))

    def load_checkpoint(self, student: nn.Module) -> Checkpoint | None:
        """The newest whole checkpoint, its weights loaded into ``student``; None where there is none at all.

        Raises ValueError for weights that do not fit, CheckpointError where all checkpoints are damaged.
        """
        found = distributed.main_decides(partial(checkpoint.load_latest, self.path / "checkpoints"))
        if found is None:
            return None
        for path, reason in found.skipped if distributed.is_main() else ():
            warnings.warn(f"{path} is damaged ({reason}): going on from {found.path}", RuntimeWarning, stacklevel=3)
        try:
            sharding.load_whole(student, found.student)
        except RuntimeError as error:
            raise ValueError(f"{found.path} does not fit the student of {self.path}/config.yaml: {error}") from error
        return found

    def save_summary(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``summary.json``, and return what a reader of it finds."""
        text = to_json(summary, indent=2)
        distributed.main_decides(partial(write_atomically, self.path / "summary.json", text + "\n"))
        return json.loads(text)
