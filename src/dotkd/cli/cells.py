"""The configuration of a cell, and what its runs depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dotkd.evidence.comparison import NO_DISTILLATION, Cell

if TYPE_CHECKING:
    from dotkd.config import Config

# What is said of the first method's loss says nothing of another's.
_OF_A_METHOD = ("task_weight", "distill_weight", "distill_warmup_epochs", "temperature")
_OF_A_TEACHER = ("cache", "cache_top_k")
# Keys that change nothing in a run, and when.
_UNUSED: tuple[tuple[tuple[str, ...], Callable[[Config], bool]], ...] = (
    (("delta",), lambda config: config.trainer in ("sgd", "adamw")),
    (("beta2", "eps"), lambda config: "adamw" not in config.trainer),
    (("task_weight", "distill_weight", "distill_warmup_epochs"), lambda config: config.method == NO_DISTILLATION),
    (("gamma",), lambda config: config.schedule != "step"),
    (("mix_alpha",), lambda config: config.mix == "none"),
    (("teacher_epochs", "teacher_lr"), lambda config: config.teacher_weights is not None),
)


def used(config: Config) -> dict[str, object]:
    """What of `config` its run depends on."""
    unused = {key for keys, applies in _UNUSED if applies(config) for key in keys}
    return {key: value for key, value in config.model_dump().items() if key not in unused}


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
