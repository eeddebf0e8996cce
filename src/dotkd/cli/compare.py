"""`dotkd compare`: the same student under several trainers and seeds, as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = """\
  dotkd compare mnist1d --seeds 8 --out runs/mnist1d-compared
  dotkd compare mnist1d lr=0.1 --methods none,kd --trainers sgd,dot
"""
TRAINERS = "sgd,dot,dot-normalized,sgd-matched"


def compare(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe's name or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Changes to it, for every cell.")
    ] = None,
    trainers: Annotated[
        str, typer.Option(metavar="NAMES", help="Trainers, with commas; sgd is the baseline.")
    ] = TRAINERS,
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Methods, with commas; none is training on the labels. [the recipe's]"),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", help="Runs of each cell.")] = 3,
    jobs: Annotated[int | None, typer.Option(metavar="J", help="Runs at a time. [cores / threads; 1 on a GPU]")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the comparison. [runs/compare-RECIPE]")
    ] = None,
) -> None:
    """Compare trainers over seeds.

    Trains the student with each trainer, method and seed; reports means, intervals and paired tests. Temperature, loss
    weights and method_options are those of the first method; the others have their published ones.
    One teacher is trained and shared. The same command again skips what is finished and continues the rest.
    """
    from dotkd.cli.campaign import make_plan
    from dotkd.cli.conduct import conduct

    plan = make_plan(recipe, overrides or [], trainers=trainers, methods=methods, seeds=seeds, out=out)
    conduct(plan, jobs)
