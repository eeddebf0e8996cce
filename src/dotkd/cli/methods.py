"""`dotkd methods`: the distillation methods, their equations and options, in a terminal or as Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

import typer

EXAMPLE = """\
  dotkd methods
  dotkd methods dkd
"""

_NEEDS = {
    "features": "feature maps: student_features and teacher_features, [] for those of the family",
    "preactivations": "what the activations at the end of those points receive",
    "embedding": "what the classifier receives",
}

# Columns of a terminal in which no line of the list is broken.
_WIDE = 132


class Option(NamedTuple):
    """An option of a method, for `method_options`; rule: what the docstring says of it."""

    name: str
    default: str
    rule: str


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Print the equation and options of this one.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print all of it as Markdown: docs/methods.md.")] = False,
) -> None:
    """List the distillation methods.

    With NAME, print its equation, its options with defaults and rules, and what it looks at in the models.
    """
    from dotkd.cli import console
    from dotkd.config_rules import nearest, shown
    from dotkd.methods import METHODS, card_of

    out = console.results()
    if markdown:
        if name is not None:
            raise ValueError(f"expected --markdown without a name, for it prints all methods, got {shown(name)}")
        out.print(as_markdown(), end="", soft_wrap=True)
        return
    if name is not None:
        if name not in METHODS:
            raise ValueError(f"expected one of {', '.join(METHODS)}, got {shown(name)}{nearest(name, METHODS)}")
        out.print("\n".join(_lines(name)), soft_wrap=True)
        return
    table = console.table(out, "name", "title", "paper, arXiv", "streams", "weights", "T")
    for column in table.columns[1:4]:
        column.justify = "left"
    if out.width < _WIDE:  # the title gets the room, or 80 columns would break its words
        table.columns[2].max_width, table.columns[3].max_width = len("Zagoruyko 2017"), len("nontarget")
    for key in METHODS:
        card = card_of(key)
        table.add_row(key, card.title, _short(card.paper), _streams(card), _weights(card), _temperature(card))
    out.print(table)
    console.say(
        out, "weights: of the task loss and of the distillation loss, as published for CIFAR-100; T: temperature"
    )


def as_markdown() -> str:
    """The whole of docs/methods.md."""
    from dotkd.methods import METHODS, card_of

    lines = [
        "# Distillation methods",
        "",
        "Made by `dotkd methods --markdown`. The weights are those published for CIFAR-100, and the defaults of",
        "`task_weight`, `distill_weight` and `temperature`; options are entries of `method_options`.",
        "",
        "| name | title | source | streams | weights | T |",
        "|---|---|---|---|---|---|",
    ]
    for name in METHODS:
        card = card_of(name)
        cells = (f"[{name}](#{name})", card.title, card.paper, _streams(card), _weights(card), _temperature(card))
        lines.append(f"| {' | '.join(_cell(text) for text in cells)} |")
    for name in METHODS:
        card = card_of(name)
        lines += ["", f"## {name}", "", f"{card.title}. {card.paper}.", "", "```text", *_body(name), "```", ""]
        lines += [f"Published weights: {_published(card)}. Looks at {_looks_at(name)}."]
        options = options_of(name)
        if options:
            lines += ["", "| option | default | |", "|---|---|---|"]
            lines += [f"| `{o.name}` | `{o.default}` | {_cell(o.rule)} |" for o in options]
    return "\n".join(lines) + "\n"


def options_of(name: str) -> list[Option]:
    """The options of a method, from its signature."""
    from dotkd.methods import GIVEN, find

    method = find(name)
    rules = _documented(method)
    return [
        Option(key, str(parameter.default), rules.get(key, ""))
        for key, parameter in inspect.signature(method).parameters.items()
        if parameter.default is not parameter.empty and key not in GIVEN
    ]


def _lines(name: str) -> Iterator[str]:
    from dotkd.methods import card_of

    card = card_of(name)
    yield f"{name}: {card.title} ({card.paper})"
    yield ""
    yield from _body(name)
    yield ""
    yield f"weights as published: {_published(card)}"
    yield f"temperature as published: {_temperature(card) or 'it has none'}"
    yield f"streams: {_streams(card)}"
    yield f"looks at: {_looks_at(name)}"
    options = options_of(name)
    yield "options (method_options.NAME=VALUE):" if options else "options: it has none"
    for option in options:
        yield f"  {option.name}={option.default}" + (f": {option.rule}" if option.rule else "")


def _body(name: str) -> Iterator[str]:
    """The equation of the card, and the docstring without its sections of arguments, returns and errors."""
    from dotkd.methods import card_of, find

    yield card_of(name).equation
    text = inspect.getdoc(find(name)) or ""
    kept = re.split(r"\n\n(?:Args|Returns|Raises):\n|\n\n>>> ", text)[0]
    if kept:
        yield ""
        yield from kept.splitlines()


def _documented(method: Callable[..., Any]) -> dict[str, str]:
    """{argument: its line in the docstring's Args}."""
    _, _, section = (inspect.getdoc(method) or "").partition("Args:\n")
    rules: dict[str, str] = {}
    names: list[str] = []
    for line in section.split("\n\n")[0].splitlines():
        found = re.fullmatch(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if found:
            names = found[1].split(", ")
            rules |= dict.fromkeys(names, found[2])
        else:
            rules |= {name: f"{rules[name]} {line.strip()}" for name in names}
    return rules


def _looks_at(name: str) -> str:
    from dotkd.methods import card_of

    needs = card_of(name).needs
    return "; ".join(["logits", *(_NEEDS[need] for need in needs)])


def _streams(card: Any) -> str:
    return ", ".join(dict.fromkeys(card.streams.values())) or "distill"


def _published(card: Any) -> str:
    rising = f", rising over {card.warmup_epochs:g} epochs" if card.warmup_epochs else ""
    return f"task {card.task_weight:g}, distillation {card.distill_weight:g}{rising}"


def _weights(card: Any) -> str:
    return f"{card.task_weight:g}, {card.distill_weight:g}"


def _temperature(card: Any) -> str:
    return "" if card.temperature is None else f"{card.temperature:g}"


def _short(paper: str) -> str:
    """First author, year and arXiv number, whichever of them there are."""
    parts = [re.match(r"[\w'-]+", paper), re.search(r"\b(?:19|20)\d\d\b", paper), re.search(r"\d{4}\.\d{4,5}", paper)]
    return " ".join(found[0] for found in parts if found)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
