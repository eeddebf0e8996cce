"""What a measure finds: one ratio, what it is made of, and what it is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dotkd.bench.rounds import Quantity


@dataclass(frozen=True)
class Measure:
    """One ratio.

    ratio: over rounds, each the ratio of two neighbours in time. ours, other: in `unit`. goal: what this library means
    to stay under on a machine that does nothing else; limit: what arithmetic allows. official: the ratio that the
    published implementation, transcribed, comes to in the same rounds. what: ours, and what it is divided by.
    """

    ratio: Quantity
    ours: Quantity
    other: Quantity
    unit: str
    what: str
    goal: float | None = None
    limit: float | None = None
    official: Quantity | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the median is within the goal; None where there is no goal."""
        return None if self.goal is None else self.ratio.median <= self.goal

    def as_json(self) -> dict[str, object]:
        """Everything, in JSON's own types."""
        quantities = {"ratio": self.ratio, "ours": self.ours, "other": self.other}
        return {
            **{name: quantity._asdict() for name, quantity in quantities.items()},
            "official": None if self.official is None else self.official._asdict(),
            "unit": self.unit,
            "what": self.what,
            "goal": self.goal,
            "limit": self.limit,
            "reached": self.reached,
        }


def compared(
    ours: Sequence[float],
    other: Sequence[float],
    *,
    unit: str,
    what: str,
    goal: float,
    limit: float | None = None,
    official: Quantity | None = None,
) -> Measure:
    """The measure of values of neighbouring rounds."""
    return Measure(
        ratio(ours, other), Quantity.of(ours), Quantity.of(other), unit, what, goal=goal, limit=limit, official=official
    )


def ratio(values: Sequence[float], others: Sequence[float]) -> Quantity:
    """Of the ratios round by round."""
    return Quantity.of([value / other for value, other in zip(values, others, strict=True)])
