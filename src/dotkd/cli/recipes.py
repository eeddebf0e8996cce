"""`dotkd recipes`: what can be trained by name, what its source says of it, and what was measured here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from dotkd.config import Config
    from dotkd.recipes.measured import Measured

EXAMPLE = """\
  dotkd recipes
  dotkd recipes digits > mine.yaml
  dotkd recipes --record runs/compare-digits
  dotkd recipes --from-mdistiller dot/res32x4_res8x4.yaml > mine.yaml
"""


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one as YAML, to start from.")] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Note what the comparison in DIR measured of the recipes.")
    ] = None,
    from_mdistiller: Annotated[
        bool, typer.Option("--from-mdistiller", help="NAME is a file written for mdistiller, to be translated.")
    ] = False,
) -> None:
    """List what can be trained by name.

    With NAME, print that recipe in full, as YAML to start from; every key that there is, with its meaning.
    """
    from dotkd.cli import console
    from dotkd.recipes import RECIPES, measured

    if record is not None and (name is not None or from_mdistiller):
        raise ValueError(f"expected --record DIR alone, got {name or '--from-mdistiller'} beside it")
    if from_mdistiller and name is None:
        raise ValueError("expected the file to translate after --from-mdistiller, got none")
    out = console.results()
    if record is not None:
        for found, figures in measured.record(record, RECIPES).items():
            console.say(out, f"{found}: {_accuracy(figures)} %, n = {figures.n}, {_origin(figures)}")
    elif name is None:
        _list(out)
    elif from_mdistiller:
        _print(out, _translated(name))
    elif name in RECIPES:
        console.say(out, f"# {name}: {RECIPES[name].summary}")
        _print(out, RECIPES[name].config)
    else:
        from dotkd.config_rules import nearest, shown

        raise ValueError(f"expected a name that `dotkd recipes` lists, got {shown(name)}{nearest(name, RECIPES)}")


def _list(out: Console) -> None:
    from dotkd.cli import console
    from dotkd.recipes import RECIPES, measured
    from dotkd.recipes.row import MINI

    figures = measured.read()
    full = [name for name in RECIPES if not name.endswith(MINI)]
    twins = [name for name in RECIPES if name.endswith(MINI) and name in figures]
    table = console.table(out, "name", "paper %", "measured %", "n")
    for column in table.columns:
        column.no_wrap = True
    for name in [*full, *twins]:
        paper, found = RECIPES[name].paper, figures.get(name)
        told = ("not measured", "") if found is None else (_accuracy(found), str(found.n))
        table.add_row(name, "" if paper is None else f"{paper:.2f}", *told)
    out.print(table)
    for name, found in figures.items():
        console.say(out, f"{name}: {_origin(found)}, {found.date}: {found.command}")
    for name in full:
        if name + MINI not in RECIPES:
            console.say(out, f"{name}: {RECIPES[name].summary}")
    for line in (
        "DATA-TEACHER: a teacher alone; DATA-TEACHER-STUDENT-METHOD by plain SGD, ...-METHOD-dot by DOT",
        f"NAME{MINI}: the same scaled down to minutes on two cores, for each name that has its data in front",
        "paper: best epoch on the test split; measured: last epoch, mean ± 95 % t-interval over n seeds",
    ):
        console.say(out, line)


def _accuracy(figures: Measured) -> str:
    return f"{figures.mean:.2f} ± {'-' if figures.half_width is None else f'{figures.half_width:.2f}'}"


def _origin(figures: Measured) -> str:
    return f"{figures.commit or 'no commit'}, {figures.hardware}"


def _translated(path: str) -> Config:
    from dotkd.cli.translation import show_translation
    from dotkd.recipes.mdistiller import translate

    translation = translate(path)
    show_translation(translation)
    return translation.template()


def _print(out: Console, config: Config) -> None:
    out.print(_explained(config), soft_wrap=True, highlight=False, markup=False)


def _explained(config: Config) -> str:
    from dotkd.config import describe

    comments = {key.name: f"# {key.meaning} ({key.rule})" for key in describe()}
    lines: list[str] = []
    for line in config.to_yaml().splitlines():
        comment = comments.get(line.partition(":")[0])
        lines += [line] if comment is None else [comment, line]
    return "\n".join(lines)
