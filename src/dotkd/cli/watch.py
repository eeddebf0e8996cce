"""How far a comparison is: one bar for all runs in a terminal, one line for each run that ends elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from dotkd.cli.console import say
from dotkd.cli.tables import short_means
from dotkd.evidence.comparison import Row
from dotkd.evidence.jobs import FAILED, INTERRUPTED, Ending, Job
from dotkd.evidence.runs import epochs_done, read_run

_REFRESH_SECONDS = 1.0


class Watch:
    """Follows jobs through their run folders. Their size is in epochs; `rows` gives what a job's setting has so far.

    done: what is said of a run that ended well; None: its accuracy on the test split.
    """

    def __init__(
        self,
        console: Console,
        jobs: Sequence[Job],
        rows: Callable[[Job], Sequence[Row]],
        done: Callable[[Job], str] | None = None,
    ) -> None:
        self._console = console
        self._rows = rows
        self._done = done or _test_accuracy
        self._epochs = {job.name: job.size for job in jobs}
        self._running: dict[str, Job] = {}
        self._ended: set[str] = set()
        self._next_look = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(self._counted(), total=sum(self._epochs.values()) or 1)
        self._means = Text("", no_wrap=False)
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(Group(self._bar, self._means), console=console, refresh_per_second=4)

    def __enter__(self) -> Watch:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._look()
            self._live.stop()

    def started(self, job: Job) -> None:
        """A worker took `job`."""
        self._running[job.name] = job

    def ended(self, job: Job, ending: Ending) -> None:
        """`job` is over, one way or another."""
        self._running.pop(job.name, None)
        if ending.outcome != INTERRUPTED:
            self._ended.add(job.name)
        line = f"{self._counted()}  {job.name}: {self._told(job, ending)}"
        if self._live is None:
            cell = job.directory.parent.name
            own = [row for row in self._rows(job) if row.cell.name == cell and row.val_selected.n > 1]
            say(self._console, f"{line}; so far {short_means(own)} (n = {own[0].val_selected.n})" if own else line)
        else:
            if ending.outcome != "done":
                say(self._console, line)
            # Several settings at once would fill the screen: that of the run which ended last.
            setting, colon, _ = job.name.rpartition(": ")
            self._means.plain = setting + colon + short_means(self._rows(job))
            self._look()

    def tick(self) -> None:
        """Looks at the run folders, at most once a second."""
        if self._live is not None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _REFRESH_SECONDS
            self._look()

    def _look(self) -> None:
        done = sum(self._epochs[name] for name in self._ended)
        done += sum(min(epochs_done(job.directory), self._epochs[job.name]) for job in self._running.values())
        now = ", ".join(self._running)
        self._bar.update(self._task, completed=done, description=f"{self._counted()} {now}".rstrip())

    def _told(self, job: Job, ending: Ending) -> str:
        if ending.outcome == "done":
            return self._done(job)
        told = f"{ending.outcome}: {ending.reason}" if ending.reason else ending.outcome
        return f"{told} (see {job.log})" if ending.outcome == FAILED and job.log.is_file() else told

    def _counted(self) -> str:
        return f"{len(self._ended)}/{len(self._epochs)} runs"


def _test_accuracy(job: Job) -> str:
    run = read_run(job.directory)
    accuracy = "-" if run.selected is None else f"{100 * run.selected:.2f} %"
    return f"test accuracy {accuracy}" + ("" if run.seconds is None else f", {run.seconds:.1f} s")
