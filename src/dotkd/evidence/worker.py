"""The worker's side of `jobs`: takes a job from a pipe, does it, says how it ended, until the pipe closes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from dotkd.evidence.lock import shared

if TYPE_CHECKING:
    from dotkd.evidence.jobs import Job

INTERRUPTED = "interrupted"


class _Stop(BaseException):
    """SIGTERM outside a trainer, where there is nothing to save: leave at once."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stop


def serve(link: Connection[str, Job], work: Callable[[Job], str], held: Path | None, place: Mapping[str, str]) -> None:
    """The life of a worker process; `held` is a lock file to hold for as long as it lasts, `place` what to add to the
    environment before anything has looked for a GPU."""
    os.environ.update(place)
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
