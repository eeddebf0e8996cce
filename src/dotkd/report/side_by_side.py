"""Runs that no comparison holds, as one table: those that differ in their seed alone are one line of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dotkd.evidence.comparison import Cell
from dotkd.evidence.runs import Run
from dotkd.evidence.settings import Table, make_table

# Runs that differ in nothing else are repetitions of one another.
_BESIDE_THE_POINT = ("seed", "teacher_weights", "threads")


def side_by_side(runs: Sequence[Run]) -> tuple[str, Table]:
    """What to call them, and their table: a cell for each group, named by its folder, compared with none."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        config = {key: value for key, value in run.config.items() if key not in _BESIDE_THE_POINT}
        alike = json.dumps([run.method, run.trainer, config], sort_keys=True, default=str)
        seeds = [other.seed for other in groups.get(alike, [])]
        # The same seed twice is a repetition, which pairs with nothing and has a line of its own.
        groups.setdefault(alike if run.seed not in seeds else f"{alike} {run.path}", []).append(run)
    names = _distinct([_place_of(group) for group in groups.values()])
    by_name = dict(zip(names, groups.values(), strict=True))
    cells = [Cell(name, group[0].method, group[0].trainer, None) for name, group in by_name.items()]
    title = names[0] if len(runs) == 1 else f"{len(runs)} runs"
    return title, make_table(title, cells, by_name)


def _place_of(group: Sequence[Run]) -> Path:
    """The folder that stands for one run, or for several seeds: what their names share without the seed."""
    path = group[0].path.resolve()
    if len(group) == 1:
        return path
    places = {_without_seed(run.path.resolve()) for run in group}
    return places.pop() if len(places) == 1 else path.with_name(f"{path.name} and {len(group) - 1} more")


def _without_seed(path: Path) -> Path:
    stem = path.name.rstrip("0123456789").rstrip("-_").removesuffix("seed").rstrip("-_")
    return path.parent / stem if stem else path.parent


def _distinct(places: Sequence[Path]) -> list[str]:
    """The last words of each path, as many as tell it from the others; what no word tells apart is numbered."""
    depth = [1] * len(places)
    while True:
        names = ["/".join(place.parts[-count:]) for place, count in zip(places, depth, strict=True)]
        deeper = [k for k, name in enumerate(names) if names.count(name) > 1 and depth[k] < len(places[k].parts)]
        if not deeper:
            break
        for k in deeper:
            depth[k] += 1
    order = [names[:place].count(name) + 1 for place, name in enumerate(names)]
    return [name if names.count(name) == 1 else f"{name} ({number})" for name, number in zip(names, order, strict=True)]
