"""A recipe, and the recipes that one row of the DOT paper's tables stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dotkd.config import Config
from dotkd.methods import card_of

Changes = Mapping[str, object]

MINI = "-mini"
# What the scaled-down twins are shortened by.
_SHORTER = 20


class Recipe(NamedTuple):
    """A configuration, and one line about it.

    paper: top-1 accuracy in percent that the recipe's source prints for it; None where it prints none.
    """

    config: Config
    summary: str
    paper: float | None = None


def row(
    name: str, kd: Config, *, paper: tuple[float, float], dkd: Changes, crd: Changes, mini: Changes
) -> dict[str, Recipe]:
    """NAME-kd, NAME-kd-dot, NAME-dkd-dot and NAME-crd-dot, and of each a scaled-down twin, NAME-...-mini.

    Args:
        kd: KD by DOT, of which all the others are changes.
        paper: accuracy of KD, and of KD + DOT.
        dkd, crd: what these methods change besides the method.
        mini: what the twins change besides their length.
    """
    other = dict.fromkeys(("temperature", "task_weight", "distill_weight"))  # each has its own, as published
    by_dkd = kd.replace(**{"method": "dkd", **other, **dkd})
    by_crd = kd.replace(**{"method": "crd", **other, **crd})
    return {
        **twins(f"{name}-kd", kd.replace(trainer="sgd"), "KD, one momentum", paper[0], mini),
        **twins(f"{name}-kd-dot", kd, "KD by DOT", paper[1], mini),
        **twins(f"{name}-dkd-dot", by_dkd, "DKD by DOT", None, mini),
        **twins(f"{name}-crd-dot", by_crd, "CRD by DOT", None, mini),
    }


def teacher(name: str, config: Config, paper: float | None, mini: Changes) -> dict[str, Recipe]:
    """NAME, the training of a row's teacher by itself, and NAME-mini.

    `dotkd train NAME` once, and teacher_weights=RUN-FOLDER shares it among the recipes that learn from it.
    """
    mini = {**mini, "student": mini.get("teacher", config.teacher)}
    alone = config.replace(
        student=config.teacher, lr=config.teacher_lr or config.lr, teacher_lr=None, method="none", trainer="sgd"
    )
    return twins(name, alone, "a teacher, from the labels", paper, mini)


def twins(name: str, config: Config, summary: str, paper: float | None, mini: Changes) -> dict[str, Recipe]:
    """NAME and NAME-mini: the same method and shape of the schedule, on less data and in a twentieth of the epochs."""
    models = config.student if config.method == "none" else f"{config.teacher} > {config.student}"
    small = shortened(config).replace(**mini)
    return {
        name: Recipe(config, f"{models}: {summary}", paper),
        f"{name}{MINI}": Recipe(small, f"{name}, scaled down to run in minutes"),
    }


def shortened(config: Config) -> Config:
    """The same schedule over a twentieth of the epochs."""
    warmup = config.distill_warmup_epochs
    if warmup is None and config.method != "none":
        warmup = card_of(config.method).warmup_epochs or None
    return config.replace(
        epochs=config.epochs // _SHORTER,
        milestones=[milestone // _SHORTER for milestone in config.milestones],
        distill_warmup_epochs=warmup and warmup / _SHORTER,
    )
