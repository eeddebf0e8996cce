"""What a reader and the configuration must know of a distillation method without building it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

Need = Literal["features", "preactivations", "embedding"]


class Card(NamedTuple):
    """One method of the literature. The weights are those published for CIFAR-100.

    equation: plain text, in the symbols of the method's own docstring. needs: what it looks at besides the logits.
    streams: the stream of each named loss; a method that returns one loss without a name puts it into `distill`.
    temperature: None where the method has none. warmup_epochs: epochs over which distill_weight rises from 0.
    """

    title: str
    paper: str
    equation: str
    task_weight: float = 1.0
    distill_weight: float = 1.0
    warmup_epochs: float = 0.0
    temperature: float | None = None
    needs: tuple[Need, ...] = ()
    streams: Mapping[str, str] = MappingProxyType({})
