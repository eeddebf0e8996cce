"""What DOT costs: ratios, each against what would run without this library, measured side by side.

`MEASURES` are the functions that measure; each takes the same `Conditions` and returns a `Measure`.
"""

from __future__ import annotations

from collections.abc import Callable

from dotkd.bench.backward_passes import exact_step, low_memory, peak_memory
from dotkd.bench.cached import cached_over_online
from dotkd.bench.communication import ddp_bytes
from dotkd.bench.measure import Measure
from dotkd.bench.rounds import Conditions, Quantity
from dotkd.bench.update import optimizer_step
from dotkd.bench.waiting import loader_wait

__all__ = [
    "MEASURES",
    "Conditions",
    "Measure",
    "Quantity",
    "cached_over_online",
    "ddp_bytes",
    "exact_step",
    "loader_wait",
    "low_memory",
    "optimizer_step",
    "peak_memory",
]

MEASURES: dict[str, Callable[[Conditions], Measure]] = {
    "exact_step": exact_step,
    "optimizer_step": optimizer_step,
    "peak_memory": peak_memory,
    "low_memory": low_memory,
    "cached_over_online": cached_over_online,
    "ddp_bytes": ddp_bytes,
    "loader_wait": loader_wait,
}
"""Each returns ours over the other, so that less is better."""
