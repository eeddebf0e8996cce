"""`dotkd recipes`: what can be trained by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dotkd.config import Config

EXAMPLE = """\
  dotkd recipes
  dotkd recipes digits > mine.yaml
"""


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one as YAML, to start from.")] = None,
) -> None:
    """List what can be trained by name.

    With NAME, print that recipe in full, as YAML to start from; every key that there is, with its meaning.
    """
    from dotkd.cli import console
    from dotkd.evidence.comparison import check_names
    from dotkd.recipes import RECIPES

    out = console.results()
    if name is not None:
        check_names("NAME", [name], list(RECIPES))
        out.print(_explained(RECIPES[name].config), soft_wrap=True, highlight=False, markup=False)
        return
    table = console.table(out, "name", "data", "teacher > student", "epochs", "lr")
    for key, recipe in RECIPES.items():
        config = recipe.config
        models = f"{_model(config.teacher, config.teacher_options)} > {_model(config.student, config.student_options)}"
        table.add_row(key, config.data, models, str(config.epochs), f"{config.lr:g}")
    out.print(table)
    for key, recipe in RECIPES.items():
        console.say(out, f"{key}: {recipe.summary}")


def _explained(config: Config) -> str:
    from dotkd.config import describe

    comments = {key.name: f"# {key.meaning} ({key.rule})" for key in describe()}
    lines: list[str] = []
    for line in config.to_yaml().splitlines():
        comment = comments.get(line.partition(":")[0])
        lines += [line] if comment is None else [comment, line]
    return "\n".join(lines)


def _model(name: str, options: Mapping[str, object]) -> str:
    numbers = "x".join(str(value) for value in options.values())
    return f"{name} {numbers}".strip()
