"""torch's profiler without its announcements."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch.profiler import ProfilerActivity, profile


@contextmanager
def recorded(*activities: ProfilerActivity, **options: Any) -> Generator[profile, None, None]:
    """What happens meanwhile, of the kinds `activities` (CPU unless given); options are those of the profiler."""
    profiler = profile(activities=activities or (ProfilerActivity.CPU,), **options)
    with _standard_error_closed():
        profiler.start()
    try:
        yield profiler
    finally:
        with _standard_error_closed():
            profiler.stop()


@contextmanager
def _standard_error_closed() -> Generator[None, None, None]:
    """Some builds of torch's profiler announce their start and end on stderr, past Python and without a switch."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
