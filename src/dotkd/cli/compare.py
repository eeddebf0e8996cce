"""`dotkd compare`: the same student under several trainers, methods, settings and seeds, as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = """\
  dotkd compare mnist1d --seeds 8 --out runs/mnist1d-compared
  dotkd compare mnist1d digits lr=0.1 --methods none,kd --trainers sgd,dot
  dotkd compare mnist1d --vary delta=0.025,0.05,0.075 --vary lr=0.01,0.05
  dotkd compare digits --vary "student_options={width: 8},{width: 32}"
"""
TRAINERS = "sgd,dot,dot-normalized,sgd-matched"


def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE|FILE... [key=value ...]", help="Recipes or YAML files, and changes to all of them."
        ),
    ],
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V,V,...", help="A setting for each value; several --vary: for each combination."),
    ] = None,
    trainers: Annotated[
        str, typer.Option(metavar="NAMES", help="Trainers, with commas; sgd is the baseline.")
    ] = TRAINERS,
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Methods, with commas; none is training on the labels. [the recipe's]"),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", help="Runs of each cell.")] = 3,
    jobs: Annotated[
        int | None, typer.Option(metavar="J", help="Runs at a time, over all GPUs. [cores / threads; one a GPU]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the comparison. [runs/compare-RECIPE...-by-KEY...]")
    ] = None,
) -> None:
    """Compare trainers over seeds.

    Trains the student with each trainer, method and seed, in each setting; reports means, intervals and paired tests,
    corrected for their number. Temperature, loss weights and method_options are those of the first method; the others
    have their published ones. One teacher of each recipe is trained and shared, by the values outside --vary.
    The same command again, also with more seeds, cells or values, skips what is finished and continues the rest.
    """
    from dotkd.cli.campaign import make_plan
    from dotkd.cli.conduct import conduct

    plan = make_plan(words, vary=vary or [], trainers=trainers, methods=methods, seeds=seeds, out=out)
    conduct(plan, jobs)
