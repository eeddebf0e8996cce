"""HTML out of text: whatever is not made here is escaped, so that no name or value of a run becomes markup."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

ABSENT = "\N{EN DASH}"
# Names of up to so many characters stay on one line where there is room.
_SHORT = 24
# Tables of more rows scroll in a box of their own, under their headers.
_TALL = 24
_VOID = ("br", "meta", "col")


class Markup(str):
    """HTML that is meant as such; any other string is text."""


class Number(NamedTuple):
    """A number as it is read, and the value a table is sorted by; None sorts last."""

    text: str | Markup
    value: float | None


Content = str | Number


def tag(name: str, *children: str, **attributes: str | None) -> Markup:
    """An element. An attribute `data_value` is written data-value, `class_` is class, None is left out."""
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(value)}"')
    inner = "".join(map(escaped, children))
    return Markup(f"<{' '.join(words)}>" if name in _VOID else f"<{' '.join(words)}>{inner}</{name}>")


def escaped(text: str) -> Markup:
    """`text` as HTML that shows it; what is HTML already stays."""
    return text if isinstance(text, Markup) else Markup(html.escape(text))


def joined(parts: Iterable[str]) -> Markup:
    """The parts one after another."""
    return Markup("".join(map(escaped, parts)))


def table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[Content]], *, sortable: bool = True) -> Markup:
    """A table in a box of its own that scrolls sideways; the first cell of a line names it."""
    numeric = [any(isinstance(row[place], Number) for row in rows) and place > 0 for place in range(len(headers))]
    head = tag(
        "tr",
        *(
            tag("th", name, scope="col", class_="number" if is_number else None)
            for name, is_number in zip(headers, numeric, strict=True)
        ),
    )
    body = [tag("tr", *(_cell(content, first=not place) for place, content in enumerate(row))) for row in rows]
    made = tag(
        "table",
        tag("caption", tag("span", caption)),
        tag("thead", head),
        tag("tbody", *body),
        class_="sortable" if sortable and len(rows) > 1 else None,
    )
    return tag(
        "div",
        made,
        class_="scroll tall" if len(rows) > _TALL else "scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def _cell(content: Content, *, first: bool) -> Markup:
    if first:
        text = content.text if isinstance(content, Number) else content
        return tag("th", text, scope="row", class_="short" if len(text) <= _SHORT else None)
    if isinstance(content, Number):
        # "nan" is no number to JavaScript either: such a cell sorts last.
        return tag(
            "td", content.text, class_="number", data_value="nan" if content.value is None else repr(content.value)
        )
    return tag("td", content)


def folded(summary: str, *children: str) -> Markup:
    """What is shown on demand."""
    return tag("details", tag("summary", summary), *children)


def embedded(value: Any) -> Markup:
    """JSON for inside a script element, which neither `</script` nor `<!--` in a name can end."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
