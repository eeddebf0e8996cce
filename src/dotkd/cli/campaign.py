"""The machinery of `dotkd compare` and `dotkd demo`: one teacher, a run folder for every cell and seed.

    OUT/comparison.yaml          the configuration that all cells share
    OUT/teacher/                 trained once; every run is taught by it, or (method none) measured against it
    OUT/CELL/seed-K/             run folders
    OUT/logs/                    what a worker printed, where it printed anything
    OUT/comparison.json, .csv    the table, and the number of each run
    OUT/*.png                    trade-off and accuracy curves

Started again with the same words it skips the runs that ended and continues those that were interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

from dotkd.evidence.comparison import (
    NO_DISTILLATION,
    Cell,
    Row,
    check_names,
    make_cells,
    make_rows,
    plain_trainer,
)
from dotkd.evidence.jobs import INTERRUPTED, Ending, Job
from dotkd.evidence.runs import Run, is_finished, read_run

if TYPE_CHECKING:
    from dotkd.config import Config

SHARED = "comparison.yaml"
LOCK = ".lock"
LOGS = "logs"
TEACHER = "teacher"
# What cells differ in by design; every other key must be equal in all runs of a comparison.
_OF_A_CELL = ("method", "trainer")
_OF_A_TEACHER = ("cache", "cache_top_k")
_OF_A_METHOD = ("task_weight", "distill_weight", "distill_warmup_epochs", "temperature")


class Plan(NamedTuple):
    """What is compared. config: shared by all cells, and itself the baseline of the first method."""

    name: str
    out: Path
    config: Config
    cells: list[Cell]
    seeds: list[int]

    def directory(self, cell: Cell, seed: int) -> Path:
        """The run folder of one cell and seed."""
        return self.out / cell.name / f"seed-{seed}"

    @property
    def teacher(self) -> Path | None:
        """The folder the teacher is trained in; None where none is needed, or its weights are given."""
        from dotkd.methods.objective import Objective

        taught = any(c.method != NO_DISTILLATION and not Objective(c.method).teacherless for c in self.cells)
        config = self.config
        given = config.teacher_weights is not None or config.teacher_epochs == 0 or config.teacher == "self"
        return self.out / TEACHER if taught and not given else None

    def runs(self) -> dict[str, list[Run]]:
        """{cell name: its runs that ended so far}."""
        folders = {cell.name: [self.directory(cell, seed) for seed in self.seeds] for cell in self.cells}
        return {name: [read_run(path) for path in paths if is_finished(path)] for name, paths in folders.items()}


def make_plan(
    source: str, overrides: Sequence[str], *, trainers: str, methods: str | None, seeds: int, out: Path | None
) -> Plan:
    """The plan of a comparison. trainers, methods: names with commas between them; methods: None for the recipe's own.

    Raises ValueError for wrong names, ConfigError for a configuration that any of the cells cannot have.
    """
    from dotkd.config import Config
    from dotkd.methods import METHODS

    if seeds < 1:
        raise ValueError(f"expected --seeds of at least 1, got {seeds}")
    for word in overrides:
        key = word.partition("=")[0]
        if key == "trainer" or (key == "method" and methods is not None):
            raise ValueError(f"{key} is what the cells differ in: give it as --{key}s, not as {word}")
    names = _split(trainers)
    check_names("--trainers", names, get_args(Config.model_fields["trainer"].annotation))
    plain = plain_trainer(names)
    if methods is None:
        chosen = [Config.from_sources(source, [*overrides, f"trainer={plain}"]).method]
    else:
        chosen = _split(methods)
        check_names("--methods", [name for name in chosen if ":" not in name], [*METHODS, NO_DISTILLATION])
    cells = make_cells(chosen, names)
    first = next((method for method in chosen if method != NO_DISTILLATION), chosen[0])
    config = Config.from_sources(source, [*overrides, f"trainer={plain}", f"method={first}"])
    if config.threads is None:
        config = config.replace(threads=1)  # bits must not depend on how many runs share the machine
    stem = Path(source).stem if Path(source).suffix else source
    plan = Plan(stem, out or Path("runs") / f"compare-{stem}", config, cells, [config.seed + k for k in range(seeds)])
    for cell in cells:  # every cell is checked before the first one runs
        _cell_config(plan, cell, plan.seeds[0])
    return plan


def claim(plan: Plan) -> None:
    """Makes the folder of the comparison. ValueError where it holds another."""
    from dotkd.config import Config

    path = plan.out / SHARED
    if path.is_file():
        held = Config.from_sources(path).model_dump()
        wanted = plan.config.model_dump()
        changed = [key for key in wanted if key not in _OF_A_CELL and held[key] != wanted[key]]
        if changed:
            listed = "\n".join(f"  {key}: {held[key]!r} there, {wanted[key]!r} now" for key in changed)
            raise ValueError(
                f"{plan.out} holds another comparison; choose another --out, or take its settings:\n{listed}"
            )
        return
    if plan.out.exists() and any(entry.name != LOCK for entry in plan.out.iterdir()):
        raise ValueError(f"{plan.out} is not empty and holds no comparison; choose another folder with --out")
    from dotkd.checkpoint import write_atomically

    plan.out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, plan.config.to_yaml())


def rehearse(plan: Plan) -> None:
    """Builds what the runs will need, so that wrong input is told here and at once, before a folder is made.

    Raises whatever data, models and weights raise where they are missing or do not fit together.
    """
    from dotkd.trainer import Trainer

    for cell in {cell.method: cell for cell in plan.cells}.values():
        Trainer(_of_cell(plan.config, cell), plan.out, resuming=True)


def make_jobs(plan: Plan) -> list[Job]:
    """The runs that are still to be done, teacher first, then seed by seed, so that what is done stays balanced."""
    logs = plan.out / LOGS
    jobs: list[Job] = []
    if plan.teacher is not None and not is_finished(plan.teacher):
        config = plan.config
        epochs = config.teacher_epochs or config.epochs
        jobs.append(Job(TEACHER, plan.teacher, config.model_dump(), logs / "teacher.log", epochs))
    needs = TEACHER if jobs else None
    for seed in plan.seeds:
        for cell in plan.cells:
            directory = plan.directory(cell, seed)
            if not is_finished(directory):
                config = _cell_config(plan, cell, seed)
                log = logs / f"{cell.name}-seed-{seed}.log"
                jobs.append(Job(f"{cell.name} seed {seed}", directory, config.model_dump(), log, config.epochs, needs))
    return jobs


def work(job: Job) -> str:
    """Trains one run to its end, from its newest checkpoint where it has one. Runs in a worker process."""
    from dotkd.config import Config
    from dotkd.trainer import Diverged, Interrupted, Trainer, teacher_run

    config = Config(**job.config)
    started = (job.directory / "config.yaml").is_file()
    try:
        if job.name == TEACHER:
            teacher_run(config, job.directory)
        else:
            if started:
                _refuse_another(job.directory, config)
            Trainer(config, job.directory, resuming=started).fit()
    except Interrupted:
        return INTERRUPTED
    except Diverged:
        return "diverged"
    return read_run(job.directory).status


def default_workers(config: Config) -> int:
    """How many runs fit the machine: the cores by the threads of a run, or one where they use a GPU."""
    import torch

    if config.device != "cpu" and torch.cuda.is_available():
        return 1
    return max(1, _cores() // (config.threads or 1))


def rows_of(plan: Plan) -> list[Row]:
    """The table as far as the runs on disk go."""
    return make_rows(plan.cells, plan.runs())


def worst(endings: Iterable[Ending]) -> str | None:
    """The outcome that decides how the command ends: interrupted before failed before diverged; None if all is well."""
    outcomes = {ending.outcome for ending in endings}
    return next((word for word in (INTERRUPTED, "failed", "blocked") if word in outcomes), None)


def _cell_config(plan: Plan, cell: Cell, seed: int) -> Config:
    weights = plan.config.teacher_weights if plan.teacher is None else str(plan.teacher.resolve())
    return _of_cell(plan.config, cell).replace(seed=seed, teacher_weights=weights)


def _of_cell(config: Config, cell: Cell) -> Config:
    """The shared configuration with what the cell differs in."""
    options = config.method_options if cell.method == config.method else {}
    # What is said of the first method's loss says nothing of another's.
    forgotten: Sequence[str] = ()
    if cell.method == NO_DISTILLATION:
        forgotten = _OF_A_TEACHER
    elif cell.method != config.method:
        forgotten = _OF_A_METHOD
    other = dict.fromkeys(forgotten)
    return config.replace(**other, method=cell.method, method_options=options, trainer=cell.trainer)


def _cores() -> int:
    """The cores this process may use; in a container that is less than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")
    if limit.is_file():
        quota, _, period = limit.read_text().partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _refuse_another(directory: Path, config: Config) -> None:
    """Raises ValueError where the run in `directory` is not that of `config`; the folder as a whole may have moved."""
    from dotkd.config import Config

    held = Config.from_sources(directory / "config.yaml")
    if held.replace(teacher_weights=config.teacher_weights) != config:
        raise ValueError(f"{directory} holds a run of another configuration: move it away")


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
