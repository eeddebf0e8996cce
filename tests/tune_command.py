"""What the tests of `dotkd tune` share: the command, runs without processes, a configuration in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import tiny_runs
from dotkd.cli import app
from dotkd.evidence.jobs import INTERRUPTED, Ending, Job, Work

Tell = Callable[..., Any]


def dotkd(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command, run in this process."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def run_here(
    jobs: Sequence[Job], work: Work, *, prepared: Tell, started: Tell, ended: Tell, **_: object
) -> dict[str, Ending]:
    """Stands for `run_jobs` without its processes, which take seconds to start."""
    endings = {job.name: Ending(INTERRUPTED) for job in jobs}
    for job in map(prepared, jobs):
        started(job)
        endings[job.name] = Ending(work(job))
        ended(job, endings[job.name])
        if endings[job.name].outcome == INTERRUPTED:
            break
    return endings


def write_mine() -> str:
    """A configuration whose teacher is given, as a file in the working directory."""
    here = Path.cwd()
    given = tiny_runs.given_teacher(here)
    config = tiny_runs.tiny(tiny_runs.vectors(here), **given, student="tiny_runs:dropout", student_options={})
    Path("mine.yaml").write_text(config.to_yaml())
    return "mine.yaml"


def tuned(out: str | Path) -> dict[str, Any]:
    """What tune.json holds."""
    return json.loads(Path(out, "tune.json").read_text())
