"""`dotkd resume`: goes on with a run that was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dotkd.cli.train import run_to_the_end

EXAMPLE = """\
  dotkd resume runs/mnist1d-dot-seed0
"""


def resume(directory: Annotated[Path, typer.Argument(metavar="DIR", help="The run folder.")]) -> None:
    """Continue a run that was stopped.

    It goes on from the newest whole checkpoint, to the same bits as if it had never stopped.
    """
    from dotkd.cli.console import progress, say
    from dotkd.metrics import display_for
    from dotkd.trainer import Trainer

    if any((directory / name).is_file() for name in ("comparison.yaml", "settings.yaml")):
        raise ValueError(
            f"{directory} holds a comparison: give its `dotkd compare` or `dotkd demo` again to continue it"
        )
    if (directory / "tuning.yaml").is_file():
        raise ValueError(f"{directory} holds a tuning: give its `dotkd tune` again to continue it")
    if (directory / "summary.json").is_file():
        say(progress(), f"{directory} is finished: there is nothing to continue")
    run_to_the_end(Trainer.resume(directory, display=display_for(progress())), directory)
