"""The runs of a comparison that are still to be done, and how a worker process does one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dotkd.cli import layout
from dotkd.cli.campaign import Plan, Setting
from dotkd.cli.cells import of_cell
from dotkd.evidence.comparison import Cell
from dotkd.evidence.jobs import INTERRUPTED, Ending, Job
from dotkd.evidence.runs import is_finished, read_run

if TYPE_CHECKING:
    from dotkd.config import Config
    from dotkd.metrics import Display

# Numbers of the training that no model or data set is built from.
_NOT_BUILT = ("lr", "momentum", "delta", "weight_decay", "epochs", "temperature", "task_weight", "distill_weight")


def rehearse(plan: Plan) -> None:
    """Builds what the runs will need, so that wrong input is told here and at once, before a folder is made.

    Raises whatever data, models and weights raise where they are missing or do not fit together.
    """
    from dotkd.trainer import Trainer

    built: set[str] = set()
    for setting in plan.settings:
        changed = {key: value for key, value in setting.point.varied.items() if key not in _NOT_BUILT}
        for cell in {cell.method: cell for cell in setting.cells}.values():
            what = f"{setting.point.source} {changed} {cell.method}"
            if what not in built:
                built.add(what)
                Trainer(of_cell(setting.config, cell), plan.out, resuming=True)


def directories(plan: Plan) -> list[Path]:
    """The run folders, each once, seed by seed, so that what is done stays balanced."""
    found = (plan.directory(setting, cell, seed) for seed, setting, cell in _runs(plan))
    return list(dict.fromkeys(found))


def make_jobs(plan: Plan) -> list[Job]:
    """The runs that are still to be done, teachers first; none that a teacher which diverged would have taught."""
    logs = plan.out / layout.LOGS
    jobs: list[Job] = []
    names: dict[Path, str] = {}
    for teacher in plan.teachers:
        first = next(setting for setting in plan.settings if setting.teacher == teacher)
        name = "teacher" if len(plan.teachers) == 1 else f"teacher of {first.point.teacher_name}"
        if not is_finished(teacher.path):
            names[teacher.path] = name
            config = teacher.config
            epochs = config.teacher_epochs or config.epochs
            log = logs / f"{'-'.join(teacher.path.relative_to(plan.out).parts)}.log"
            jobs.append(Job(name, teacher.path, config.model_dump(), log, epochs))
    lost = lost_teachers(plan)
    taken: set[Path] = set()
    for seed, setting, cell in _runs(plan):
        directory = plan.directory(setting, cell, seed)
        if directory in taken or is_finished(directory) or (setting.teacher and setting.teacher.path in lost):
            continue
        taken.add(directory)
        # The configuration of the setting whose folder it is; that of this one amounts to the same.
        home = next(s for s in plan.settings if s.directory == directory.parent.parent)
        config = home.cell_config(cell).replace(seed=seed)
        name = f"{cell.name} seed {seed}"
        log = logs / f"{'-'.join(directory.relative_to(plan.out).parts)}.log"
        if len(plan.settings) > 1:
            name = f"{home.point.name}: {name}"
        needs = None if setting.teacher is None else names.get(setting.teacher.path)
        jobs.append(Job(name, directory, config.model_dump(), log, config.epochs, needs))
    return jobs


def lost_teachers(plan: Plan) -> list[Path]:
    """The teachers that diverged: nothing is to be learnt from them."""
    return [t.path for t in plan.teachers if is_finished(t.path) and read_run(t.path).diverged]


def work(job: Job, display: Display | None = None) -> str:
    """Trains one run to its end, from its newest checkpoint where it has one. Runs in a worker process."""
    from dotkd.config import Config
    from dotkd.trainer import Diverged, Interrupted, Trainer, teacher_run

    config = Config(**job.config)
    started = layout.begun(job.directory)
    try:
        if job.directory.name == layout.TEACHER:
            teacher_run(config, job.directory)
        else:
            if started:
                _refuse_another(job.directory, config)
            Trainer(config, job.directory, display=display, resuming=started).fit()
    except Interrupted:
        return INTERRUPTED
    except Diverged:
        return "diverged"
    return read_run(job.directory).status


def worst(endings: Iterable[Ending]) -> str | None:
    """The outcome that decides how the command ends: interrupted before failed before blocked; None if all is well."""
    outcomes = {ending.outcome for ending in endings}
    return next((word for word in (INTERRUPTED, "failed", "blocked") if word in outcomes), None)


def _runs(plan: Plan) -> Iterable[tuple[int, Setting, Cell]]:
    most = max(len(setting.seeds) for setting in plan.settings)
    return (
        (setting.seeds[number], setting, cell)
        for number in range(most)
        for setting in plan.settings
        for cell in setting.cells
    )


def _refuse_another(directory: Path, config: Config) -> None:
    """Raises ValueError where the run in `directory` is not that of `config`; the folder as a whole may have moved."""
    from dotkd.config import Config

    held = Config.from_sources(directory / "config.yaml")
    if held.replace(teacher_weights=config.teacher_weights) != config:
        raise ValueError(f"{directory} holds a run of another configuration: move it away")
