"""A configuration file of mdistiller (github.com/megvii-research/mdistiller) as a configuration of this library.

Every key is accounted for: it becomes a key here, or the reason is told why it needs none. A key that the file leaves
out has mdistiller's own default, so that the experiment is the same. What cannot be the same is told too:

- mdistiller reports the best epoch on the test split; `summary.json` has that as `best_of_test` beside the last one.
- The last batch of an epoch, smaller than the others, is left out here.
- mdistiller loads its teachers; here one is trained first, by the student's own schedule, without teacher_weights.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from dotkd import config_sources
from dotkd.config import Config, ConfigError
from dotkd.config_rules import nearest, printable, shown
from dotkd.recipes.mdistiller_keys import DATA, DEFAULTS, METHODS, NO_MEANING, TRAINERS, After, Same, Unused

Values = Mapping[str, object]
Rule = Callable[[object, Values], "str | Unused"]


class Line(NamedTuple):
    """One key of mdistiller. given: whether the file names it. became: `key=value` here, or why it needs none."""

    key: str
    value: object
    given: bool
    became: str | Unused


class Translation(NamedTuple):
    """What a file became.

    implied: `key=value` of what mdistiller does untold. loads_teacher: whether it takes the teacher's weights
    from a file of its own.
    """

    lines: list[Line]
    implied: list[str]
    loads_teacher: bool

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """The configuration, changed by `overrides`; raises ConfigError naming every problem."""
        return Config.from_sources(None, [*self.assignments, *overrides])

    def template(self) -> Config:
        """The configuration with PATH in `data` where the user is to put one, which `config` refuses."""
        values, _, _ = config_sources.read(None, self.assignments, Config.model_fields)
        return Config(**values)

    @property
    def assignments(self) -> list[str]:
        """All of it as `key=value`."""
        return [*self.implied, *(line.became for line in self.lines if isinstance(line.became, str))]


def translate(path: str | Path) -> Translation:
    """Read a file of mdistiller.

    Raises ConfigError with a line for each key that mdistiller does not have and each value that has no counterpart.
    """
    problems: list[str] = []
    given = dict(_leaves(_read(path), DEFAULTS, "", problems))
    values = {key: given.get(key, default) for key, default in _defaults(DEFAULTS, "")}
    lines = [_line(key, value, values, key in given, problems) for key, value in values.items()]
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    loads = values["DISTILLER.TYPE"] != "NONE" and not DATA[str(values["DATASET.TYPE"])].pretrained
    return Translation(lines, list(_implied(values)), loads)


def _read(path: str | Path) -> dict[Any, Any]:
    try:
        content = config_sources.parse(Path(path).expanduser().read_text("utf-8-sig"))
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{printable(str(path))}: expected a YAML file of mdistiller: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected the sections of an mdistiller file, got {shown(content)}")
    return cast("dict[Any, Any]", content)


def _defaults(section: Values, prefix: str) -> Iterator[tuple[str, object]]:
    for name, default in section.items():
        if isinstance(default, dict):
            yield from _defaults(cast("Values", default), f"{prefix}{name}.")
        else:
            yield prefix + name, default


def _leaves(found: Mapping[Any, Any], known: Values, prefix: str, problems: list[str]) -> Iterator[tuple[str, object]]:
    """Each key of the file by its dotted name, where mdistiller has it and its value is of the kind of the default."""
    for name, value in found.items():
        key = f"{prefix}{name}"
        if name not in known:
            problems.append(
                f"{printable(key)}: unknown key, got {shown(value)}{_nearest(key, str(name), known, prefix)}"
            )
            continue
        default = known[name]
        if isinstance(default, dict):
            if isinstance(value, dict):
                yield from _leaves(cast("dict[Any, Any]", value), cast("Values", default), f"{key}.", problems)
            else:
                problems.append(f"{key}: expected a section with keys, got {shown(value)}")
            continue
        value = _plain(value)
        if _is_like(value, default):
            yield key, value
        else:
            problems.append(f"{key}: expected {_KINDS[type(default)]}, got {shown(value)}")


def _nearest(key: str, name: str, known: Values, prefix: str) -> str:
    """The nearest name in the same section, else the same name in another one."""
    hint = nearest(name, known)
    if hint:
        return hint.replace("mean ", f"mean {prefix}")
    return nearest(key, [dotted for dotted, _ in _defaults(DEFAULTS, "")])


def _plain(value: object) -> object:
    """What mdistiller makes of a value: text that is a Python literal, such as 5e-4 or (32, 32), stands for that."""
    if isinstance(value, str):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pass
    return value


_KINDS: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list of numbers",
    tuple: "a list of numbers",
}


def _is_like(value: object, default: object) -> bool:
    if isinstance(default, (bool, str)):
        return type(value) is type(default)
    if isinstance(default, (list, tuple)):
        return isinstance(value, (list, tuple)) and all(_is_like(v, 0) for v in cast("Sequence[object]", value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- what each key becomes


def _line(key: str, value: object, values: Values, given: bool, problems: list[str]) -> Line:
    try:
        became = _became(key, value, values)
    except ValueError as error:
        problems.append(f"{key}: {error}")
        became = Unused("")
    return Line(key, value, given, became)


def _became(key: str, value: object, values: Values) -> str | Unused:
    section, _, rest = key.partition(".")
    if section not in METHODS:
        return NO_MEANING[key] if key in NO_MEANING else _RULES[key](value, values)
    if section != values["DISTILLER.TYPE"]:
        return Unused(f"no meaning with DISTILLER.TYPE {values['DISTILLER.TYPE']}")
    target = METHODS[section].keys[rest]
    if isinstance(target, Same):
        if value != target.value:
            raise ValueError(f"expected {shown(target.value)}: {target.why}; got {shown(value)}")
        return Unused(target.why)
    if isinstance(target, After):
        return f"{target.key}={target.count(value)}"
    return target if isinstance(target, Unused) else f"{target}={_text(value)}"


def _text(value: object) -> str:
    return str(list(cast("Sequence[object]", value))) if isinstance(value, (list, tuple)) else shown(value)


def _one_of(value: object, known: Mapping[str, Any]) -> Any:
    if value not in known:
        raise ValueError(f"expected one of {', '.join(known)}, got {shown(value)}{nearest(value, known)}")
    return known[cast("str", value)]


def _data(value: object, _: Values) -> str:
    return f"data={_one_of(value, DATA).name}"


def _distiller(value: object, _: Values) -> str:
    name = "none" if value == "NONE" else _one_of(value, {"NONE": None, **METHODS}).name
    return f"method={name}"


def _model(role: str) -> Rule:
    def became(value: object, values: Values) -> str | Unused:
        data = DATA.get(str(values["DATASET.TYPE"]))
        if data is None:
            return Unused("")  # told for DATASET.TYPE
        if role == "student":
            return f"student={_one_of(value, data.students)}"
        if values["DISTILLER.TYPE"] == "NONE":
            return Unused("no meaning with DISTILLER.TYPE NONE")
        return f"teacher={_one_of(value, data.teachers)}"

    return became


def _trainer(value: object, _: Values) -> str:
    return f"trainer={_one_of(value, TRAINERS)}"


def _optimizer(value: object, _: Values) -> Unused:
    if value != "SGD":
        raise ValueError(f"expected SGD, the one that mdistiller has, got {shown(value)}")
    return Unused("the optimizer of every SOLVER.TRAINER")


def _delta(value: object, values: Values) -> str | Unused:
    if TRAINERS.get(str(values["SOLVER.TRAINER"])) == "dot":
        return f"delta={_text(value)}"
    return Unused(f"no meaning with SOLVER.TRAINER {values['SOLVER.TRAINER']}")


def _stages(value: object, values: Values) -> str | Unused:
    """Those after the last epoch never come; mdistiller has them in its defaults, here they would be refused."""
    epochs = cast("float", values["SOLVER.EPOCHS"])
    coming = [stage for stage in cast("Sequence[float]", value) if stage < epochs]
    return f"milestones={coming}" if coming else Unused("none of them comes before the last epoch")


def _as(key: str) -> Rule:
    return lambda value, _: f"{key}={_text(value)}"


_RULES: dict[str, Rule] = {
    "DATASET.TYPE": _data,
    "DISTILLER.TYPE": _distiller,
    "DISTILLER.TEACHER": _model("teacher"),
    "DISTILLER.STUDENT": _model("student"),
    "SOLVER.TRAINER": _trainer,
    "SOLVER.BATCH_SIZE": _as("batch_size"),
    "SOLVER.EPOCHS": _as("epochs"),
    "SOLVER.LR": _as("lr"),
    "SOLVER.LR_DECAY_STAGES": _stages,
    "SOLVER.LR_DECAY_RATE": _as("gamma"),
    "SOLVER.WEIGHT_DECAY": _as("weight_decay"),
    "SOLVER.MOMENTUM": _as("momentum"),
    "SOLVER.TYPE": _optimizer,
    "SOLVER.DOT.DELTA": _delta,
}


def _implied(values: Values) -> Iterator[str]:
    """What mdistiller does without being told."""
    data = DATA[str(values["DATASET.TYPE"])]
    yield "validation=0"
    yield f"augment={data.augment}"
    if values["DISTILLER.TYPE"] != "NONE":
        yield from data.implied
    stages = _stages(values["SOLVER.LR_DECAY_STAGES"], values)
    yield "schedule=constant" if isinstance(stages, Unused) else "schedule=step"
