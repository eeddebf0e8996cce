"""The PATH of a data specification: expanded, checked, and where it is missing, the nearest name that
exists."""

from __future__ import annotations

import difflib
import os
from pathlib import Path


def existing(argument: str, *, spec: str, wanted: str) -> Path:
    """`argument` as a Path, `~` expanded.

    Raises ValueError where it is empty and FileNotFoundError where nothing has that name; `spec` and `wanted`
    (as in "a folder of class folders") go into the message.
    """
    if not argument:
        raise ValueError(f"expected {spec}, where PATH is {wanted}; got no path")
    path = Path(os.path.expanduser(argument))
    if path.exists():
        return path
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    message = f"{spec}: expected {wanted}, but there is no {path}"
    if not missing.parent.is_dir():
        raise FileNotFoundError(f"{message}; {missing.parent} is a file")
    if path.is_symlink():
        raise FileNotFoundError(f"{message}: the link points to {os.readlink(path)}, which does not exist")
    near = difflib.get_close_matches(missing.name, sorted(os.listdir(missing.parent)), n=1)
    hint = f"did you mean {missing.parent / near[0]}?" if near else f"{missing.parent} has no '{missing.name}'"
    raise FileNotFoundError(f"{message}; {hint}")
