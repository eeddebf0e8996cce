"""Configurations side by side, and where the runs come from: versions, commit, hardware."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dotkd.evidence.runs import SUMMARY, Run
from dotkd.evidence.settings import Table
from dotkd.report.markup import ABSENT, Content, Markup, Number, folded, joined, table, tag

_UNKNOWN = "not recorded"


def configs_part(tables: Sequence[Table]) -> Markup:
    """The keys in which the cells differ, and folded away those that all have in common."""
    groups = {
        (f"{part.name}: {cell}" if len(tables) > 1 else cell): [run.config for run in runs]
        for part in tables
        for cell, runs in part.runs.items()
        if runs
    }
    everything = {name: _of_group(configs) for name, configs in groups.items()}
    keys = list(dict.fromkeys(key for config in everything.values() for key in config))
    differing = [key for key in keys if len({config.get(key, ABSENT) for config in everything.values()}) > 1]
    parts: list[Markup] = []
    if differing:
        rows: list[list[Content]] = [
            [name, *(config.get(key, ABSENT) for key in differing)] for name, config in everything.items()
        ]
        parts.append(table("Keys that differ", ["cell", *differing], rows))
    elif len(everything) > 1:
        parts.append(tag("p", "All configurations are equal."))
    common = [key for key in keys if key not in differing]
    if common:
        first = next(iter(everything.values()))
        words = f"{len(common)} keys that all have in common" if len(everything) > 1 else f"All {len(common)} keys"
        parts.append(folded(words, table(words, ["key", "value"], [[key, first[key]] for key in common])))
    return joined(parts)


def _of_group(configs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The configuration of some seeds as text; what differs between them is listed."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return {key: ", ".join(dict.fromkeys(_text(config[key]) for config in configs if key in config)) for key in keys}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def differing_numbers(configs: Mapping[Any, Mapping[str, Any]]) -> list[str]:
    """The keys whose values are numbers everywhere and not all the same."""
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    found: list[str] = []
    for key in keys:
        values = [config.get(key) for config in configs.values()]
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            found += [key] if len(set(values)) > 1 else []
    return found


def provenance_part(tables: Sequence[Table]) -> Markup:
    """One line for each combination of versions, commit and hardware, with the runs that come from it."""
    sources: dict[tuple[str, ...], list[str]] = {}
    names: dict[str, None] = {}
    facts: list[tuple[str, dict[str, str]]] = []
    for part in tables:
        for cell, runs in part.runs.items():
            for run in runs:
                found = _source(run)
                names |= dict.fromkeys(found)
                place = f"{part.name}: " if len(tables) > 1 else ""
                facts.append((f"{place}{cell} seed {run.seed}", found))
    for name, found in facts:
        sources.setdefault(tuple(found.get(key, _UNKNOWN) for key in names), []).append(name)
    rows: list[list[Content]] = [
        [Number(str(len(runs)), len(runs)), *values, folded("names", tag("p", ", ".join(runs)))]
        for values, runs in sources.items()
    ]
    return table("Where the runs come from", ["runs", *names, "which"], rows)


def _source(run: Run) -> dict[str, str]:
    summary = json.loads((run.path / SUMMARY).read_text(encoding="utf-8"))
    versions = summary.get("versions")
    found = {str(name): str(version) for name, version in versions.items()} if isinstance(versions, dict) else {}
    for key in ("commit", "hardware", "threads"):
        found[key] = _UNKNOWN if summary.get(key) is None else str(summary[key])
    return found
