"""What hyper-parameters must satisfy; each broken rule is a ValueError, each wrong kind a TypeError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def check_rate(group: Mapping[str, Any]) -> None:
    """``lr`` and ``weight_decay`` are finite and not negative; a tensor ``lr`` is believed, reading it could wait."""
    lr = group["lr"]
    if not isinstance(lr, Tensor):
        check_number("`lr`", lr)
    elif lr.numel() != 1:
        raise ValueError(f"expected a tensor `lr` with one element, got shape {tuple(lr.shape)}")
    check_number("`weight_decay`", group["weight_decay"])


def check_number(name: str, value: Any, below: float = math.inf) -> None:
    """Raise TypeError unless ``value`` is a number, ValueError unless it lies in [0, ``below``)."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"expected a number for {name}, got {value!r}")
    if not 0 <= value < below:
        rule = ">= 0 and finite" if below == math.inf else f"in [0, {below:g})"
        raise ValueError(f"expected {name} {rule}, got {value:g}")


def check_delta(name: str, momentum: Any, delta: Any) -> None:
    """The rule 0 <= mu - Delta and mu + Delta < 1; ``name`` is what the optimizer calls mu."""
    check_number(f"`{name}`", momentum, 1)
    if not isinstance(delta, (int, float)) or isinstance(delta, bool):
        raise TypeError(f"expected a number for `delta`, got {delta!r}")
    if not (0 <= delta <= momentum and momentum + delta < 1):
        bound = f"{1 - momentum:g})" if 1 - momentum <= momentum else f"{momentum:g}]"
        raise ValueError(f"expected `delta` in [0, {bound} for {name} = {momentum:g}, got {delta:g}")


def check_in_place(group: Mapping[str, Any]) -> None:
    """What needs a gradient by itself is off: the rule of ``gradients_in_buffers``."""
    if group["dampening"] != 0:
        raise ValueError(f"expected `dampening` 0 with gradients_in_buffers, got {group['dampening']}")
    for name in ("nesterov", "maximize"):
        if group[name]:
            raise ValueError(f"expected `{name}` False with gradients_in_buffers, got True")
