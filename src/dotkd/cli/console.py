"""Where the command line writes: results to stdout, progress to stderr, both plain where nobody watches."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

# A pipe has no width; anything wider than every table keeps rich from folding them at 80 columns.
_PIPE_WIDTH = 240


def results() -> Console:
    """The console for results, on stdout."""
    return _console(stderr=False)


def progress() -> Console:
    """The console for progress and remarks, on stderr."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, markup=False, width=_PIPE_WIDTH, color_system=None)
    return console


def table(console: Console, *headers: str) -> Table:
    """An empty table whose first column is text and whose others are numbers; Markdown in a pipe."""
    made = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else box.MARKDOWN,
        padding=(0, 1) if not console.is_terminal else (0, 1, 0, 0),
        pad_edge=not console.is_terminal,
    )
    for position, header in enumerate(headers):
        made.add_column(header, justify="left" if position == 0 else "right", overflow="fold")
    return made


def say(console: Console, line: str) -> None:
    """A line of text as it is, broken by the terminal alone."""
    console.print(line, soft_wrap=True)
