"""The name nearest to a misspelt one, for the end of a message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `, did you mean ...?` for the known name closest to `name`, or nothing where none is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f", did you mean `{by_lower[close[0]]}`?" if close else ""
