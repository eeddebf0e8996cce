"""`dotkd report`: one HTML page on runs, comparisons and tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dotkd.cli import failures

EXAMPLE = """\
  dotkd report runs/compare-mnist1d
  dotkd report runs/first runs/second --out side-by-side.html
"""
NAME = "report.html"


def report(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders of runs, comparisons and tuning, or folders that hold some."),
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page. [report.html in the first DIR]")] = None,
) -> None:
    """Show results as one HTML page.

    The page needs no network and no other file. Runs given by themselves stand side by side. Files that cannot be read
    are named, on the page too, and make the exit code 1; the page shows the rest.
    """
    from dotkd.cli.console import results, say
    from dotkd.report import write_report

    written = write_report(directories, out or directories[0] / NAME)
    say(results(), f"written: {written.path}")
    if written.problems:
        raise failures.leave(failures.FAILURE, "could not be read:\n" + "\n".join(f"  {p}" for p in written.problems))
