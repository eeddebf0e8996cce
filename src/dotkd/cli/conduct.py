"""Carries out a plan in front of the user: workers, progress, results, exit code."""

from __future__ import annotations

from contextlib import suppress

from dotkd.cli import failures, layout
from dotkd.cli import work as runs
from dotkd.cli.campaign import Plan
from dotkd.cli.console import progress, say
from dotkd.cli.outcome import publish
from dotkd.cli.places import default_workers, gpus_at_hand, places
from dotkd.cli.watch import Watch
from dotkd.evidence.comparison import Row
from dotkd.evidence.jobs import INTERRUPTED, Ending, Job, StopFlag, run_jobs
from dotkd.evidence.lock import alone
from dotkd.evidence.runs import is_finished


def conduct(plan: Plan, workers: int | None) -> None:
    """Runs what is still to be run and reports; raises typer.Exit where that did not all go well.

    Raises ValueError for a folder that holds something else or is in use.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"expected --jobs of at least 1, got {workers}")
    if runs.make_jobs(plan):
        runs.rehearse(plan)
    layout.claim(plan)
    remarks = progress()
    lock = plan.out / layout.LOCK

    def waiting() -> None:
        say(remarks, f"waiting for the workers of another comparison in {plan.out} to save and end")

    with StopFlag().caught() as flag, alone(lock, waiting=waiting):
        jobs = runs.make_jobs(plan)
        total = len(runs.directories(plan)) + len(plan.teachers)
        finished = sum(is_finished(path) for path in [*runs.directories(plan), *(t.path for t in plan.teachers)])
        configs, gpus = [setting.config for setting in plan.settings], gpus_at_hand()
        if finished:
            say(remarks, f"{finished} of {total} runs in {plan.out} are finished already")
        with Watch(remarks, jobs, lambda job: _so_far(plan, job)) as watch:
            endings = run_jobs(
                jobs,
                runs.work,
                workers=workers if workers is not None else default_workers(configs, gpus),
                flag=flag,
                started=watch.started,
                ended=watch.ended,
                tick=watch.tick,
                held=lock,
                places=places(configs, gpus),
            )
    with suppress(OSError):
        (plan.out / layout.LOGS).rmdir()  # where nothing was printed
    outcome = runs.worst(endings.values())
    if outcome == INTERRUPTED:
        done = sum(ending.outcome in ("done", "diverged") for ending in endings.values()) + finished
        raise failures.leave(
            failures.INTERRUPTED,
            f"interrupted: {done} of {total} runs are finished, the others will continue from their checkpoints: "
            "give the same command again",
        )
    lost = [str(path) for path in runs.lost_teachers(plan)]
    told = (
        f"the teacher diverged ({', '.join(lost)}), nothing is to be learnt from it: lower teacher_lr, in a new folder"
    )
    if lost and not any(is_finished(path) for path in runs.directories(plan)):
        raise failures.leave(failures.DIVERGED, told)
    evidence = publish(plan)
    if outcome == "failed" or (outcome and not lost):
        raise failures.leave(failures.FAILURE, _failures(endings))
    if lost:
        raise failures.leave(failures.DIVERGED, told)
    if all(run.diverged for table in evidence.tables for ended in table.runs.values() for run in ended):
        raise failures.leave(failures.DIVERGED, "every run diverged")


def _so_far(plan: Plan, job: Job) -> list[Row]:
    """The table of the setting that `job` belongs to; [] for a teacher's."""
    own = (setting for setting in plan.settings if setting.directory == job.directory.parent.parent)
    return [row for setting in own for row in plan.table(setting).rows] if job.directory.name != layout.TEACHER else []


def _failures(endings: dict[str, Ending]) -> str:
    bad = [f"  {name}: {e.outcome}: {e.reason}" for name, e in endings.items() if e.outcome in ("failed", "blocked")]
    return f"{len(bad)} of the runs did not end (the same command tries them again):\n" + "\n".join(bad)
