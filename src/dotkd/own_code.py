"""Objects of the user's own, named by a `module:attr` spec and imported from the working directory too."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Generator
from pathlib import Path
from typing import cast

from dotkd.suggestion import suggestion


@contextlib.contextmanager
def own_modules_importable() -> Generator[None, None, None]:
    """The working directory comes first among the places that imports search."""
    folder = str(Path.cwd())
    # First, as for `python -m`: the user's own `models.py` must win over an installed one.
    sys.path.insert(0, folder)
    # The file may be younger than the importer's listing of its folder.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def find_own(spec: str, kind: str) -> object:
    """What `spec` = "module:attr" names; `kind` ("model", "method") is what messages call it.

    Raises ValueError: nothing is found under that name (with the nearest), or it cannot be imported.
    """
    module_name, _, attribute = spec.partition(":")
    dotted = [*module_name.split("."), *attribute.split(".")]
    if not all(part.isidentifier() for part in dotted):
        hint = " (a dotted module name, not a path)" if {"/", "\\"} & set(spec) or ".py" in spec else ""
        raise ValueError(f"expected a {kind} of your own as `module:attr`{hint}, got `{spec}`")
    try:
        with own_modules_importable():
            found: object = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise _no_module(spec, kind, missing) from error
        raise ValueError(f"{kind} `{spec}`: importing `{module_name}` failed: {error}") from error
    place = f"module `{module_name}`"
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [known for known in dir(found) if not known.startswith("_")]
            raise ValueError(f"{kind} `{spec}`: {place} has no `{name}`{suggestion(name, public)}")
        found = cast("object", getattr(found, name))
        place = f"`{name}`"
    return found


def _no_module(spec: str, kind: str, missing: str) -> ValueError:
    folder = Path.cwd()
    parent, _, last = missing.rpartition(".")
    inside = folder.joinpath(*parent.split(".")) if parent else folder
    near = ""
    if inside.is_dir():
        names = [
            entry.stem if entry.is_file() else entry.name
            for entry in sorted(inside.iterdir())
            if entry.suffix == ".py" or (entry.is_dir() and any(entry.glob("*.py")))
        ]
        near = suggestion(last, names)
    return ValueError(f"{kind} `{spec}`: no module `{missing}` in {folder} or among the installed packages{near}")
