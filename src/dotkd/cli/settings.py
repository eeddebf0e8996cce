"""The settings of a comparison: each recipe with each combination of the values that `--vary` names.

Values are YAML with commas between them: `delta=0.05,0.075`, `student_options={width: 2},{width: 4, depth: 8}`. A list
around them is taken away, but for one value of a key that takes lists: `milestones=[10, 20],[15]` are two
values, `milestones=[10, 20]` is one. Several `--vary` make a grid, the last key changing fastest.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_origin

# What cells or seeds differ in, with the option that says so.
_OF_A_CELL = {"trainer": "--trainers", "method": "--methods", "seed": "--seeds"}
# Data and teacher: under another of these values the teacher is another. All else is how the student is trained.
_OF_A_TEACHER = ("data", "image_size", "validation", "teacher", "teacher_options", "teacher_epochs", "teacher_lr")
_LONGEST = 80


class Source(NamedTuple):
    """A recipe's name or a YAML file, by the name it goes by in tables and folders."""

    name: str
    source: str


class Point(NamedTuple):
    """One setting in words. varied: {key: value}, empty without --vary; name: unique in the comparison."""

    name: str
    recipe: str
    source: str
    varied: dict[str, Any]

    @property
    def folder(self) -> str:
        """The name of its folder, which does not change when recipes or values are added."""
        return safe("-".join([self.recipe, *_told(self.varied)]), exactly=[self.recipe, self.varied])

    def words(self) -> list[str]:
        """The overrides that its values amount to."""
        return [_word(key, value) for key, value in self.varied.items()]

    def words_for_the_teacher(self) -> list[str]:
        """Those of them that make another teacher."""
        return [_word(key, value) for key, value in self._of_the_teacher().items()]

    @property
    def teacher_name(self) -> str:
        """Its teacher in words."""
        return ", ".join([self.recipe, *_told(self._of_the_teacher())])

    def _of_the_teacher(self) -> dict[str, Any]:
        return {key: value for key, value in self.varied.items() if key.partition(".")[0] in _OF_A_TEACHER}


def sources(words: Sequence[str]) -> tuple[list[Source], list[str]]:
    """The recipes and the overrides among `words`: a word with = in it is an override, unless a path comes before that.

    Raises ValueError where no recipe is named, or two go by one name.
    """
    overrides = [word for word in words if "=" in word and "/" not in word.partition("=")[0]]
    found = [Source(Path(word).stem if Path(word).suffix else word, word) for word in words if word not in overrides]
    if not found:
        raise ValueError("expected a recipe's name or a YAML file, got none (`dotkd recipes` lists the recipes)")
    names = [source.name for source in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"expected recipes of different names, got {', '.join(twice)} more than once")
    return found, overrides


def points(recipes: Sequence[Source], vary: Sequence[str]) -> list[Point]:
    """The grid of `recipes` and the values of `vary`, a KEY=V,V,... each.

    Raises ValueError for a key that does not exist, is no matter of --vary, or is there twice, and for no values.
    """
    grid: dict[str, list[Any]] = {}
    for word in vary:
        key, values = _read(word)
        if key in grid:
            raise ValueError(f"--vary names {key} more than once; give all its values in one, with commas")
        grid[key] = values
    made: list[Point] = []
    for recipe in recipes:
        for combination in itertools.product(*grid.values()):
            varied = dict(zip(grid, combination, strict=True))
            parts = ([recipe.name] if len(recipes) > 1 or not varied else []) + _told(varied)
            made.append(Point(", ".join(parts), recipe.name, recipe.source, varied))
    return made


def title(points: Sequence[Point]) -> str:
    """What the comparison is called: `mnist1d`, or `mnist1d, digits by delta, lr`."""
    recipes = ", ".join(dict.fromkeys(point.recipe for point in points))
    keys = ", ".join(points[0].varied)
    return f"{recipes} by {keys}" if keys else recipes


def safe(name: str, *, exactly: object = None) -> str:
    """`name` as a file name, with a few digits of what `exactly` is behind it where it had to be changed for that."""
    kept = re.sub(r"[^\w.=+,-]+", "-", name, flags=re.ASCII).strip("-.")
    if kept == name and len(kept) <= _LONGEST:
        return kept
    digest = hashlib.sha256(json.dumps(name if exactly is None else exactly, default=str).encode()).hexdigest()
    return f"{kept[: _LONGEST - 9]}-{digest[:8]}"


def check_overrides(overrides: Sequence[str], *, methods: bool) -> None:
    """Raises ValueError for an override of what cells differ in. methods: whether --methods was given."""
    for word in overrides:
        key = word.partition("=")[0].strip()
        if key == "trainer" or (key == "method" and methods):
            raise ValueError(f"{key} is what the cells differ in: give it as --{key}s, not as {word}")


def _read(word: str) -> tuple[str, list[Any]]:
    from dotkd import config_sources
    from dotkd.config import Config
    from dotkd.config_rules import shown, unknown_key

    key, equals, text = word.partition("=")
    key = key.strip()
    if not (key and equals and text.strip()):
        raise ValueError(f"expected --vary KEY=V,V,..., got {shown(word)}")
    head = key.partition(".")[0]
    if head in _OF_A_CELL:
        raise ValueError(f"{head} is not varied with --vary: give {_OF_A_CELL[head]}")
    if head not in Config.model_fields:
        raise ValueError(f"--vary {unknown_key(key, text, Config.model_fields)}")
    try:
        values = cast("list[Any]", config_sources.parse(f"[{text}]"))
    except ValueError as error:
        raise ValueError(f"--vary {key}: expected values in YAML with commas, got {shown(text)} ({error})") from error
    takes_lists = get_origin(Config.model_fields[head].annotation) is tuple or "." in key
    if len(values) == 1 and isinstance(values[0], list):
        inside = cast("list[Any]", values[0])
        if inside and (not takes_lists or all(isinstance(value, list) for value in inside)):
            values = inside
    return key, values


def _word(key: str, value: object) -> str:
    # JSON is YAML: the quotes keep a text from being read as something else.
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _told(varied: Mapping[str, object]) -> list[str]:
    return [f"{key}={_flow(value)}" for key, value in varied.items()]


def _flow(value: object) -> str:
    """`value` as YAML would have it on one line, without quotes."""
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(inner) for inner in cast("list[object]", value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)
