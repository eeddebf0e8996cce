"""What a comparison consists of: settings, the cells of each, and the runs that they share.

A setting is a recipe with the values that `--vary` gives it; each has the cells methods x trainers. Its teacher is
trained with the values outside `--vary`, unless it is data or teacher that vary, and serves all settings of its recipe:
whoever varies `lr` or `epochs` does not mean the teacher's.

Cells that come out equal in several settings, as plain SGD does at another delta, are trained once: the run lies where
it was first needed, with the configuration of that setting, and counts in all of them; so do finished runs of settings
that the folder holds from before and this command does not name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

from dotkd.cli import layout, sharing
from dotkd.cli.cells import of_cell, used
from dotkd.cli.settings import Point, check_overrides, points, safe, sources, title
from dotkd.evidence.comparison import NO_DISTILLATION, Cell, check_names, make_cells, plain_trainer
from dotkd.evidence.runs import is_finished, read_run
from dotkd.evidence.settings import Evidence, Table, corrected, make_table

if TYPE_CHECKING:
    from dotkd.config import Config


class Teacher(NamedTuple):
    """A teacher to be trained. config: of a distillation from it, as `teacher_run` takes it."""

    path: Path
    config: Config


class Setting(NamedTuple):
    """What is compared under one configuration.

    config: shared by all cells, and itself the baseline of the first method. teacher: None where none is needed, or its
    weights are given. seeds: those of its runs.
    """

    point: Point
    directory: Path
    config: Config
    cells: list[Cell]
    seeds: list[int]
    teacher: Teacher | None = None

    def cell_config(self, cell: Cell) -> Config:
        """The configuration of the cell's runs, with the setting's first seed."""
        weights = self.config.teacher_weights if self.teacher is None else str(self.teacher.path.resolve())
        return of_cell(self.config, cell).replace(teacher_weights=weights)


class Plan(NamedTuple):
    """What is compared. shared: for each cell of each setting the folders of the cells whose runs are the same; before:
    likewise, those of other settings that the folder holds."""

    name: str
    out: Path
    settings: list[Setting]
    shared: sharing.Folders
    before: sharing.Folders

    @property
    def teachers(self) -> list[Teacher]:
        """The teachers to be trained, each once."""
        return list({s.teacher.path: s.teacher for s in self.settings if s.teacher is not None}.values())

    @property
    def seeds(self) -> list[int]:
        """The seeds of all settings."""
        return sorted({seed for setting in self.settings for seed in setting.seeds})

    def directory(self, setting: Setting, cell: Cell, seed: int) -> Path:
        """The run folder of one cell and seed: of equal runs the one that is furthest, else the first."""
        name = (setting.point.name, cell.name)
        homes = [home / f"seed-{seed}" for home in self.shared[name]]
        before = [home / f"seed-{seed}" for home in self.before[name]]
        mine = sorted(homes, key=lambda path: path.parent.parent != setting.directory)
        finished = [path for path in (*mine, *before) if is_finished(path)]
        return (finished or [path for path in mine if layout.begun(path)] or homes)[0]

    def table(self, setting: Setting) -> Table:
        """The table of a setting as far as the runs on disk go, its tests not yet corrected."""
        runs = {
            cell.name: [read_run(path) for path in self._directories(setting, cell) if is_finished(path)]
            for cell in setting.cells
        }
        point, where = setting.point, setting.directory.relative_to(self.out).as_posix()
        return make_table(point.name, setting.cells, runs, recipe=point.recipe, varied=point.varied, directory=where)

    def evidence(self) -> Evidence:
        """All tables as far as the runs on disk go, their tests corrected together."""
        return corrected(self.name, [self.table(setting) for setting in self.settings])

    def _directories(self, setting: Setting, cell: Cell) -> list[Path]:
        return [self.directory(setting, cell, seed) for seed in setting.seeds]


def make_plan(
    words: Sequence[str],
    *,
    trainers: str,
    methods: str | None,
    seeds: int,
    out: Path | None,
    vary: Sequence[str] = (),
) -> Plan:
    """The plan of a comparison of the recipes among `words`, changed by its overrides.

    trainers, methods: names with commas between them; methods: None for the recipe's own. vary: KEY=V,V,... each.

    Raises ValueError for wrong names, ConfigError for a configuration that any of the cells cannot have.
    """
    from dotkd.config import Config, ConfigError
    from dotkd.methods import METHODS

    if seeds < 1:
        raise ValueError(f"expected --seeds of at least 1, got {seeds}")
    recipes, overrides = sources(words)
    check_overrides(overrides, methods=methods is not None)
    names = _split(trainers)
    check_names("--trainers", names, get_args(Config.model_fields["trainer"].annotation))
    chosen = None if methods is None else _split(methods)
    if chosen is not None:
        check_names("--methods", [name for name in chosen if ":" not in name], [*METHODS, NO_DISTILLATION])
    found = points(recipes, vary)
    name = title(found)
    folder = out or Path("runs") / f"compare-{safe(name.replace(', ', '-').replace(' ', '-'))}"
    settings: list[Setting] = []
    problems: list[str] = []
    for point in found:
        try:
            settings.append(_setting(point, folder, overrides, names, chosen, seeds, alone=len(found) == 1))
        except ConfigError as error:
            told = "" if len(found) == 1 else f"{point.name}: "
            problems += [told + line.removeprefix(told) for line in error.problems]
    if problems:
        raise ConfigError("\n".join(problems))
    _refuse_equals(settings)
    settings = _with_teachers(settings, folder)
    return Plan(name, folder, settings, sharing.homes(settings), sharing.before(settings, folder))


def _setting(
    point: Point,
    folder: Path,
    overrides: Sequence[str],
    trainers: list[str],
    methods: list[str] | None,
    seeds: int,
    *,
    alone: bool,
) -> Setting:
    """A setting with every cell's configuration checked; `teacher` holds, for now, where it would lie by itself."""
    from dotkd.config import Config, ConfigError

    plain = plain_trainer(trainers)

    def configured(words: Sequence[str], method: str | None) -> Config:
        extra = [f"trainer={plain}"] if method is None else [f"trainer={plain}", f"method={method}"]
        config = Config.from_sources(point.source, [*overrides, *words, *extra])
        # Bits must not depend on how many runs share the machine.
        return config if config.threads is not None else config.replace(threads=1)

    chosen = methods or [configured(point.words(), None).method]
    cells = make_cells(chosen, trainers)
    first = next((method for method in chosen if method != NO_DISTILLATION), chosen[0])
    config = configured(point.words(), first)
    directory = layout.directory(folder, point, config, alone=alone)
    setting = Setting(point, directory, config, cells, [config.seed + k for k in range(seeds)])
    for cell in cells:  # every cell is checked before the first one runs
        setting.cell_config(cell)
    if not _needs_teacher(setting):
        return setting
    try:
        own = configured(point.words_for_the_teacher(), first)
    except ConfigError as error:
        lines = "\n".join(f"the teacher, trained with what is outside of --vary: {line}" for line in error.problems)
        raise ConfigError(lines) from error
    return setting._replace(teacher=Teacher(directory / layout.TEACHER, own))


