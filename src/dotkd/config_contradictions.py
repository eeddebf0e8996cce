"""The rules between the keys of a configuration, and those that rest on what exists: data, models, methods."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dotkd.config_rules import kind_in_words, nearest, printable, shown

if TYPE_CHECKING:
    from dotkd.config import Config

# The trainers that give the two losses momenta of their own, or copy the effect of that.
TWO_MOMENTA = ("dot", "dot-normalized", "sgd-matched", "dot-adamw")
APART = (*TWO_MOMENTA, "deepkd")
ADAMW = ("adamw", "dot-adamw")
TEACHER_INPUT = ("image_size", "mean", "std", "num_classes", "classes")
MORE_TEACHERS = ("model", "weights", "options", "input", "share")


def contradictions(config: Config) -> Iterator[tuple[set[str], str]]:
    """The rules that no single key can show; yields the keys that each broken one rests on, and the line."""
    yield from _optimization(config)
    yield from _memory(config)
    yield from _schedule(config)
    yield from _names(config)
    yield from _objective(config)
    yield from _cache(config)
    yield from _sharded(config)


def _sharded(config: Config) -> Iterator[tuple[set[str], str]]:
    """What a student that is spread over processes cannot have yet."""
    from dotkd.methods import METHODS, find

    if config.parallel != "fsdp":
        return
    looks_inside = config.method in METHODS and inspect.isclass(find(config.method))
    wrong = (
        ("ema", "null", config.ema is not None),
        ("cache", "null", config.cache is not None),  # some processes would ask a teacher that needs all of them
        ("compile", "false or auto", config.compile is True),
        ("precision", "auto, fp32 or bf16", config.precision == "fp16"),
        ("teacher_learns", "none", bool(config.teacher_learns)),
        # FSDP gets no notice of a gradient that does not come in by a model's output, and would lose it.
        ("method", "one that does not look inside the models", looks_inside),
    )
    for key, expected, found in wrong:
        if found:
            text = f"{key}: expected {expected} with parallel fsdp, got {shown(getattr(config, key))}"
            yield {key, "parallel"}, f"{text}; parallel=ddp takes it"


def _objective(config: Config) -> Iterator[tuple[set[str], str]]:
    if config.method == "none":
        if config.trainer in APART:
            text = f"trainer: {config.trainer} needs a distillation loss, got method none; expected sgd or adamw"
            yield {"trainer", "method"}, text
        if config.task_weight == 0:
            yield {"task_weight", "method"}, "task_weight: expected a number > 0 with method none, got 0"
    elif config.task_weight == config.distill_weight == 0:
        yield {"task_weight", "distill_weight"}, "task_weight, distill_weight: expected one of them > 0, got 0 and 0"
    if config.trainer == "deepkd" and config.method not in ("deepkd", "none"):
        text = f"trainer: deepkd has a momentum for each loss of method deepkd, got method {shown(config.method)}"
        yield {"trainer", "method"}, text
    if config.distill_warmup_epochs is not None and config.distill_warmup_epochs >= config.epochs:
        text = (
            f"distill_warmup_epochs: expected a number < {config.epochs} (epochs), got {config.distill_warmup_epochs}"
        )
        yield {"distill_warmup_epochs", "epochs"}, text
    if config.teacher == "self" and config.ema is None:
        yield {"teacher", "ema"}, "teacher: self is the student's moving average, which needs ema, got ema null"
    for key in ("teacher_weights", "teacher_learns", "more_teachers", "teacher_input", "teacher_options"):
        if config.teacher == "self" and getattr(config, key):
            yield {"teacher", key}, f"{key}: expected none with teacher self, got {shown(getattr(config, key))}"
    for key in ("teacher_learns", "teacher_features"):
        if config.more_teachers and getattr(config, key):
            yield {"more_teachers", key}, f"{key}: expected none with more_teachers, got {shown(getattr(config, key))}"
    trained = config.teacher_weights is not None or config.teacher_epochs == 0
    if config.more_teachers and not trained:
        text = (
            "teacher_weights: expected the first teacher's with more_teachers, which all are trained already, got null"
        )
        yield {"more_teachers", "teacher_weights"}, text
    if config.teacher_input and not trained:
        text = "teacher_weights: expected those of a trained teacher with teacher_input, got null"
        yield {"teacher_input", "teacher_weights"}, text
    yield from _entries("teacher_input", config.teacher_input, TEACHER_INPUT)
    for number, entry in enumerate(config.more_teachers):
        yield from _entries(f"more_teachers.{number}", entry, MORE_TEACHERS)
        if not isinstance(entry.get("weights"), str):
            text = f"expected the weights of each teacher as a path, got {shown(entry.get('weights'))}"
            yield {"more_teachers"}, f"more_teachers.{number}.weights: {text}"


def _cache(config: Config) -> Iterator[tuple[set[str], str]]:
    if config.cache is None:
        if config.cache_top_k is not None:
            yield {"cache", "cache_top_k"}, f"cache_top_k: expected null without cache, got {config.cache_top_k}"
        return
    given = shown(config.cache)
    if config.method == "none":
        yield {"cache", "method"}, f"cache: expected null with method none, which asks no teacher, got {given}"
    if config.teacher == "self":
        yield {"cache", "teacher"}, f"cache: expected null with teacher self, which changes at every step, got {given}"
    if config.teacher_learns:
        text = f"cache: expected null with teacher_learns, by which the teacher changes at every step, got {given}"
        yield {"cache", "teacher_learns"}, text
    if config.cache_top_k is not None and config.method not in ("kd", "none"):
        text = (
            f"cache_top_k: expected null with method {config.method} (sampled classes are unbiased for kd alone), "
            f"got {config.cache_top_k}"
        )
        yield {"cache_top_k", "method"}, text


def _entries(key: str, given: Mapping[str, object], known: Sequence[str]) -> Iterator[tuple[set[str], str]]:
    for name, value in given.items():
        if name not in known:
            hint = nearest(name, known)
            yield {key.partition(".")[0]}, f"{key}.{printable(name)}: unknown key, got {shown(value)}{hint}"


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
    if config.sync_batch_norm and config.device == "cpu":
        text = "sync_batch_norm: expected false with device cpu, where torch has none, got true"
        yield {"sync_batch_norm", "device"}, text
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        hint = nearest(config.device, ("auto", "cpu", "cuda", "cuda:0"))
        yield {"device"}, f"device: expected auto, cpu, cuda or cuda:N, got {shown(config.device)}{hint}"


def _memory(config: Config) -> Iterator[tuple[set[str], str]]:
    if config.low_memory:
        reason = "with low_memory, which keeps no gradients"
        if config.trainer in ADAMW:
            yield {"low_memory", "trainer"}, f"low_memory: expected false with trainer {config.trainer}, got true"
        elif config.nesterov:
            yield {"low_memory", "nesterov"}, f"nesterov: expected false {reason}, got true"
        if config.clip_norm is not None:
            yield {"low_memory", "clip_norm"}, f"clip_norm: expected null {reason}, got {config.clip_norm}"
        if config.precision == "fp16":
            yield {"low_memory", "precision"}, f"precision: expected fp32 or bf16 {reason}, got 'fp16'"
    if config.activation_checkpointing and config.compile is True:
        text = "compile: expected false with activation_checkpointing, got true"
        yield {"activation_checkpointing", "compile"}, text


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
        text = f"milestones: expected epochs < {config.epochs} (epochs), got {given}; give others, or schedule=constant"
        yield {"milestones", "epochs"}, f"{text} milestones=[]"
    if config.warmup_epochs >= config.epochs:
        text = f"warmup_epochs: expected a number < {config.epochs} (epochs), got {config.warmup_epochs}"
        yield {"warmup_epochs", "epochs"}, text


def _names(config: Config) -> Iterator[tuple[set[str], str]]:
    """Data, models, the distillation loss and their options, against what exists."""
    # Here, so that `describe` does not wait for torch.
    from dotkd.data import IMAGE_SOURCES, SOURCES
    from dotkd.models import MODELS
    from dotkd.models.arguments import check_options
    from dotkd.models.hubs import LIBRARIES, refuse_misnamed

    kind, _, place = config.data.partition(":")
    if kind not in SOURCES:
        text = f"data: expected {', '.join(SOURCES.values())}, got {shown(config.data)}{nearest(kind, SOURCES)}"
        yield {"data"}, text
    elif SOURCES[kind].endswith(":PATH") and not place:
        yield {"data"}, f"data: expected {SOURCES[kind]}, got {shown(config.data)}"
    if config.image_size is not None and kind not in IMAGE_SOURCES:
        yield {"image_size", "data"}, f"image_size: expected null with data {kind}, got {config.image_size}"
    for key, model, options in (
        *([] if config.teacher == "self" else [("teacher", config.teacher, config.teacher_options)]),
        ("student", config.student, config.student_options),
    ):
        if ":" in model:
            # A library's or the user's own: neither is imported before it is built.
            try:
                refuse_misnamed(model)
            except ValueError as error:
                yield {key}, f"{key}: {error}"
            continue
        if model not in MODELS:
            libraries = ", ".join(f"{library}:NAME" for library in LIBRARIES)
            known = f"a name that `dotkd models` lists, {libraries}, or module:attr for your own"
            yield {key}, f"{key}: expected {known}, got {shown(model)}{nearest(model, MODELS)}"
            continue
        try:
            check_options(model, MODELS[model], options)
        except ValueError as error:
            yield {key, f"{key}_options"}, f"{key}_options: {error}"
    yield from _method(config)


def _method(config: Config) -> Iterator[tuple[set[str], str]]:
    from dotkd.methods import GIVEN, METHODS, find

    if ":" in config.method:  # the user's own is imported when it is built
        return
    if config.method == "none":
        for name, value in config.method_options.items():
            text = f"method none has no such option (it has none), got {shown(value)}"
            yield {"method", "method_options"}, f"method_options.{printable(name)}: {text}"
        return
    if config.method not in METHODS:
        known = "a name that `dotkd methods` lists, none, or module:attr for your own"
        yield {"method"}, f"method: expected {known}, got {shown(config.method)}{nearest(config.method, METHODS)}"
        return
    keys, wrong = {"method", "method_options"}, False
    method: Any = find(config.method)
    parameters = inspect.signature(method).parameters
    known = {n: p.default for n, p in parameters.items() if p.default is not p.empty and n not in GIVEN}
    called = inspect.signature(getattr(method, "forward", method)).parameters
    if config.mix != "none" and "target" in called:
        text = (
            f"mix: expected none with method {config.method}, which needs samples of one class, got {shown(config.mix)}"
        )
        yield {"mix", "method"}, text
    if config.cache is not None and getattr(method, "teacherless", False):
        text = f"cache: expected null with method {config.method}, which needs no teacher, got {shown(config.cache)}"
        yield {"cache", "method"}, text
    elif config.cache is not None and inspect.isclass(method):
        text = f"cache: expected null with method {config.method}, which looks inside the teacher, got"
        yield {"cache", "method"}, f"{text} {shown(config.cache)}"
    elif config.cache is not None and "teacher_strong" in called:
        text = f"cache: expected null with method {config.method}, which compares two views, got {shown(config.cache)}"
        yield {"cache", "method"}, text
    if config.temperature is not None and "temperature" not in parameters:
        text = f"temperature: expected null with method {config.method}, which has none, got {config.temperature}"
        yield {"temperature", "method"}, text
    for name, value in config.method_options.items():
        if name not in known:
            takes = f"its options: {', '.join(known)}" if known else "it has none"
            own_key = name == "temperature" and name in parameters
            hint = "; temperature is a key of its own" if own_key else nearest(name, known)
            text = f"method {config.method} has no such option ({takes}), got {shown(value)}{hint}"
        elif not _is_like(value, known[name]):
            text = f"expected {kind_in_words(known[name])}, got {shown(value)}"
        else:
            continue
        wrong = True
        yield keys, f"method_options.{printable(name)}: {text}"
    if not wrong and not inspect.isclass(method):
        yield from _tried(config, method, parameters)


def _is_like(value: object, default: object) -> bool:
    """Whether a value is of the kind of an option's default; where that is null, the method itself will say."""
    if default is None:
        return True
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, (list, tuple)) if isinstance(default, tuple) else isinstance(value, type(default))


def _tried(config: Config, loss: Any, parameters: Mapping[str, Any]) -> Iterator[tuple[set[str], str]]:
    """The ranges are the loss's own to state: two samples of three classes bring them out before any training."""
    import torch

    logits, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    given: dict[str, object] = {"target": target, "student_strong": logits, "teacher_strong": logits, "progress": 0.0}
    if config.temperature is not None:
        given["temperature"] = config.temperature
    try:
        loss(logits, logits, **{n: v for n, v in given.items() if n in parameters}, **config.method_options)
    except ValueError as error:
        yield {"method", "method_options", "temperature"}, f"method_options: {error}"
