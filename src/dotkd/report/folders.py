"""What the folders of a report hold: comparisons, runs by themselves, tuning; and what in them cannot be read.

A folder is what the files in it say: `comparison.json` or `comparison.yaml` a comparison, `tune.json` a tuning,
`summary.json` a run; `metrics.jsonl` or `config.yaml` alone a run that has not ended, `tuning.yaml` alone a tuning that
has not. Any other is searched, but for teachers. From `comparison.json` only the structure is taken; every number is
read from the run folders, so that folders of any age are treated alike. Damage is no reason to withhold the rest: each
file that cannot be read is told as a problem.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from dotkd.evidence.comparison import NO_DISTILLATION, PLAIN_TRAINERS, Cell, make_cells
from dotkd.evidence.runs import METRICS, Run, epochs_done, is_finished, read_run
from dotkd.evidence.settings import Evidence, Table, corrected, make_table
from dotkd.report.side_by_side import side_by_side
from dotkd.suggestion import suggestion

COMPARISON, SHARED, TUNE, TUNING = "comparison.json", "comparison.yaml", "tune.json", "tuning.yaml"
_NOT_SEARCHED = ("checkpoints", "logs", "export", "teacher")


class Subject(NamedTuple):
    """One part of the page. compared: whether its cells are held against each other.

    unfinished: {table name: the runs that were planned and have not ended, each with what is known of it}.
    """

    title: str
    evidence: Evidence
    compared: bool
    unfinished: Mapping[str, Sequence[str]]


class Tuning(NamedTuple):
    """A tuning folder: the contents of its `tune.json`."""

    title: str
    contents: Mapping[str, Any]


class Findings(NamedTuple):
    """Everything the folders hold. unfinished: what by itself has not ended; problems: files that could not be read."""

    subjects: Sequence[Subject]
    tunings: Sequence[Tuning]
    unfinished: Sequence[str]
    problems: Sequence[str]


def collect(directories: Sequence[Path]) -> Findings:
    """What `directories` hold. Raises ValueError for one that does not exist, or holds nothing that can be shown."""
    if not directories:
        raise ValueError("expected at least one folder to report on, got none")
    subjects: list[Subject] = []
    tunings: list[Tuning] = []
    problems: list[str] = []
    loose: dict[Path, str] = {}
    unfinished: list[str] = []
    for directory in directories:
        _require_folder(directory)
        count = len(subjects) + len(tunings) + len(loose) + len(problems)
        begun = len(unfinished)
        for kind, path in _search(directory):
            name = _title(path, directory)
            try:
                if kind == "comparison":
                    subject = _comparison(path, name, problems)
                    if subject is None:
                        unfinished.append(f"{name} (a comparison, no run has ended)")
                    else:
                        subjects.append(subject)
                elif kind == "tuning":
                    tunings.append(Tuning(name, _read_json(path / TUNE)))
                elif kind == "run":
                    loose[path] = name
                else:
                    unfinished.append(f"{name} ({_progress(path)})")
            except (ValueError, OSError) as error:
                problems.append(str(error))
        if count == len(subjects) + len(tunings) + len(loose) + len(problems):
            begun_runs = ", ".join(unfinished[begun:])
            hint = f"; not finished: {begun_runs}" if begun_runs else ""
            raise ValueError(f"expected runs, a comparison or a tuning in {directory}, found none{hint}")
    runs = _read_runs(loose, problems)
    if runs:
        title, table = side_by_side(runs)
        subjects.append(Subject(title, corrected(title, [table]), False, {}))
    if not subjects and not tunings:
        raise ValueError("nothing can be shown:\n" + "\n".join(f"  {problem}" for problem in problems))
    return Findings(subjects, tunings, unfinished, problems)


def _require_folder(directory: Path) -> None:
    if directory.is_dir():
        return
    if directory.exists():
        raise ValueError(f"expected DIR to be a folder, {directory} is a file")
    beside = directory.parent
    names = [entry.name for entry in beside.iterdir() if entry.is_dir()] if beside.is_dir() else []
    raise ValueError(f"expected DIR to be a folder, {directory} does not exist{suggestion(directory.name, names)}")


def _search(directory: Path) -> Iterator[tuple[str, Path]]:
    """The folders that are something, as (kind, path), in order of their names; nothing is looked for inside them."""
    for names, kind in (((COMPARISON, SHARED), "comparison"), ((TUNE,), "tuning"), (("summary.json",), "run")):
        if any((directory / name).is_file() for name in names):
            yield kind, directory
            return
    if any((directory / name).is_file() for name in (METRICS, "config.yaml", TUNING)):
        yield "begun", directory
        return
    for entry in sorted(directory.iterdir(), key=_in_human_order):
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in _NOT_SEARCHED:
            yield from _search(entry)


def _in_human_order(path: Path) -> tuple[str, int, str]:
    """seed-2 before seed-10."""
    stem = path.name.rstrip("0123456789")
    return stem, int(path.name[len(stem) :] or 0), path.name


def _title(path: Path, directory: Path) -> str:
    relative = path.relative_to(directory).as_posix()
    own = path.resolve().name
    return own if relative == "." else relative


def _progress(path: Path) -> str:
    return "tuning goes on" if (path / TUNING).is_file() else f"{epochs_done(path)} epochs done"


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} cannot be read: expected an object, got {type(contents).__name__}")
    return cast("dict[str, Any]", contents)


# --- comparisons


def _comparison(folder: Path, title: str, problems: list[str]) -> Subject | None:
    """None where no run has ended. Raises ValueError where the structure of the comparison cannot be read."""
    if (folder / COMPARISON).is_file():
        contents = _read_json(folder / COMPARISON)
        try:
            planned = list(_planned(folder, contents))
            name = str(contents.get("comparison", title))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / COMPARISON} cannot be read as a comparison: {error!r}") from error
    else:
        name, planned = title, list(_from_runs(folder))
    tables: list[Table] = []
    unfinished: dict[str, list[str]] = {}
    for table, paths in planned:
        runs: dict[str, list[Run]] = {}
        missing: list[str] = []
        for cell, found in paths.items():
            ended = {path: f"{cell} {path.name}" for path in found if is_finished(path)}
            runs[cell] = _read_runs(ended, problems)
            missing += [f"{cell} {path.name} ({_progress(path)})" for path in found if path not in ended]
        made = make_table(table.name, table.cells, runs, recipe=table.recipe, varied=table.varied)
        tables.append(made._replace(directory=table.directory))
        unfinished[table.name] = missing
    if not any(ended for table in tables for ended in table.runs.values()):
        return None
    return Subject(f"{name}" if name == title else f"{name} ({title})", corrected(name, tables), True, unfinished)


class _Setting(NamedTuple):
    name: str
    recipe: str
    varied: Mapping[str, Any]
    directory: str
    cells: Sequence[Cell]


def _planned(folder: Path, contents: Mapping[str, Any]) -> Iterator[tuple[_Setting, Mapping[str, Sequence[Path]]]]:
    """The settings, each with {cell: its run folders}. Older files have one setting, which is the comparison itself."""
    recipe = str(contents["comparison"])
    single: dict[str, Any] = {"name": recipe, "recipe": recipe, "cells": contents.get("cells", [])}
    told: dict[tuple[str, str, int], str] = {}
    for run in contents["runs"]:
        if "directory" in run:
            told[str(run.get("setting", recipe)), str(run["cell"]), int(run["seed"])] = str(run["directory"])
    for entry in contents.get("settings", [single]):
        cells = [Cell(*(part[field] for field in Cell._fields)) for part in entry["cells"]]
        setting = _Setting(
            str(entry["name"]), str(entry["recipe"]), entry.get("varied", {}), str(entry.get("directory", ".")), cells
        )
        paths: dict[str, list[Path]] = {}
        for cell in cells:
            usual = {int(seed): Path(setting.directory) / cell.name / f"seed-{seed}" for seed in contents["seeds"]}
            paths[cell.name] = [
                folder / told.get((setting.name, cell.name, seed), place) for seed, place in usual.items()
            ]
        yield setting, paths


def _from_runs(folder: Path) -> Iterator[tuple[_Setting, Mapping[str, Sequence[Path]]]]:
    """A comparison that is still going on has no table yet: its cells are those whose folders are there."""
    paths: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/seed-*"), key=lambda path: (path.parent.name, _in_human_order(path))):
        paths.setdefault(path.parent.name, []).append(path)
    # Damage is told when the runs are read for the tables.
    ended = _read_runs({path: "" for found in paths.values() for path in found if is_finished(path)}, [])
    if not ended:
        return
    # Plain ones first, as the baselines that they are; the rest in the order of their folders.
    methods = sorted(
        dict.fromkeys(run.method for run in ended), key=lambda name: (name != NO_DISTILLATION, name != "kd")
    )
    trainers = sorted(dict.fromkeys(run.trainer for run in ended), key=lambda name: name not in PLAIN_TRAINERS)
    cells = [cell for cell in make_cells(methods, trainers) if cell.name in paths]
    names = {cell.name for cell in cells}
    kept = [cell if cell.against in names else cell._replace(against=None) for cell in cells]
    setting = _Setting(folder.resolve().name, folder.resolve().name, {}, ".", kept)
    yield setting, {cell.name: paths[cell.name] for cell in kept}


def _read_runs(paths: Mapping[Path, str], problems: list[str]) -> list[Run]:
    runs: list[Run] = []
    for path in paths:
        try:
            runs.append(read_run(path))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return runs