def _needs_teacher(setting: Setting) -> bool:
    from dotkd.methods.objective import Objective

    config = setting.config
    taught = any(c.method != NO_DISTILLATION and not Objective(c.method).teacherless for c in setting.cells)
    given = config.teacher_weights is not None or config.teacher_epochs == 0 or config.teacher == "self"
    return taught and not given


def _refuse_equals(settings: Sequence[Setting]) -> None:
    for number, setting in enumerate(settings):
        for other in settings[:number]:
            if setting.config == other.config or setting.directory == other.directory:
                raise ValueError(
                    f"expected settings that differ, got one configuration for {other.point.name} and "
                    f"{setting.point.name}"
                )


def _with_teachers(settings: Sequence[Setting], folder: Path) -> list[Setting]:
    """The settings with their teachers, those that are trained alike as one."""
    from dotkd.config_teacher import teacher_config

    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        if setting.teacher is not None:
            trained = used(teacher_config(setting.teacher.config).model_dump())
            groups.setdefault(json.dumps(trained), []).append(setting)
    found: dict[str, Teacher] = {}
    for group in groups.values():
        teacher = group[0].teacher
        assert teacher is not None
        own = [setting.directory / layout.TEACHER for setting in group]
        path = layout.teacher(folder, own, teacher_config(teacher.config), alone=len(groups) == 1)
        found |= {setting.point.name: Teacher(path, teacher.config) for setting in group}
    return [setting._replace(teacher=found.get(setting.point.name)) for setting in settings]


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
