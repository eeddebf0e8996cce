"""What a record holds: a teacher's logits for one view of one sample, all of them or a sample of the classes.

A kind of record turns logits (M, C) into parts, each (M, ...), and parts back into logits; `fields` says how the parts
lie in a record. First use and later use go through the same parts, so that both see the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dotkd.cache.sampling import sampled

Field = tuple[str, str, tuple[int, ...]]


class Records(Protocol):
    """A kind of record. fields: name, dtype and shape of each part."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """Name, dtype (little-endian, of numpy) and shape of each part."""
        ...

    def encode(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, ...]:
        """The parts for logits (M, C). uniform: (M,) float64 on the CPU, a number in [0, 1) for each record."""
        ...

    def decode(self, *parts: Tensor) -> Tensor:
        """The logits, (M, C) float32, on the device of the parts."""
        ...

    def describe(self) -> dict[str, Any]:
        """What `records_of` makes the same kind from."""
        ...


@dataclass(frozen=True)
class WholeRecords:
    """All C logits, rounded to float16: off by at most 2^-11 of the value. Nothing waits for the device."""

    classes: int

    @property
    def fields(self) -> tuple[Field, ...]:
        """The logits."""
        return (("logits", "<f2", (self.classes,)),)

    def encode(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, ...]:
        """The rounded logits; `uniform` is not needed."""
        return (logits.half(),)

    def decode(self, *parts: Tensor) -> Tensor:
        """The logits."""
        return parts[0].float()

    def describe(self) -> dict[str, Any]:
        """The number of classes."""
        return {"classes": self.classes}


@dataclass(frozen=True)
class SampledRecords:
    """`count` classes and their p^ at `temperature` (see `dotkd.cache.sampling`), rounded to float16.

    The logits of a record are temperature log p^, and -inf for a class that is not kept, so that softmax(logits /
    temperature) is p^: off by at most 2^-11 of the value, or 2^-25. The classes are chosen on the CPU: where logits on
    another device are encoded, the host waits for them.

    Raises ValueError for a count outside 1..classes-1 or a temperature that is not positive and finite.
    """

    classes: int
    count: int
    temperature: float

    def __post_init__(self) -> None:
        if not 1 <= self.count < self.classes:
            raise ValueError(
                f"expected `top_k` in 1..{self.classes - 1}, fewer than the {self.classes} classes, got {self.count}"
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"expected `temperature` > 0 and finite, got {self.temperature}")

    @property
    def fields(self) -> tuple[Field, ...]:
        """The p^, then the classes, in the fewest bytes that hold them."""
        kind = next(kind for kind in ("<u1", "<u2", "<u4") if self.classes - 1 <= np.iinfo(kind).max)
        return (("shares", "<f2", (self.count,)), ("classes", kind, (self.count,)))

    def encode(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, ...]:
        """The parts, on the CPU."""
        probabilities = (logits.cpu().double() / self.temperature).softmax(1)
        classes, shares = sampled(probabilities, self.count, uniform)
        return shares.half(), classes

    def decode(self, *parts: Tensor) -> Tensor:
        """The logits, -inf for classes that are not kept."""
        shares, classes = parts
        dense = shares.new_full((len(shares), self.classes), -math.inf, dtype=torch.float32)
        rows = torch.arange(len(shares), device=shares.device).unsqueeze(1)
        dense[rows, classes] = shares.float().log() * self.temperature
        return dense

    def describe(self) -> dict[str, Any]:
        """Everything."""
        return {"classes": self.classes, "top_k": self.count, "temperature": self.temperature}


def records_of(classes: int, top_k: int | None = None, temperature: float | None = None) -> Records:
    """Whole records, or sampled ones where `top_k` is given, which need a `temperature`."""
    if top_k is None:
        return WholeRecords(classes)
    assert temperature is not None
    return SampledRecords(classes, top_k, float(temperature))
