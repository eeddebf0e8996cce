"""What DOT costs: three ratios, each against what would run without this library, measured side by side.

`MEASURES` are the functions that measure; each takes the same `Conditions` and returns a `Measure`.
"""

from __future__ import annotations

from collections.abc import Callable

from dotkd.bench.measures import Measure, exact_step, optimizer_step, peak_memory
from dotkd.bench.rounds import Conditions, Quantity

__all__ = ["MEASURES", "Conditions", "Measure", "Quantity", "exact_step", "optimizer_step", "peak_memory"]

MEASURES: dict[str, Callable[[Conditions], Measure]] = {
    "exact_step": exact_step,
    "optimizer_step": optimizer_step,
    "peak_memory": peak_memory,
}
