"""Which errors are answered with a message, which with a traceback, and the exit code of each.

A message is meant for the user where this package wrote it: the exception is one of its own, or a `raise` statement in
its own source raised it. What Python or a library raises by itself is a bug (here, or in the user's own model) and
keeps its traceback, as everything does under --debug or DOTKD_TRACEBACK=1.
"""

from __future__ import annotations

import dis
import os
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType

import typer

FAILURE, WRONG_INPUT, DIVERGED, INTERRUPTED, NOTHING_SAVED = 1, 2, 3, 75, 130

# By name: importing their modules here would import torch for `dotkd --help`.
_OWN = {
    "Interrupted": INTERRUPTED,
    "Diverged": DIVERGED,
    "CheckpointError": FAILURE,
    "CacheError": FAILURE,
    "PeerLost": FAILURE,
}
_WRITTEN_FOR_USERS = (ValueError, TypeError, OSError)
_RAISE = dis.opmap["RAISE_VARARGS"]


@contextmanager
def reported(*, debug: bool) -> Generator[None, None, None]:
    """Turns the errors that are meant for the user into one message on stderr and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(NOTHING_SAVED) from None
    except (RuntimeError, ImportError, *_WRITTEN_FOR_USERS) as error:
        code = exit_code(error)
        if code is None or debug or os.environ.get("DOTKD_TRACEBACK", "") not in ("", "0"):
            raise
        typer.echo(f"dotkd: {_text(error)}", err=True)
        raise typer.Exit(code) from None


def exit_code(error: BaseException) -> int | None:
    """The exit code of an error that is meant for the user, None for one that should keep its traceback."""
    for kind in type(error).__mro__:
        if kind.__module__.partition(".")[0] == "dotkd" and kind.__name__ in _OWN:
            return _OWN[kind.__name__]
    if isinstance(error, BrokenPipeError):
        return None
    if isinstance(error, OSError) and error.filename is not None:
        # The system's own words name the file: full disk, no permission, not a folder.
        return FAILURE if not isinstance(error, FileNotFoundError) else WRONG_INPUT
    if not _raised_by_us(error.__traceback__):
        return None
    if isinstance(error, ImportError):
        return FAILURE
    return WRONG_INPUT if isinstance(error, _WRITTEN_FOR_USERS) else None


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _raised_by_us(trace: TracebackType | None) -> bool:
    """Whether a `raise` statement of this package is where the error began."""
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", ""))
    code = trace.tb_frame.f_code.co_code
    return module.partition(".")[0] == "dotkd" and code[trace.tb_lasti] == _RAISE


def leave(code: int, message: str) -> typer.Exit:
    """The exception that ends a verb with `code` after saying `message` on stderr."""
    typer.echo(message, err=True)
    return typer.Exit(code)
