"""What a configuration must satisfy, in words: the rule of each key, and the rules between keys."""

from __future__ import annotations

import difflib
import inspect
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

if TYPE_CHECKING:
    from dotkd.config import Config

# The trainers that give the two losses momenta of their own, or copy the effect of that.
TWO_MOMENTA = ("dot", "dot-normalized", "sgd-matched", "dot-adamw")
ADAMW = ("adamw", "dot-adamw")

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))

_short = reprlib.Repr()
_short.maxstring = _short.maxlong = _short.maxother = 80


def shown(value: object) -> str:
    """`value` on one line, at no great length, with null, true and false as YAML has them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _short.repr(list(value) if isinstance(value, tuple) else value)  # pyright: ignore[reportUnknownArgumentType]


def printable(key: str) -> str:
    """`key` as it is, or escaped where it would break the line."""
    return key if key.isprintable() else ascii(key)


def nearest(name: object, known: Iterable[str], rest: str = "") -> str:
    """`; did you mean ...?` for the known name closest to `name` (`rest` goes behind it), or nothing."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    written = str(name).lower()
    initials = "".join(word[:1] for word in written.split("_"))  # learning_rate is lr
    close = difflib.get_close_matches(written, by_lower, n=1) or [initials] * (initials in by_lower)
    return f"; did you mean {by_lower[close[0]]}{rest}?" if close else ""


def unknown_key(key: str, value: object, known: Iterable[str]) -> str:
    """The line about a key that does not exist."""
    head, dot, rest = key.partition(".")
    return f"{printable(key)}: unknown key, got {shown(value)}{nearest(head, known, printable(dot + rest))}"


