"""One command in several processes, as torchrun starts them: one of them speaks, and says once what went wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import typer

from dotkd.cli import failures

TOGETHER = ("train", "resume")  # the verbs that several processes carry out as one
_WORD = 2.0  # seconds for the one that speaks, before the launcher sees a process end and ends them all


@contextmanager
def joined() -> Generator[None, None, None]:
    """Within, the processes of a launcher work together, and all but the main one are silent.

    Of an error only the first process that meets it keeps it; the others end by its exit code.
    """
    if "WORLD_SIZE" not in os.environ:  # nobody started several, and `dotkd --help` need not wait for torch
        yield
        return
    from dotkd import distributed

    with distributed.process_group():
        try:
            if distributed.is_main():
                yield
            else:
                with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
                    yield
        except typer.Exit:
            # An ending that all agree on. torchrun sees one of them go first and ends the others, but they are to go by
            # their own exit code, and the main one when it has said why.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            distributed.gathered(None)
            raise
        except Exception as error:
            if distributed.first_to_fail(error):
                raise
            time.sleep(_WORD)
            raise typer.Exit(failures.exit_code(error) or failures.FAILURE) from None


def refuse_several(verb: str | None) -> None:
    """Raise ValueError where a launcher started several processes for a verb that one process carries out."""
    if verb is None or verb in TOGETHER or "WORLD_SIZE" not in os.environ:
        return
    from dotkd import distributed

    if distributed.size() > 1:
        raise ValueError(
            f"`dotkd {verb}` is for one process, and was started as {distributed.size()}: start it without torchrun "
            f"({' and '.join(TOGETHER)} take several)"
        )
