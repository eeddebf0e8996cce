"""Imports run one way: any module of the package can be the first that is imported.

Checked in the source: what a module imports when it is loaded, directly or by loading the packages that it is in, never
leads back to it. (A package and its own modules may know each other: the package is loaded first in any case.)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent / "src"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def loaded_by(name: str) -> Iterator[str]:
    """The modules of the package that loading `name` loads at once."""
    for node in ast.parse(FILES[name].read_text()).body:  # not inside functions, nor under TYPE_CHECKING
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "dotkd":
            yield from (f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in FILES)
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)


def edges(name: str) -> set[str]:
    own = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for target in loaded_by(name):
        parts = target.split(".")
        found |= {".".join(parts[: count + 1]) for count in range(1, len(parts))}
    return found - {name, own}


def test_nothing_that_a_module_loads_leads_back_to_it():
    graph = {name: edges(name) for name in FILES}
    for start in graph:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph[name]
        assert start not in seen, f"what {start} loads leads back to it"
