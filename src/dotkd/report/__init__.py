"""One self-contained HTML page out of run folders: what was shown, and as plainly what was not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Written", "write_report"]


class Written(NamedTuple):
    """The page, and what it says could not be read."""

    path: Path
    problems: Sequence[str]


def write_report(directories: Sequence[Path], out: Path) -> Written:
    """Write the page on what `directories` hold to the file `out`. Files that cannot be read are named on the page.

    Raises ValueError for a folder that does not exist or holds nothing that can be shown, CheckpointError where the
    disk refuses.
    """
    from dotkd.atomic_file import write_atomically
    from dotkd.report.folders import collect
    from dotkd.report.page import render

    page, problems = render(collect(directories))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page)
    return Written(out, problems)
