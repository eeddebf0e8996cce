"""Carries out a tuning in front of the user: teacher, trials, final test, exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from dotkd.cli import failures
from dotkd.cli import work as runs
from dotkd.cli.console import progress, results, say
from dotkd.cli.layout import LOCK, LOGS, TEACHER
from dotkd.cli.places import default_workers, gpus_at_hand, places
from dotkd.cli.tune_outcome import publish
from dotkd.cli.watch import Watch
from dotkd.evidence.jobs import INTERRUPTED, Ending, Job, StopFlag, run_jobs
from dotkd.evidence.lock import alone
from dotkd.evidence.runs import is_finished, read_evaluations, read_run
from dotkd.tuning.protocol import Protocol, claim, lines
from dotkd.tuning.study import Study, best_of

PRUNED = "pruned"


def conduct(protocol: Protocol, final_seeds: int, workers: int | None, command: str) -> None:
    """Makes the trials that are still to be made, tests the best ones and reports.

    command: the words that this was started by, without the final test's.
    Raises ValueError for a folder that holds something else or is in use, typer.Exit where not all went well.
    """
    samples = _rehearse(protocol)
    claim(protocol)
    out, remarks = results(), progress()
    say(out, f"tuning {', '.join(protocol.configs)} on {protocol.name}; protocol:")
    for line in lines(protocol, samples):
        say(out, f"- {line}")
    lock = protocol.out / LOCK
    configs, gpus = list(protocol.configs.values()), gpus_at_hand()

    def waiting() -> None:
        say(remarks, f"waiting for the workers of another tuning in {protocol.out} to save and end")

    def run(jobs: Sequence[Job], done: Callable[[Job], str] | None, prepared: _Say, ended: _Told) -> dict[str, Ending]:
        with Watch(remarks, jobs, lambda job: (), done) as watch:

            def both(job: Job, ending: Ending) -> None:
                ended(job, ending)
                watch.ended(job, ending)

            return run_jobs(
                jobs,
                work,
                workers=default_workers(configs, gpus) if workers is None else workers,
                flag=flag,
                prepared=prepared,
                started=watch.started,
                ended=both,
                tick=watch.tick,
                held=lock,
                places=places(configs, gpus),
            )

    _refuse_diverged_teacher(protocol)
    with StopFlag().caught() as flag, alone(lock, waiting=waiting):
        studies = {trainer: Study(protocol, trainer) for trainer in protocol.configs}
        jobs = _trial_jobs(protocol, studies)
        trials = protocol.trials * len(studies)
        if made := trials - sum(job.name != TEACHER for job in jobs):
            say(remarks, f"{made} of {trials} trials in {protocol.out} have ended already")

        def begin(job: Job) -> Job:
            return _begin(protocol, studies, job)

        def end(job: Job, ending: Ending) -> None:
            if job.name != TEACHER and ending.outcome in ("done", PRUNED, "diverged"):
                studies[job.config["trainer"]].end(job.config["number"], ending.outcome)

        endings = run(jobs, _validation_accuracy, begin, end)
        failed = {job.name: endings[job.name] for job in jobs if endings[job.name].outcome in ("failed", "blocked")}
        records = {trainer: study.records() for trainer, study in studies.items()}
        if runs.worst(endings.values()) is None and final_seeds:
            best = {trainer: found for trainer in studies if (found := best_of(records[trainer]))}
            finals = _final_jobs(protocol, {name: record.params for name, record in best.items()}, final_seeds)
            endings |= run(finals, None, lambda job: job, lambda job, ending: None)
    with suppress(OSError):
        (protocol.out / LOGS).rmdir()  # where nothing was printed
    if runs.worst(endings.values()) == INTERRUPTED:
        ended = sum(record.state != "open" for found in records.values() for record in found)
        told = f"interrupted: {ended} of {trials} trials have ended; what was running continues from its checkpoint"
        raise failures.leave(failures.INTERRUPTED, f"{told}: give the same command again")
    _refuse_diverged_teacher(protocol)
    publish(protocol, records, samples, failed=failed.keys(), seeds=_seeds(protocol, final_seeds), command=command)
    if bad := [f"  {name}: {e.outcome}: {e.reason}" for name, e in endings.items() if e.outcome in _BAD]:
        told = f"{len(bad)} of the runs did not end (the same command tries them again):\n"
        raise failures.leave(failures.FAILURE, told + "\n".join(bad))
    if none := [trainer for trainer, found in records.items() if best_of(found) is None]:
        raise failures.leave(failures.DIVERGED, f"every trial of {', '.join(none)} diverged")


_BAD = ("failed", "blocked")
_Say = Callable[[Job], Job]
_Told = Callable[[Job, Ending], None]


def work(job: Job) -> str:
    """Trains one run to its end, or a trial until it is pruned. Runs in a worker process."""
    if "trial" not in job.config:
        return runs.work(job)
    from dotkd.tuning.trial import Pruned, Reporter

    given = job.config
    reporter = Reporter(
        given["out"], given["trainer"], given["trial"], first_pruning=given["first_pruning"], epochs=job.size
    )
    try:
        return runs.work(job._replace(config=given["config"]), reporter)
    except Pruned:
        return PRUNED


def _rehearse(protocol: Protocol) -> int:
    """Builds what the runs will need, so that wrong input is told at once; returns the validation split's size.

    Raises whatever data, models and weights raise where they are missing or do not fit together.
    """
    from dotkd.trainer import Trainer

    samples = 0
    for config in protocol.configs.values():
        dataset = Trainer(config, protocol.out, resuming=True).dataset
        assert dataset.val is not None  # with `validation` > 0
        samples = len(dataset.val.targets)
    return samples


def _trial_jobs(protocol: Protocol, studies: dict[str, Study]) -> list[Job]:
    """The trials that have not ended, trainers in turns, so that what is done stays balanced; the teacher first."""
    config, logs = protocol.config, protocol.out / LOGS
    ended = {
        (trainer, record.number)
        for trainer in studies
        for record in studies[trainer].records()
        if record.state != "open"
    }
    open_ones = [(n, name) for n in range(protocol.trials) for name in studies if (name, n) not in ended]
    jobs: list[Job] = []
    if open_ones and protocol.teacher is not None and not is_finished(protocol.teacher):
        epochs = config.teacher_epochs or config.epochs
        jobs.append(Job(TEACHER, protocol.teacher, config.model_dump(), logs / "teacher.log", epochs))
    needs = TEACHER if jobs else None
    for number, trainer in open_ones:
        directory = protocol.out / trainer / f"trial-{number:04d}"
        given = {"trainer": trainer, "number": number}
        log = logs / f"{trainer}-trial-{number:04d}.log"
        jobs.append(Job(f"{trainer} trial {number}", directory, given, log, config.epochs, needs))
    return jobs


def _begin(protocol: Protocol, studies: dict[str, Study], job: Job) -> Job:
    """The job of a trial with its parameters, which are drawn only now: from all trials that have ended."""
    if job.name == TEACHER:
        return job
    trainer = job.config["trainer"]
    trial, params = studies[trainer].begin(job.config["number"])
    config = protocol.configured(trainer, params).model_dump()
    more = {"out": protocol.out, "trial": trial, "config": config, "first_pruning": protocol.first_pruning}
    return job._replace(config={**job.config, **more})


def _seeds(protocol: Protocol, count: int) -> list[int]:
    """Those of the final test: none is the one that the trials were chosen with."""
    return [protocol.config.seed + 1 + k for k in range(count)]


def _final_jobs(protocol: Protocol, best: dict[str, dict[str, float | None]], seeds: int) -> list[Job]:
    jobs: list[Job] = []
    for seed in _seeds(protocol, seeds):
        for trainer, params in best.items():
            directory = protocol.out / "final" / trainer / f"seed-{seed}"
            if not is_finished(directory):
                config = protocol.configured(trainer, params, seed=seed)
                log = protocol.out / LOGS / f"final-{trainer}-seed-{seed}.log"
                jobs.append(Job(f"final {trainer} seed {seed}", directory, config.model_dump(), log, config.epochs))
    return jobs


def _validation_accuracy(job: Job) -> str:
    if job.name == TEACHER:
        return "trained"
    last = read_evaluations(job.directory)[-1]
    return f"validation accuracy {100 * (last.val.accuracy or 0.0):.2f} %"


def _refuse_diverged_teacher(protocol: Protocol) -> None:
    teacher = protocol.teacher
    if teacher is not None and is_finished(teacher) and read_run(teacher).diverged:
        told = f"the teacher diverged ({teacher}), nothing is to be learnt from it: lower teacher_lr, in a new folder"
        raise failures.leave(failures.DIVERGED, told)
