"""The configuration of a cell, and what its runs depend on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dotkd.evidence.comparison import NO_DISTILLATION, Cell

if TYPE_CHECKING:
    from dotkd.config import Config

# What is said of the first method's loss says nothing of another's.
_OF_A_METHOD = ("task_weight", "distill_weight", "distill_warmup_epochs", "temperature")
_OF_A_TEACHER = ("cache", "cache_top_k")
# Keys that change nothing in a run, and when: {key: value} of its configuration.
_UNUSED: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any]], bool]], ...] = (
    (("delta",), lambda run: run.get("trainer") in ("sgd", "adamw")),
    (("beta2", "eps"), lambda run: "adamw" not in str(run.get("trainer"))),
    (("task_weight", "distill_weight", "distill_warmup_epochs"), lambda run: run.get("method") == NO_DISTILLATION),
    (("gamma",), lambda run: run.get("schedule") != "step"),
    (("mix_alpha",), lambda run: run.get("mix") == "none"),
    (("teacher_epochs", "teacher_lr"), lambda run: run.get("teacher_weights") is not None),
    (
        ("teacher", "teacher_options", "teacher_epochs", "teacher_lr"),
        lambda run: run.get("method") == NO_DISTILLATION and run.get("teacher_weights") is None,
    ),
)


def used(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of `config`, as it is dumped or as `summary.json` has it, the run depends on, as JSON values."""
    unused = {key for keys, applies in _UNUSED if applies(config) for key in keys}
    return json.loads(json.dumps({key: value for key, value in config.items() if key not in unused}))


def of_cell(config: Config, cell: Cell) -> Config:
    """The shared configuration with what the cell differs in."""
    options = config.method_options if cell.method == config.method else {}
    forgotten: Sequence[str] = ()
    if cell.method == NO_DISTILLATION:
        forgotten = _OF_A_TEACHER
    elif cell.method != config.method:
        forgotten = _OF_A_METHOD
    other = dict.fromkeys(forgotten)
    return config.replace(**other, method=cell.method, method_options=options, trainer=cell.trainer)
