"""What is searched for a trainer, and in which range.

With a momentum mu that stays, plain SGD moves by lr (w_task g_task + w_distill g_distill + lambda theta), so of lr and
the two weights only the products lr w_task and lr w_distill matter (and lr lambda): one of the three is redundant.
Hence the task weight stays where the configuration has it, and lr and distill_weight are searched, which reach every
pair of products. Where the task weight is 0 there is one product, and distill_weight stays too.

    lr              SGD forms 1e-3..1, AdamW forms 1e-5..1e-2, log: the same three decades for all trainers of a form,
                    not centred on the configuration's lr, which may suit one trainer better than another
    distill_weight  the configuration's, by 0.1 to 10, log: more than the factor 7 by which DOT with delta = 0.075
                    shifts the weights by itself, so that a trainer of one momentum can get there too
    temperature     1..10, log
    delta           0..0.95 (1 - mu), of trainers that have one. At 1 - mu the distillation momentum mu + delta would be
                    1 and never forget; at 0.95 (1 - mu) the loss counts 20 times. At 0 `dot` is `sgd`: its space holds
                    that of `sgd` and a dimension more, at the same budget.

A default range is widened where the configuration's own value lies outside it: that is trial 0 of every trainer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dotkd.config_contradictions import ADAMW, APART
from dotkd.config_rules import nearest, printable, shown
from dotkd.config_sources import parse

if TYPE_CHECKING:
    from dotkd.config import Config

# In this order they are drawn: equal draws for the keys that trainers share.
TUNABLE = (
    "lr",
    "distill_weight",
    "temperature",
    "task_weight",
    "weight_decay",
    "momentum",
    "label_smoothing",
    "warmup_epochs",
    "distill_warmup_epochs",
    "clip_norm",
    "ema",
    "beta2",
    "delta",
)
DEFAULT = ("lr", "distill_weight", "temperature", "delta")
# A rule of the configuration holds these two together.
_BOUND = ("momentum", "delta")
_DISTILLING = ("distill_weight", "temperature", "task_weight", "distill_warmup_epochs")
_FORM = "expected KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A,B,C"
Value = float | None


class Range(NamedTuple):
    """Every number from `low` to `high`; log: equal chances for equal ratios."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}" + (":log" if self.log else "")

    @property
    def ends(self) -> tuple[Value, ...]:
        """What has to be allowed for all of it to be."""
        return self.low, self.high

    def holds(self, value: Value) -> bool:
        """Whether `value` can be drawn."""
        return value is not None and self.low <= value <= self.high