def rule(annotation: Any, metadata: Sequence[object] = ()) -> str:
    """What a key takes, from its type and bounds: "a number >= 0 and < 1, or null"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if NoneType in args:
        return f"{rule(next(arg for arg in args if arg is not NoneType), metadata)}, or null"
    if origin is Literal:
        return f"one of {', '.join(args)}"
    if origin is Annotated:
        return rule(args[0], [part for extra in args[1:] for part in extra.metadata])
    if origin is tuple:
        return f"a list, each item {rule(args[0])}"
    if origin is dict:
        return "a mapping from names to plain, finite values"
    limits = [(sign, getattr(part, name, None)) for part in metadata for name, sign in _BOUNDS]
    bounds = " and ".join(f"{sign} {limit}" for sign, limit in limits if limit is not None)
    return f"{_KINDS[annotation]} {bounds}".rstrip()


def field_problems(error: ValidationError, fields: Mapping[str, FieldInfo]) -> dict[str, str]:
    """What pydantic found: for each key (or entry of a mapping) one line with its rule and the value given."""
    problems: dict[str, str] = {}
    for found in error.errors(include_url=False, include_context=False):
        key, *inside = (str(part) for part in found["loc"])
        value: object = found["input"]
        if key not in fields:
            problems[key] = unknown_key(key, value, fields)
            continue
        annotation = fields[key].annotation
        hint = nearest(value, get_args(annotation)) if get_origin(annotation) is Literal else ""
        name = f"{key}.{inside[0]}" if inside and get_origin(annotation) is dict else key
        expected = rule(annotation, fields[key].metadata)
        problems.setdefault(name, f"{printable(name)}: expected {expected}, got {shown(value)}{hint}")
    return problems


def contradictions(config: Config) -> Iterator[tuple[set[str], str]]:
    """The rules that no single key can show; yields the keys that each broken one rests on, and the line."""
    yield from _optimization(config)
    yield from _schedule(config)
    yield from _names(config)
    if config.method == "none":
        if config.trainer in TWO_MOMENTA:
            text = f"trainer: {config.trainer} needs a distillation loss, got method none; expected sgd or adamw"
            yield {"trainer", "method"}, text
        if config.task_weight == 0:
            yield {"task_weight", "method"}, "task_weight: expected a number > 0 with method none, got 0"
    elif config.task_weight == config.distill_weight == 0:
        yield {"task_weight", "distill_weight"}, "task_weight, distill_weight: expected one of them > 0, got 0 and 0"


def _optimization(config: Config) -> Iterator[tuple[set[str], str]]:
    momentum, delta, trainer = config.momentum, config.delta, config.trainer
    if trainer in TWO_MOMENTA and not (delta <= momentum and momentum + delta < 1):
        yield (
            {"delta", "momentum", "trainer"},
            f"delta: expected 0 <= delta <= momentum and momentum + delta < 1, got {delta} with momentum {momentum}",
        )
    if config.nesterov and trainer in ADAMW:
        yield {"nesterov", "trainer"}, f"nesterov: expected false with trainer {trainer}, got true"
    elif config.nesterov and momentum == 0:
        yield {"nesterov", "momentum"}, "nesterov: expected momentum > 0 with it, got momentum 0"
    if config.batch_size % config.accumulate:
        yield (
            {"accumulate", "batch_size"},
            f"accumulate: expected a divisor of batch_size {config.batch_size}, got {config.accumulate}",
        )
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        hint = nearest(config.device, ("auto", "cpu", "cuda", "cuda:0"))
        yield {"device"}, f"device: expected auto, cpu, cuda or cuda:N, got {shown(config.device)}{hint}"


def _schedule(config: Config) -> Iterator[tuple[set[str], str]]:
    milestones, given = list(config.milestones), shown(config.milestones)
    if config.schedule != "step":
        if milestones:
            keys = {"milestones", "schedule"}
            yield keys, f"milestones: expected none with schedule {config.schedule} (they belong to step), got {given}"
    elif not milestones:
        yield {"milestones", "schedule"}, "milestones: expected at least one with schedule step, got []"
    elif milestones != sorted(set(milestones)):
        yield {"milestones"}, f"milestones: expected increasing epochs, got {given}"
    elif milestones[-1] >= config.epochs:
        yield {"milestones", "epochs"}, f"milestones: expected epochs < {config.epochs} (epochs), got {given}"
    if config.warmup_epochs >= config.epochs:
        text = f"warmup_epochs: expected a number < {config.epochs} (epochs), got {config.warmup_epochs}"
        yield {"warmup_epochs", "epochs"}, text


def _names(config: Config) -> Iterator[tuple[set[str], str]]:
    """Data, models, the distillation loss and their options, against what exists."""
    # Here, so that `describe` does not wait for torch.
    from dotkd.data import SOURCES
    from dotkd.models import MODELS
    from dotkd.models.arguments import check_options

    kind, _, place = config.data.partition(":")
    if kind not in SOURCES:
        text = f"data: expected {', '.join(SOURCES.values())}, got {shown(config.data)}{nearest(kind, SOURCES)}"
        yield {"data"}, text
    elif SOURCES[kind].endswith(":PATH") and not place:
        yield {"data"}, f"data: expected {SOURCES[kind]}, got {shown(config.data)}"
    if config.image_size is not None and kind != "imagefolder":
        yield {"image_size", "data"}, f"image_size: expected null with data {kind}, got {config.image_size}"
    for key, model, options in (
        ("teacher", config.teacher, config.teacher_options),
        ("student", config.student, config.student_options),
    ):
        if ":" in model:
            continue  # the user's own, imported when it is built
        if model not in MODELS:
            known = f"one of {', '.join(MODELS)}, or module:attr for your own"
            yield {key}, f"{key}: expected {known}, got {shown(model)}{nearest(model, MODELS)}"
            continue
        try:
            check_options(model, MODELS[model], options)
        except ValueError as error:
            yield {key, f"{key}_options"}, f"{key}_options: {error}"
    yield from _method_options(config)


def _method_options(config: Config) -> Iterator[tuple[set[str], str]]:
    import torch

    from dotkd.losses import LOSSES

    keys, options = {"method", "method_options"}, config.method_options
    loss = LOSSES.get(config.method)  # none has no loss
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(loss).parameters if loss else {}
    known = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and n != "temperature"]
    wrong = False
    for name, value in options.items():
        if name not in known:
            takes = f"its options: {', '.join(known)}" if known else "it has none"
            hint = "; temperature is a key of its own" if name == "temperature" else nearest(name, known)
            text = f"method {config.method} has no such option ({takes}), got {shown(value)}{hint}"
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            text = f"expected a number, got {shown(value)}"
        else:
            continue
        wrong = True
        yield keys, f"method_options.{printable(name)}: {text}"
    if loss and not wrong:
        # The ranges are the loss's own to state: one sample of two classes brings them out before any training.
        logits, target = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)
        arguments = (logits, logits, target) if "target" in parameters else (logits, logits)
        try:
            loss(*arguments, **{**options, "temperature": config.temperature})
        except ValueError as error:
            yield keys | {"temperature"}, f"method_options: {error}"
