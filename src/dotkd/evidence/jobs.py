"""Runs independent jobs in worker processes, and stops them so that nothing is lost.

Workers are spawned, one run at a time each, and reused, so that importing torch is paid once. What a job does
is the caller's: a picklable function of the job that returns a word for how it ended.

Signals. A worker lives in a process group of its own, so Ctrl-C in a terminal reaches the parent alone; the
parent sends each busy worker one SIGTERM, which a trainer answers by saving at the step boundary. A worker
whose parent has vanished (SIGKILL) sends itself the same signal. A worker that dies takes down its own job
and no other.

What a job prints goes to its log file, which is removed where it stays empty; a failed job leaves its
traceback there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

POLL_SECONDS = 0.25
FAILED = "failed"
INTERRUPTED = "interrupted"
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
    """A spawned process and the job it has in hand."""

    def __init__(self, work: Work, held: Path | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.link, other = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(other, work, held), daemon=False)
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

    def interrupt(self) -> None:
        if self.process.is_alive():
            self.process.terminate()

    def close(self) -> None:
        self.link.close()
        self.process.join()


def run_jobs(
    jobs: Sequence[Job],
    work: Work,
    *,
    workers: int,
    flag: StopFlag,
    started: Callable[[Job], None] = lambda job: None,
    ended: Callable[[Job, Ending], None] = lambda job, ending: None,
    tick: Callable[[], None] = lambda: None,
    held: Path | None = None,
) -> dict[str, Ending]:
    """Runs `jobs` in their order on up to `workers` processes and returns {job name: how it ended}.

    work: module-level function, called in the worker. tick: called every quarter second, for a display.
    flag: set by a signal: no job starts any more, those that run are asked to save; a second signal kills
    them. held: lock file that each worker holds open as long as it lives. Raises ValueError where `workers` <
    1.
    """
    if workers < 1:
        raise ValueError(f"expected at least one worker, got {workers}")
    waiting = list(jobs)
    pool: list[_Worker] = []
    endings: dict[str, Ending] = {}
    signalled = 0
    try:
        while True:
            if not flag.count:
                _start_ready(waiting, pool, endings, work, workers, held, started, ended)
            elif signalled < flag.count:
                _signal(pool, kill=flag.count > 1)
                signalled = flag.count
            busy = [worker for worker in pool if worker.job is not None]
            if not busy:
                break
            wait([worker.link for worker in busy], timeout=POLL_SECONDS)
            for worker in busy:
                ending = worker.collect()
                if ending is not None:
                    _finish(worker, ending, pool, endings, flag, ended)
            tick()
    finally:
        # After an error here the workers still get their signal, and with it the chance to save.
        _signal([worker for worker in pool if worker.job is not None], kill=False)
        for worker in pool:
            worker.close()
    return {job.name: endings.get(job.name, Ending(INTERRUPTED)) for job in jobs}


def _start_ready(
    waiting: list[Job],
    pool: list[_Worker],
    endings: dict[str, Ending],
    work: Work,
    workers: int,
    held: Path | None,
    started: Callable[[Job], None],
    ended: Callable[[Job, Ending], None],
) -> None:
    """Hands waiting jobs to free workers, in order, passing over those whose need has not ended yet."""
    for job in list(waiting):
        need = None if job.needs is None else endings.get(job.needs)
        if need is not None and need.outcome != "done":
            waiting.remove(job)
            endings[job.name] = Ending(BLOCKED, f"it needs {job.needs}, which {need.outcome}")
            ended(job, endings[job.name])
        elif job.needs is None or need is not None:
            free = next((worker for worker in pool if worker.job is None), None)
            if free is None and len(pool) < workers:
                free = _Worker(work, held)
                pool.append(free)
            if free is None:
                return
            waiting.remove(job)
            free.give(job)
            started(job)


def _finish(
    worker: _Worker,
    ending: Ending,
    pool: list[_Worker],
    endings: dict[str, Ending],
    flag: StopFlag,
    ended: Callable[[Job, Ending], None],
) -> None:
    job = worker.job
    assert job is not None
    worker.job = None
    if ending.outcome == FAILED:
        worker.close()
        pool.remove(worker)
        if flag.count:  # it was told to stop before it had anything to save
            ending = Ending(INTERRUPTED)
    endings[job.name] = ending
    ended(job, ending)


def _signal(pool: Sequence[_Worker], *, kill: bool) -> None:
    for worker in pool:
        if kill:
            worker.process.kill()
        else:
            worker.interrupt()


def _death(code: int | None, job: Job | None) -> str:
    """Why a worker died: the last line of its log, or the signal that took it."""
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    lines: list[str] = []
    if job is not None and job.log.is_file():
        lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its process ended with exit code {code}"


class _Stop(BaseException):
    """SIGTERM outside a trainer, where there is nothing to save: leave at once."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stop


def _serve(link: Connection[str, Job], work: Work, held: Path | None) -> None:
    """A worker's life: take a job, do it, say how it ended; until the pipe closes or a signal comes."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        with _holding(held):
            while True:
                job = link.recv()
                with _logged(job.log):
                    outcome = work(job)
                link.send(outcome)
                if outcome == INTERRUPTED:
                    return
    except (EOFError, BrokenPipeError, ConnectionResetError, _Stop):
        return


def _follow_parent() -> None:
    """Turns the death of the parent into the signal that makes the trainer save."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _holding(path: Path | None) -> Generator[None, None, None]:
    if path is None:
        yield
        return
    from dotkd.evidence.lock import shared

    with shared(path):
        yield


@contextmanager
def _logged(path: Path) -> Generator[None, None, None]:
    """Sends file descriptors 1 and 2 to `path`, so that the parent's terminal stays its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = os.dup(1), os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    # Left open on an error: the interpreter's own traceback, printed as the process dies, belongs in the log.
    yield
    sys.stdout.flush()
    sys.stderr.flush()
    for kept, number in zip(saved, (1, 2), strict=True):
        os.dup2(kept, number)
        os.close(kept)
    if path.stat().st_size == 0:
        path.unlink()