class Choice(NamedTuple):
    """One of some values."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ",".join("null" if value is None else f"{value:g}" for value in self.values)

    @property
    def ends(self) -> tuple[Value, ...]:
        """All of them."""
        return self.values

    def holds(self, value: Value) -> bool:
        """Whether `value` can be drawn."""
        return value in self.values


Span = Range | Choice
Space = dict[str, Span]


def parse_space(words: Sequence[str]) -> Space:
    """The spans that `--space` names, `KEY=LOW..HIGH[:log]` or `KEY=A,B,C`.

    Raises ValueError for a key that is unknown, not to be tuned or named twice, and for what is no span.

    >>> parse_space(["lr=1e-3..1:log", "temperature=1,4"])
    {'lr': Range(low=0.001, high=1.0, log=True), 'temperature': Choice(values=(1.0, 4.0))}
    """
    space: Space = {}
    for word in words:
        key, equals, text = (part.strip() for part in word.partition("="))
        if not (key and equals and text):
            raise ValueError(f"--space {printable(word)}: {_FORM}")
        if key not in TUNABLE:
            raise ValueError(f"--space {printable(key)}: {_not_tunable(key)}")
        if key in space:
            raise ValueError(f"--space {key}: given twice")
        space[key] = _range(word, text) if ".." in text else _choice(word, text)
    return space


def own_values(config: Config) -> dict[str, Value]:
    """What `config` itself has for each key that it can be tuned in; "as published" is resolved."""
    from dotkd.methods.objective import Objective
    from dotkd.schedule import weights

    own: dict[str, Value] = {key: getattr(config, key) for key in TUNABLE}
    if config.trainer not in APART:
        del own["delta"]
    if config.trainer not in ADAMW:
        del own["beta2"]
    if config.method == "none":
        return {key: value for key, value in own.items() if key not in _DISTILLING}
    own["task_weight"], own["distill_weight"], own["distill_warmup_epochs"] = weights(config)
    own["temperature"] = Objective(
        config.method, temperature=config.temperature, options=config.method_options
    ).temperature
    if own["temperature"] is None:
        del own["temperature"]
    return own


def make_space(config: Config, given: Mapping[str, Span]) -> Space:
    """The space of `config.trainer`: the default spans, those `given` instead or besides, in one order.

    Raises ValueError for a given span that does not hold the configuration's own value, which is trial 0, or that
    reaches where the configuration's rules do not allow it.
    """
    own = own_values(config)
    space: Space = {}
    for key in own:
        if key in given:
            space[key] = given[key]
            if not given[key].holds(own[key]):
                raise ValueError(
                    f"--space {key}={given[key]}: expected to hold the configuration's own {shown(own[key])}, which is "
                    f"trial 0 of each trainer; widen it, or give {key}=VALUE with a value in it"
                )
        elif key in DEFAULT and (span := _default(config, key, own)) is not None:
            space[key] = span
    _check(config, space)
    return space


def refuse_unused(given: Mapping[str, Span], configs: Iterable[Config]) -> None:
    """Raises ValueError for a given key that none of `configs`, one a trainer, has a use for."""
    configs = list(configs)
    for key, span in given.items():
        if not any(key in own_values(config) for config in configs):
            names = ", ".join(config.trainer for config in configs)
            raise ValueError(f"--space {key}={span}: {key} means nothing to {names} with method {configs[0].method}")


def at_edge(config: Config, space: Space, params: Mapping[str, Value]) -> list[str]:
    """Keys of `params` in the outer 5 % of a range that could reach further: the best may lie outside."""
    found: list[str] = []
    for key, span in space.items():
        value = params[key]
        if not isinstance(span, Range) or value is None:
            continue
        low, high, at = (math.log(x) if span.log else x for x in (span.low, span.high, value))
        share = (at - low) / (high - low)
        beyond = high + 0.05 * (high - low) if share > 0.95 else low - 0.05 * (high - low)
        if not 0.05 <= share <= 0.95 and _allowed(config, {**params, key: math.exp(beyond) if span.log else beyond}):
            found.append(key)
    return found


def _default(config: Config, key: str, own: Mapping[str, Value]) -> Range | None:
    value = own[key]
    assert value is not None
    match key:
        case "lr":
            low, high, log = (1e-5, 1e-2, True) if config.trainer in ADAMW else (1e-3, 1.0, True)
        case "distill_weight":
            if not value or not own["task_weight"]:
                return None
            low, high, log = _rounded(0.1 * value), _rounded(10 * value), True
        case "temperature":
            low, high, log = 1.0, 10.0, True
        case _:
            low, high, log = 0.0, _rounded(min(0.95 * (1 - config.momentum), config.momentum)), False
    low, high = min(low, value), max(high, value)
    return Range(low, high, log) if low < high else None


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _check(config: Config, space: Space) -> None:
    """Raises ValueError where an end of a span breaks a rule of the configuration."""
    for key, span in space.items():
        for end in span.ends:
            others = [other for other in _BOUND if key in _BOUND and other != key and other in space]
            corners = [{other: value} for other in others for value in space[other].ends] or [{}]
            for corner in corners:
                _try(config, {key: end, **corner}, f"--space {key}={span}: at {shown(end)} with {config.trainer}")


def _try(config: Config, changes: Mapping[str, Value], told: str) -> None:
    from dotkd.config import ConfigError

    try:
        config.replace(**changes)
    except ConfigError as error:
        raise ValueError("\n".join(f"{told}: {problem}" for problem in error.problems)) from error


def _allowed(config: Config, changes: Mapping[str, Value]) -> bool:
    try:
        config.replace(**changes)
    except ValueError:
        return False
    return True


def _not_tunable(key: str) -> str:
    from dotkd.config import Config

    if key in Config.model_fields:
        return f"not a key that is tuned; those are {', '.join(TUNABLE)}"
    return f"unknown key{nearest(key, TUNABLE)}"


def _range(word: str, text: str) -> Range:
    span, colon, scale = text.partition(":")
    low, high = (_number(word, end) for end in span.split("..", 1))
    if colon and scale != "log":
        raise ValueError(f"--space {word}: {_FORM}")
    if low is None or high is None or not low < high:
        raise ValueError(f"--space {word}: expected LOW < HIGH, got {shown(low)} and {shown(high)}")
    if colon and low <= 0:
        raise ValueError(f"--space {word}: expected LOW > 0 on a log scale, got {low:g}")
    return Range(low, high, bool(colon))


def _choice(word: str, text: str) -> Choice:
    values = tuple(_number(word, part) for part in text.split(","))
    if len(set(values)) < len(values):
        raise ValueError(f"--space {word}: a value is given twice")
    return Choice(values)


def _number(word: str, text: str) -> Value:
    try:
        value: Any = parse(text.strip())
    except ValueError:
        value = text
    if value is None and text.strip():
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"--space {word}: expected numbers, got {shown(text)}; {_FORM}")
    return float(value)
