"""One distillation method, whatever it is made of, behind one call: activations go in, losses by stream come out."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from dotkd.methods import GIVEN, METHODS, Card, card_of, find
from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.card import Need
from dotkd.own_code import find_own

Method = str | Callable[..., Any]


class Objective:
    """A method with its options.

    Args:
        method: a name of `METHODS`, `module:attr`, a function of logits, or the class of a feature method (see
            `dotkd.methods`).
        temperature: passed to a method that takes one; None: as published, else the function's own default.
        options: further keyword arguments of the function or class.

    Raises:
        ValueError: unknown method or option, with the nearest name.
    """

    def __init__(
        self, method: Method, *, temperature: float | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self.card = _card(method)
        self._made = _found(method)
        self.module: nn.Module | None = None
        self.looks_inside = isinstance(self._made, type) and issubclass(self._made, nn.Module)
        self.teacherless = bool(getattr(self._made, "teacherless", False))
        self._options = dict(options or {})
        built = inspect.signature(self._made).parameters
        known = {name: p for name, p in built.items() if name not in GIVEN}
        for name in self._options:
            nearest_or_refuse("option", name, list(known)[2:])
        if self.looks_inside:
            self._wants_targets = "targets" in built
            self._wants = _named(self._made.forward)
        else:
            self._wants = _named(self._made)
        if "temperature" in built and temperature is None and self.card:
            temperature = self.card.temperature
        if "temperature" in built and temperature is not None:
            self._options["temperature"] = temperature
        elif "temperature" in built and built["temperature"].default is inspect.Parameter.empty:
            raise ValueError(f"expected a `temperature`, which method {method!r} takes and has no default for")
        # The one that is in force; None: the method has none.
        own = built["temperature"].default if "temperature" in built else None
        self.temperature: float | None = self._options.get("temperature", own)
        # A class of the user's own without a card says it in an attribute, or is shown all but the pre-activations.
        needs = self.card.needs if self.card else getattr(self._made, "needs", ("features", "embedding"))
        self.needs: tuple[Need, ...] = needs
        self.wants_target = "target" in self._wants
        self.wants_index = "index" in self._wants
        self.wants_strong = "student_strong" in self._wants
        self.wants_progress = "progress" in self._wants

    def build(self, student: Anatomy, teacher: Anatomy, targets: Tensor | None) -> None:
        """Make the module of a feature method; `targets` (M,) int64 are the labels of the training split."""
        given: dict[str, Any] = {}
        if self._wants_targets:
            if targets is None:
                raise ValueError("this method needs `targets`, the labels of the training split")
            given["targets"] = targets
        self.module = self._made(student, teacher, **given, **self._options)

    def __call__(self, student: Activations, teacher: Activations, **given: Tensor | float | None) -> dict[str, Tensor]:
        """The unweighted losses by stream, each of shape ().

        given: target, index, progress, student_strong, teacher_strong, of which the method gets what it names.
        """
        chosen = {name: value for name, value in given.items() if name in self._wants}
        if self.module is not None:
            found = self.module(student, teacher, **chosen)
        else:
            found = self._made(student.logits, teacher.logits, **chosen, **self._options)
        if isinstance(found, Tensor):
            return {"distill": found}
        streams: dict[str, Tensor] = {}
        for name, loss in found.items():
            stream = self.card.streams.get(name, "distill") if self.card else "distill"
            streams[stream] = streams[stream] + loss if stream in streams else loss
        return streams


def nearest_or_refuse(kind: str, name: str, known: Iterable[str]) -> str:
    """`name` if it is known; ValueError naming the nearest otherwise."""
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        expected = f"one of {', '.join(names)}" if names else "none"
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {kind} {name!r}, expected {expected}{hint}")
    return name


def _found(method: Method) -> Any:
    if not isinstance(method, str):
        return method
    if ":" in method:
        found = find_own(method, "method")
        if not callable(found):
            kind = type(found).__name__
            raise TypeError(f"expected `{method}` to be a function of logits or a class of nn.Module, got {kind}")
        return found
    return find(nearest_or_refuse("method", method, METHODS))


def _card(method: Method) -> Card | None:
    if isinstance(method, str) and ":" not in method:
        return card_of(nearest_or_refuse("method", method, METHODS))
    card = getattr(_found(method), "card", None)
    return card if isinstance(card, Card) else None


def _named(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(name for name in inspect.signature(function).parameters if name in GIVEN) - {"temperature"}
