"""`dotkd tune`: the best that each trainer can do on the validation split, with the same budget for each."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = """\
  dotkd tune mnist1d --trials 20 --out runs/mnist1d-tuned
  dotkd tune digits epochs=20 --trainers sgd,dot,sgd-matched --trials 30 --final-seeds 8
  dotkd tune digits --space lr=0.01..1:log --space temperature=1,2,4
"""


def tune(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe's name or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Changes to it, for every trainer.")
    ] = None,
    trainers: Annotated[
        str, typer.Option(metavar="NAMES", help="Trainers, with commas; the final test is against the first.")
    ] = "sgd,dot",
    trials: Annotated[int, typer.Option(metavar="N", help="Trials of each trainer.")] = 20,
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=SPAN",
            help="LOW..HIGH, LOW..HIGH:log or A,B,C for a key, instead of its default or besides; may be repeated.",
        ),
    ] = None,
    final_seeds: Annotated[
        int, typer.Option(metavar="K", help="Fresh seeds that each trainer's best is tested with; 0: no final test.")
    ] = 5,
    jobs: Annotated[int | None, typer.Option(metavar="J", help="Runs at a time. [cores / threads; 1 on a GPU]")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the tuning. [runs/tune-RECIPE]")] = None,
) -> None:
    """Tune each trainer, with the same budget for each.

    Searches learning rate, weight and temperature of the distillation loss and, where a trainer has one, delta, for the
    best accuracy on the validation split; prints the protocol. Then the best of each trainer is run with fresh seeds
    and compared on the test split, which had no part in the choice. The same command again goes on where it stopped.
    """
    from dotkd.cli.tune_conduct import conduct
    from dotkd.tuning.protocol import make_protocol
    from dotkd.tuning.study import load_optuna

    for name, value, least in (("--final-seeds", final_seeds, 0), ("--jobs", 1 if jobs is None else jobs, 1)):
        if value < least:
            raise ValueError(f"expected {name} of at least {least}, got {value}")
    load_optuna()
    protocol = make_protocol(recipe, overrides or [], trainers=trainers, trials=trials, spans=space or [], out=out)
    given = [*(overrides or []), "--trainers", trainers, "--trials", str(trials)]
    for span in space or []:
        given += ["--space", span]
    command = shlex.join(["dotkd", "tune", recipe, *given, "--out", str(protocol.out)])
    conduct(protocol, final_seeds, jobs, command)
