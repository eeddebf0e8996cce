"""Runs independent jobs in worker processes, and stops them so that nothing is lost.

Workers are spawned, one run at a time each, and reused, so that importing torch is paid once. What a job does
is the caller's: a picklable function of the job that returns a word for how it ended.

Signals. A worker lives in a process group of its own, so Ctrl-C in a terminal reaches the parent alone; the
parent sends each busy worker one SIGTERM, which a trainer answers by saving at the step boundary. A worker
whose parent has vanished (SIGKILL) sends itself the same signal. A worker that dies takes down its own job
and no other.

Places. Workers may be spread evenly over places, environment variables each, such as the one GPU a worker is to see.

What a job prints goes to its log file, which is removed where it stays empty; a failed job leaves its
traceback there.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from dotkd.evidence.worker import INTERRUPTED, serve

POLL_SECONDS = 0.25
FAILED = "failed"
BLOCKED = "blocked"


class Job(NamedTuple):
    """One run. name: unique; directory: the run folder; config: for the work function; log: file for its output.

    size: its length against the others, in any unit. needs: name of a job that must have ended in "done" before.
    """

    name: str
    directory: Path
    config: dict[str, Any]
    log: Path
    size: int = 1
    needs: str | None = None


class Ending(NamedTuple):
    """The word its work function returned, or failed, interrupted, blocked; and why, where known."""

    outcome: str
    reason: str = ""


Work = Callable[[Job], str]
Place = Mapping[str, str]


class StopFlag:
    """Set by SIGINT or SIGTERM while `caught()` is open; `count` tells a second signal from the first."""

    def __init__(self) -> None:
        self.count = 0

    def _set(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1

    @contextmanager
    def caught(self) -> Generator[StopFlag, None, None]:
        """Installs the handlers and restores those before; outside the main thread it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._set) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Worker:
    """A spawned process, the place it has been given, and the job it has in hand."""

    def __init__(self, work: Work, held: Path | None, place: Place) -> None:
        context = multiprocessing.get_context("spawn")
        self.place = place
        self.link, other = context.Pipe()
        self.process: SpawnProcess = context.Process(target=serve, args=(other, work, held, dict(place)), daemon=False)
        self.process.start()
        other.close()
        self.job: Job | None = None

    def give(self, job: Job) -> None:
        self.job = job
        # One that died while idle cannot take it: `collect` then reports that, with the exit code.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.link.send(job)

    def collect(self) -> Ending | None:
        """The ending of the job in hand, None while it runs."""
        if not self.link.poll():
            return None
        try:
            return Ending(self.link.recv())
        except (EOFError, ConnectionResetError):
            self.process.join()
            return Ending(FAILED, _death(self.process.exitcode, self.job))

    def close(self) -> None:
        self.link.close()
        self.process.join()


class _Crew:
    """The workers, the jobs that wait for one, and how the others ended."""

    def __init__(self, jobs: Sequence[Job], work: Work, size: int, held: Path | None, places: Sequence[Place]) -> None:
        self.waiting = list(jobs)
        self.endings: dict[str, Ending] = {}
        self._work, self._size, self._held, self._places = work, size, held, places
        self._workers: list[_Worker] = []

    @property
    def busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.job is not None]

    def start(self, prepared: Callable[[Job], Job]) -> tuple[list[Job], list[Job]]:
        """Hands out jobs, in order, passing over those whose need runs still; returns (started, blocked)."""
        started: list[Job] = []
        blocked: list[Job] = []
        for job in list(self.waiting):
            need = None if job.needs is None else self.endings.get(job.needs)
            if need is not None and need.outcome != "done":
                self.waiting.remove(job)
                self.endings[job.name] = Ending(BLOCKED, f"it needs {job.needs}, which {need.outcome}")
                blocked.append(job)
            elif job.needs is None or need is not None:
                worker = self._free()
                if worker is None:
                    break
                self.waiting.remove(job)
                worker.give(prepared(job))
                started.append(job)
        return started, blocked

    def collect(self, *, stopping: bool) -> list[Job]:
        """Waits a moment for jobs to end; returns those that did."""
        ended: list[Job] = []
        wait([worker.link for worker in self.busy], timeout=POLL_SECONDS)
        for worker in self.busy:
            job, ending = worker.job, worker.collect()
            if job is None or ending is None:
                continue
            worker.job = None
            if ending.outcome == FAILED:
                worker.close()
                self._workers.remove(worker)
                if stopping:  # it was told to stop before it had anything to save
                    ending = Ending(INTERRUPTED)
            self.endings[job.name] = ending
            ended.append(job)
        return ended

    def signal(self, *, kill: bool) -> None:
        """SIGTERM to every busy worker, or SIGKILL."""
        for worker in self.busy:
            if kill:
                worker.process.kill()
            elif worker.process.is_alive():
                worker.process.terminate()

    def close(self) -> None:
        """Ends the idle workers, and the busy ones as soon as they have saved."""
        self.signal(kill=False)
        for worker in self._workers:
            worker.close()

    def _free(self) -> _Worker | None:
        for worker in self._workers:
            if worker.job is None:
                return worker
        if len(self._workers) == self._size:
            return None
        taken = [worker.place for worker in self._workers]
        emptiest = min(self._places, key=taken.count)
        self._workers.append(_Worker(self._work, self._held, emptiest))
        return self._workers[-1]


def run_jobs(
    jobs: Sequence[Job],
    work: Work,
    *,
    workers: int,
    flag: StopFlag,
    prepared: Callable[[Job], Job] = lambda job: job,
    started: Callable[[Job], None] = lambda job: None,
    ended: Callable[[Job, Ending], None] = lambda job, ending: None,
    tick: Callable[[], None] = lambda: None,
    held: Path | None = None,
    places: Sequence[Place] = ({},),
) -> dict[str, Ending]:
    """Runs `jobs` in their order on up to `workers` processes and returns {job name: how it ended}.

    work: module-level function, called in the worker. prepared: what a job becomes the moment it is handed out, when
    all that ended before has been told to `ended`; its name stays. tick: called every quarter second, for a display.
    flag: set by a signal: no job starts any more, those that run are asked to save; a second signal kills them.
    held: lock file that each worker holds as long as it lives. places: the environment variables of each place that
    workers are spread over. Raises ValueError where `workers` < 1.
    """
    if workers < 1:
        raise ValueError(f"expected at least one worker, got {workers}")
    crew = _Crew(jobs, work, workers, held, places)
    signalled = 0
    try:
        while True:
            if not flag.count:
                begun, blocked = crew.start(prepared)
                for job in begun:
                    started(job)
                for job in blocked:
                    ended(job, crew.endings[job.name])
            elif signalled < flag.count:
                crew.signal(kill=flag.count > 1)
                signalled = flag.count
            if not crew.busy:
                break
            for job in crew.collect(stopping=flag.count > 0):
                ended(job, crew.endings[job.name])
            tick()
    finally:
        crew.close()
    return {job.name: crew.endings.get(job.name, Ending(INTERRUPTED)) for job in jobs}


def _death(code: int | None, job: Job | None) -> str:
    """Why a worker died: the last line of its log, or the signal that took it."""
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    lines: list[str] = []
    if job is not None and job.log.is_file():
        lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its process ended with exit code {code}"
