"""Where a comparison lies on disk, and whether a folder is free for it.

    OUT/comparison.yaml          the configuration that all cells of a setting share
    OUT/teacher/                 trained once; every run is taught by it, or (method none) measured against it
    OUT/CELL/seed-K/             run folders
    OUT/logs/                    what a worker printed, where it printed anything
    OUT/comparison.json, ...     the tables, the number of each run, and pictures

That is one setting. Where there are several, or may come to be, as with `--vary`:

    OUT/settings.yaml            {folder: what it varies}
    OUT/SETTING/                 comparison.yaml, CELL/seed-K/, pictures; teacher/ where it is not that of others

A setting that OUT itself holds already stays there when others join it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dotkd.cli.cells import used
from dotkd.cli.settings import Point

if TYPE_CHECKING:
    from dotkd.cli.campaign import Plan, Setting
    from dotkd.config import Config

SHARED = "comparison.yaml"
SETTINGS = "settings.yaml"
LOCK = ".lock"
LOGS = "logs"
TEACHER = "teacher"
# What cells differ in by design; every other key must be equal in all runs of a setting.
_OF_A_CELL = ("method", "trainer")


def begun(directory: Path) -> bool:
    """Whether a run has been started in `directory`."""
    return (directory / "config.yaml").is_file()


def directory(out: Path, point: Point, config: Config, *, alone: bool) -> Path:
    """The folder of a setting. alone: the command has no other."""
    own = out / point.folder
    if (own / SHARED).is_file():
        return own
    if (out / SHARED).is_file() and not _changes(out / SHARED, config):
        return out
    # A folder of several settings takes another one as one of them.
    single = alone and not point.varied and ((out / SHARED).is_file() or not (out / SETTINGS).is_file())
    return out if single else own


def teacher(out: Path, own: Sequence[Path], trained: Config, *, alone: bool) -> Path:
    """The folder of a teacher. own: where its settings would have it; trained: its run's configuration; alone: there is
    no other teacher in the command."""
    shared = out / TEACHER
    for path in (*own, shared, *sorted(out.glob(f"*/{TEACHER}"))):
        if begun(path) and not _retrained(path, trained):
            return path
    return shared if alone and not begun(shared) else own[0]


def claim(plan: Plan) -> None:
    """Makes the folders of the comparison. ValueError where they hold another; nothing is written then."""
    from dotkd import config_sources
    from dotkd.atomic_file import write_atomically

    known = (plan.out / SHARED).is_file() or (plan.out / SETTINGS).is_file()
    entries = list(plan.out.iterdir()) if plan.out.exists() else []
    if not known and any(entry.name != LOCK for entry in entries):
        raise ValueError(f"{plan.out} is not empty and holds no comparison; choose another folder with --out")
    if (plan.out / SHARED).is_file() and not (plan.out / SETTINGS).is_file():
        directories = [setting.directory for setting in plan.settings]
        if plan.out not in directories:  # one of them must be what the folder holds
            _refuse_another(plan.out, plan.settings[0].config)
    for setting in plan.settings:
        if (setting.directory / SHARED).is_file():
            _refuse_another(setting.directory, setting.config)
    _refuse_other_teachers(plan)
    for setting in plan.settings:
        path = setting.directory / SHARED
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, setting.config.to_yaml())
    listed = {s.point.folder: s.point.varied for s in plan.settings if s.directory != plan.out}
    if listed:
        held = (plan.out / SETTINGS).read_text("utf-8") if (plan.out / SETTINGS).is_file() else "{}"
        before = config_sources.parse(held)
        assert isinstance(before, dict)
        write_atomically(plan.out / SETTINGS, config_sources.dump({**before, **listed}))


def _refuse_another(folder: Path, config: Config) -> None:
    changed = _changes(folder / SHARED, config)
    if changed:
        raise ValueError(
            f"{folder} holds another comparison; choose another --out, or take its settings:\n" + "\n".join(changed)
        )


def _changes(path: Path, config: Config) -> list[str]:
    """A line for each key in which the shared configuration in `path` is not `config`."""
    from dotkd.config import Config

    there, now = Config.from_sources(path).model_dump(), config.model_dump()
    return _differences(there, now, [key for key in now if key not in _OF_A_CELL])


def _retrained(path: Path, trained: Config) -> list[str]:
    """A line for each key in which the teacher in `path` was trained otherwise."""
    from dotkd.config import Config

    there, now = used(Config.from_sources(path / "config.yaml").model_dump()), used(trained.model_dump())
    return _differences(there, now, list(dict.fromkeys([*now, *there])))


def _differences(there: Mapping[str, object], now: Mapping[str, object], keys: Sequence[str]) -> list[str]:
    return [
        f"  {key}: {there.get(key)!r} there, {now.get(key)!r} now" for key in keys if there.get(key) != now.get(key)
    ]


def _refuse_other_teachers(plan: Plan) -> None:
    """A teacher that is there must be trained as this command would, and be that of the runs that are there."""
    from dotkd.config_teacher import teacher_config

    for teacher in plan.teachers:
        trained = teacher_config(teacher.config)
        if begun(teacher.path):
            changed = _retrained(teacher.path, trained)
            if changed:
                raise ValueError(
                    f"{teacher.path} was trained otherwise; choose another --out, or take its settings:\n"
                    + "\n".join(changed)
                )
        elif taught := [s for s in plan.settings if s.teacher == teacher and _is_taught(s)]:
            near = next((p for p in (taught[0].directory / TEACHER, plan.out / TEACHER) if begun(p)), None)
            changed = [] if near is None else _retrained(near, trained)
            raise ValueError(
                f"the runs in {taught[0].directory} were taught by another teacher; choose another --out, or take its "
                "settings" + (":\n" + "\n".join(changed) if changed else "")
            )


def _is_taught(setting: Setting) -> bool:
    """Whether a run of `setting` has begun with a teacher."""
    from dotkd.config import Config

    started = (path for cell in setting.cells for path in setting.directory.glob(f"{cell.name}/seed-*/config.yaml"))
    return any(Config.from_sources(path).teacher_weights is not None for path in started)
