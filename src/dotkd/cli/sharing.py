"""Which cells of different settings are the same runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dotkd.cli.cells import used
from dotkd.evidence.comparison import Cell
from dotkd.evidence.runs import is_finished, read_run

if TYPE_CHECKING:
    from dotkd.cli.campaign import Setting

# {(setting's name, cell's name): folders of cells}
Folders = dict[tuple[str, str], list[Path]]


def homes(settings: Sequence[Setting]) -> Folders:
    """The folders of cells whose runs are the same, in the order of the settings."""
    alike: dict[str, list[Path]] = {}
    keys: dict[tuple[str, str], str] = {}
    for setting in settings:
        for cell in setting.cells:
            key = json.dumps([used(setting.cell_config(cell).model_dump()), setting.seeds])
            keys[setting.point.name, cell.name] = key
            alike.setdefault(key, []).append(setting.directory / cell.name)
    return {name: alike[key] for name, key in keys.items()}


def before(settings: Sequence[Setting], folder: Path) -> Folders:
    """Likewise, those of settings that `folder` holds and `settings` does not name; only runs that ended tell."""
    named = {setting.directory for setting in settings}
    others = [path for path in (folder, *sorted(folder.glob("*"))) if path not in named and path.is_dir()]

    def alike(setting: Setting, cell: Cell) -> list[Path]:
        wanted = {**used(setting.cell_config(cell).model_dump()), "seed": None}
        homes = (other / cell.name for other in others)
        found = ((home, next(filter(is_finished, sorted(home.glob("seed-*"))), None)) for home in homes)
        return [
            home for home, run in found if run is not None and {**used(read_run(run).config), "seed": None} == wanted
        ]

    return {(setting.point.name, cell.name): alike(setting, cell) for setting in settings for cell in setting.cells}
