"""What each key of a configuration must satisfy, in words; the rules between keys are in `config_contradictions`."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))

_short = reprlib.Repr()
_short.maxstring = _short.maxlong = _short.maxother = 80


def shown(value: object) -> str:
    """`value` on one line, at no great length, with null, true and false as YAML has them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _short.repr(list(value) if isinstance(value, tuple) else value)  # pyright: ignore[reportUnknownArgumentType]


def printable(key: str) -> str:
    """`key` as it is, or escaped where it would break the line."""
    return key if key.isprintable() else ascii(key)


def nearest(name: object, known: Iterable[str], rest: str = "") -> str:
    """`; did you mean ...?` for the known name closest to `name` (`rest` goes behind it), or nothing."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    written = str(name).lower()
    initials = "".join(word[:1] for word in written.split("_"))  # learning_rate is lr
    close = difflib.get_close_matches(written, by_lower, n=1) or [initials] * (initials in by_lower)
    return f"; did you mean {by_lower[close[0]]}{rest}?" if close else ""


def unknown_key(key: str, value: object, known: Iterable[str]) -> str:
    """The line about a key that does not exist."""
    head, dot, rest = key.partition(".")
    return f"{printable(key)}: unknown key, got {shown(value)}{nearest(head, known, printable(dot + rest))}"


def rule(annotation: Any, metadata: Sequence[object] = ()) -> str:
    """What a key takes, from its type and bounds: "a number >= 0 and < 1, or null"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if NoneType in args:
        return f"{rule(next(arg for arg in args if arg is not NoneType), metadata)}, or null"
    if origin in (Union, UnionType):
        return f"{', '.join(rule(arg) for arg in args[:-1])}, or {rule(args[-1])}"
    if origin is Literal and len(args) == 1:
        return args[0]
    if origin is Literal:
        return f"one of {', '.join(args)}"
    if origin is Annotated:
        return rule(args[0], [part for extra in args[1:] for part in extra.metadata])
    if origin is tuple:
        return f"a list, each item {rule(args[0])}"
    if origin is dict:
        return "a mapping from names to plain, finite values"
    limits = [(sign, getattr(part, name, None)) for part in metadata for name, sign in _BOUNDS]
    bounds = " and ".join(f"{sign} {limit}" for sign, limit in limits if limit is not None)
    return f"{_KINDS[annotation]} {bounds}".rstrip()


def field_problems(error: ValidationError, fields: Mapping[str, FieldInfo]) -> dict[str, str]:
    """What pydantic found: for each key (or entry of a mapping) one line with its rule and the value given."""
    problems: dict[str, str] = {}
    for found in error.errors(include_url=False, include_context=False):
        key, *inside = (str(part) for part in found["loc"])
        value: object = found["input"]
        if key not in fields:
            problems[key] = unknown_key(key, value, fields)
            continue
        annotation = fields[key].annotation
        hint = nearest(value, get_args(annotation)) if get_origin(annotation) is Literal else ""
        name = f"{key}.{inside[0]}" if inside and get_origin(annotation) is dict else key
        expected = rule(annotation, fields[key].metadata)
        problems.setdefault(name, f"{printable(name)}: expected {expected}, got {shown(value)}{hint}")
    return problems


def kind_in_words(default: object) -> str:
    """What an option takes whose default is this: "a number", "text"."""
    if isinstance(default, int) and not isinstance(default, bool):
        return _KINDS[float]
    return next((words for kind, words in _KINDS.items() if type(default) is kind), "a list")
