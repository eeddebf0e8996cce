"""One comparison at a time in a folder, its workers included.

The command holds the lock file shared, after having had it alone for a moment; each worker holds it shared as
long as it lives. So a command that is started while the workers of a killed one are still saving waits for
them, instead of writing into the same run folders. Where the system has no flock (Windows), nothing is
locked.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

_RETRY_SECONDS = 0.2


@contextmanager
def alone(
    path: Path, *, patience: float = 60.0, waiting: Callable[[], None] = lambda: None
) -> Generator[None, None, None]:
    """Holds `path`, once nobody else does. Waits up to `patience` seconds for that, then ValueError.

    waiting: called once, where it has to wait.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("a") as file:
        deadline = None
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline is None:
                    waiting()
                    deadline = time.monotonic() + patience
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"{path.parent} is in use by a comparison that has not ended; wait for it or stop it"
                    ) from None
                time.sleep(_RETRY_SECONDS)
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def shared(path: Path) -> Generator[None, None, None]:
    """Holds `path` beside others that hold it shared."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield
