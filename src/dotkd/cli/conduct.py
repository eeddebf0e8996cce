"""Carries out a plan in front of the user: workers, progress, results, exit code."""

from __future__ import annotations

from contextlib import suppress

from dotkd.cli import campaign, failures
from dotkd.cli.campaign import Plan
from dotkd.cli.console import progress, say
from dotkd.cli.outcome import publish
from dotkd.cli.watch import Watch
from dotkd.evidence.jobs import INTERRUPTED, Ending, StopFlag, run_jobs
from dotkd.evidence.lock import alone
from dotkd.evidence.runs import is_finished, read_run


def conduct(plan: Plan, workers: int | None) -> None:
    """Runs what is still to be run and reports; raises typer.Exit where that did not all go well.

    Raises ValueError for a folder that holds something else or is in use.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"expected --jobs of at least 1, got {workers}")
    if campaign.make_jobs(plan):
        campaign.rehearse(plan)
    campaign.claim(plan)
    remarks = progress()
    lock = plan.out / campaign.LOCK

    def waiting() -> None:
        say(remarks, f"waiting for the workers of another comparison in {plan.out} to save and end")

    _refuse_diverged_teacher(plan)
    with StopFlag().caught() as flag, alone(lock, waiting=waiting):
        jobs = campaign.make_jobs(plan)
        total = len(plan.cells) * len(plan.seeds) + (plan.teacher is not None)
        count = workers if workers is not None else campaign.default_workers(plan.config)
        if len(jobs) < total:
            say(remarks, f"{total - len(jobs)} of {total} runs in {plan.out} are finished already")
        with Watch(remarks, jobs, lambda: campaign.rows_of(plan)) as watch:
            endings = run_jobs(
                jobs,
                campaign.work,
                workers=count,
                flag=flag,
                started=watch.started,
                ended=watch.ended,
                tick=watch.tick,
                held=lock,
            )
    with suppress(OSError):
        (plan.out / campaign.LOGS).rmdir()  # where nothing was printed
    outcome = campaign.worst(endings.values())
    if outcome == INTERRUPTED:
        done = sum(ending.outcome in ("done", "diverged") for ending in endings.values()) + total - len(jobs)
        raise failures.leave(
            failures.INTERRUPTED,
            f"interrupted: {done} of {total} runs are finished, the others will continue from their checkpoints: "
            "give the same command again",
        )
    _refuse_diverged_teacher(plan)
    publish(plan)
    if outcome is not None:
        raise failures.leave(failures.FAILURE, _failures(endings))
    if all(run.diverged for ended in plan.runs().values() for run in ended):
        raise failures.leave(failures.DIVERGED, "every run diverged")


def _refuse_diverged_teacher(plan: Plan) -> None:
    if plan.teacher is not None and is_finished(plan.teacher) and read_run(plan.teacher).diverged:
        told = (
            f"the teacher diverged ({plan.teacher}), nothing is to be learnt from it: lower teacher_lr, in a new folder"
        )
        raise failures.leave(failures.DIVERGED, told)


def _failures(endings: dict[str, Ending]) -> str:
    bad = [f"  {name}: {e.outcome}: {e.reason}" for name, e in endings.items() if e.outcome in ("failed", "blocked")]
    return f"{len(bad)} of the runs did not end (the same command tries them again):\n" + "\n".join(bad)
