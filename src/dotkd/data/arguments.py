"""Checks of the arguments of this package, and the names nearest to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def hint(name: str, known: Iterable[str]) -> str:
    """`; did you mean '...'?` for the known name closest to `name`, upper case or lower; nothing where none is."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean '{by_lower[near[0]]}'?" if near else ""


def check_name(argument: str, value: object, names: Sequence[str]) -> None:
    """Raises ValueError where `value` is none of `names`."""
    if value not in names:
        listed = f"{', '.join(repr(name) for name in names[:-1])} or {names[-1]!r}"
        raise ValueError(f"expected `{argument}` to be {listed}, got '{value}'{hint(str(value), names)}")


def check_whole(argument: str, value: object, *, least: int | None = None, unit: str = "") -> None:
    """Raises TypeError where `value` is no integer, ValueError where it is below `least`; unit: for the message."""
    # bool is an int to Python, yet `batch_size=True` is always a mistake.
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected `{argument}` to be an integer, got {value!r} ({type(value).__name__})")
    if least is not None and value < least:
        raise ValueError(f"expected `{argument}` of at least {least}{unit}, got {value}")


def check_number(argument: str, value: object) -> None:
    """Raises TypeError where `value` is neither an integer nor a float."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"expected `{argument}` to be a number, got {value!r} ({type(value).__name__})")
