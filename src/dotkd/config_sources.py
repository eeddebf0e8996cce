"""Where a configuration comes from: a recipe's name, a YAML file, `key=value` overrides; and back to YAML.

The YAML is that of version 1.2, since PyYAML's own 1.1 reads 1e-3 as text, `no` as false and 010 as 8. Only plain
values are ever constructed, and a mapping that has a key twice is refused.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from dotkd.config_rules import nearest, printable, shown, unknown_key

Fields = Mapping[str, FieldInfo]

# Stands in a recipe's `data` where only the user can know.
PATH_TO_GIVE = ":PATH"

_NULLS = ("", "~", "null", "Null", "NULL")
_TAG = "tag:yaml.org,2002:"
# YAML 1.2.2, section 10.3.2: what plain text is read as, and the characters that it starts with.
_PLAIN = (
    ("null", "|".join(_NULLS), ["", "~", "n", "N"]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    # Shared values are written out twice rather than as anchor and alias.
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # The three line breaks that only double quotes escape; in others they are read back as a space.
    style = '"' if any(sign in text for sign in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)  # pyright: ignore[reportUnknownMemberType]


def _integer(_: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value, {"0o": 8, "0x": 16}.get(node.value[:2], 10))


def _install_rules() -> None:
    _Loader.yaml_implicit_resolvers = {}
    _Loader.yaml_constructors = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in ("null", "bool", "float", "str", "seq", "map")
    }
    _Loader.add_constructor(f"{_TAG}int", _integer)
    _Dumper.add_representer(str, _text)
    for kind, pattern, first in _PLAIN:
        # The dumper keeps the rules of 1.1 as well: it quotes what a reader of either version would not take for text.
        for user in (_Loader, _Dumper):
            user.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
                f"{_TAG}{kind}", re.compile(f"^(?:{pattern})$"), first
            )


_install_rules()


def read(source: str | Path | None, overrides: Sequence[str], fields: Fields) -> tuple[dict[str, Any], list[str], bool]:
    """The values that `source` and `overrides` give, a line for everything wrong, and whether `source` was read."""
    problems: list[str] = []
    base = _base(source, fields, problems)
    values = base or {}
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not (key and equals):
            problems.append(f"{printable(override)}: expected KEY=VALUE")
            continue
        try:
            value = _as_text(text, fields[key]) if key in fields and _takes_text(fields[key]) else parse(text)
        except ValueError as error:
            problems.append(f"{printable(key)}: expected a value in YAML, got {shown(text)} ({error})")
        else:
            _assign(values, key, value, fields, problems)
    data = values.get("data")
    if isinstance(data, str) and data.endswith(PATH_TO_GIVE):
        problems.append(f"data: expected {data} with the path of your own data as PATH, got it as it stands")
    return values, problems, base is not None


def parse(text: str) -> object:
    """The plain value that YAML `text` stands for; ValueError, in one line, where it is none."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(place + " ".join(part for part in (error.context, error.problem) if part)) from error
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def dump(values: Mapping[str, object]) -> str:
    """`values` as YAML, one key a line; `parse` gives them back exactly."""
    return yaml.dump(
        dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=10**6
    )


def _base(source: str | Path | None, fields: Fields, problems: list[str]) -> dict[str, Any] | None:
    """The values of the recipe or file; None, and a problem added, where it cannot be read."""
    # Here, because each recipe is itself a Config.
    from dotkd.recipes import RECIPES

    if source is None:
        return {}
    if isinstance(source, str) and source in RECIPES:
        return RECIPES[source].config.model_dump()
    content = _read_file(source, list(RECIPES), problems)
    if content is None:
        return None
    values: dict[str, Any] = {}
    recipe = content.pop("recipe", None)
    if recipe is not None:
        if not isinstance(recipe, str) or recipe not in RECIPES:
            known = "expected a name that `dotkd recipes` lists"
            problems.append(f"recipe: {known}, got {shown(recipe)}{nearest(recipe, RECIPES)}")
            return None
        values = RECIPES[recipe].config.model_dump()
    for key, value in content.items():
        _assign(values, str(key), value, fields, problems)
    return values


def _read_file(source: str | Path, recipes: list[str], problems: list[str]) -> dict[Any, Any] | None:
    wanted = "expected a recipe's name or a YAML file"
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            hint = f"; did you mean {path / 'config.yaml'}?" if (path / "config.yaml").exists() else ""
            problems.append(f"{path}: {wanted}, got a folder{hint}")
            return None
        content = parse(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        files = [str(file) for pattern in ("*.yaml", "*.yml") for file in sorted(Path(source).parent.glob(pattern))]
        hint = nearest(source, [*recipes, *files])
        problems.append(f"{printable(str(source))}: {wanted} (`dotkd recipes` lists those){hint}")
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a home that expanduser cannot find
        problems.append(f"{printable(str(source))}: {wanted}: {error}")
    else:
        if content is None:
            return {}
        if isinstance(content, dict):
            return cast("dict[Any, Any]", content)
        problems.append(f"{path}: expected a mapping from keys to values, got {shown(content)}")
    return None


def _takes_text(field: FieldInfo) -> bool:
    return all(kind in (str, NoneType) for kind in get_args(field.annotation) or (field.annotation,))


def _as_text(text: str, field: FieldInfo) -> object:
    """An override's text as it stands, for a path may hold what YAML reads otherwise (`: `, ` #`, a number)."""
    if text.strip() in _NULLS and (get_args(field.annotation) or not text):
        return None
    return parse(text) if text[:1] in ("'", '"') else text


def _assign(values: dict[str, Any], key: str, value: object, fields: Fields, problems: list[str]) -> None:
    """Set `key`, or with a dotted key one entry of a mapping."""
    head, *path = key.split(".")
    if head not in fields:
        problems.append(unknown_key(key, value, fields))
        return
    if not path:
        # A copy: two keys may share an anchor in the file, and an override of one must not reach the other.
        values[head] = copy.deepcopy(value)
        return
    if get_origin(fields[head].annotation) is not dict:
        mappings = ", ".join(name for name, field in fields.items() if get_origin(field.annotation) is dict)
        problems.append(f"{printable(key)}: {head} has no entries, got {shown(value)} (only {mappings} have)")
        return
    inner: object = values.setdefault(head, {})
    for name in path[:-1]:
        inner = cast("dict[str, object]", inner).setdefault(name, {}) if isinstance(inner, dict) else None
    if isinstance(inner, dict) and all(path):
        cast("dict[str, object]", inner)[path[-1]] = copy.deepcopy(value)
    else:
        problems.append(f"{printable(key)}: expected {head}.NAME with {head} a mapping, got {shown(value)}")
