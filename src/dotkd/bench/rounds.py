"""Pieces of work timed in turns, so that whatever else the machine does disturbs all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

from dotkd.allocator import keep_freed_memory

Result = TypeVar("Result")

_MOST_ROUNDS, _LEAST_ROUNDS = 15, 3


@dataclass(frozen=True)
class Conditions:
    """Under what a figure is measured.

    threads: of torch's CPU operators. One is the least noisy: there the clock is CPU time, in which other programs show
    only as far as they slow the core down. rounds: how often each side runs; None: up to 15 in `seconds`, at least 3.
    """

    device: torch.device
    threads: int = 1
    rounds: int | None = None
    seconds: float = 35.0

    def __post_init__(self) -> None:
        for name, value in (("threads", self.threads), ("rounds", self.rounds)):
            if value is not None and value < 1:
                raise ValueError(f"expected `{name}` of at least 1, got {value}")

    @property
    def clock(self) -> str:
        """What `timed_in_turns` counts: "CPU time" or "wall time"."""
        return "CPU time" if self.device.type == "cpu" and self.threads == 1 else "wall time"

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Sets the number of threads for as long as it lasts, and keeps the caller's random numbers as they were."""
        if self.device.type == "cpu":
            keep_freed_memory()  # as `dotkd train` does
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)
                yield
        finally:
            torch.set_num_threads(before)


class Quantity(NamedTuple):
    """n values in short: their median, and the distance between their quartiles (None for a single value)."""

    median: float
    interquartile: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantity:
        """The summary of at least one value."""
        spread = None
        if len(values) > 1:
            low, _, high = statistics.quantiles(values, n=4, method="inclusive")
            spread = high - low
        return cls(statistics.median(values), spread, len(values))


def timed_in_turns(
    work: Sequence[Callable[[], object]], conditions: Conditions, *, repeats: int = 1
) -> list[list[float]]:
    """Seconds of one call of each, one value a round: first, second, ..., first, second, ...

    A round calls each `repeats` times. All run once before, uncounted: kernels are chosen and buffers made then.
    """
    for function in work:
        _clocked(function, conditions, 1)
    with uncollected():
        found = repeated(lambda: [_clocked(function, conditions, repeats) / repeats for function in work], conditions)
    return [list(values) for values in zip(*found, strict=True)]


def repeated(one: Callable[[], Result], conditions: Conditions) -> list[Result]:
    """What `one` returns, as many times as the conditions ask for."""
    found: list[Result] = []
    start = time.perf_counter()
    while _another(len(found), time.perf_counter() - start, conditions):
        found.append(one())
    return found


@contextmanager
def uncollected() -> Generator[None, None, None]:
    """Python's collector of cycles runs before, and not while it lasts."""
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _another(done: int, elapsed: float, conditions: Conditions) -> bool:
    if conditions.rounds is not None:
        return done < conditions.rounds
    # One round more than fits would be late by a round; a machine that slow is better asked less often.
    in_time = elapsed * (done + 1) <= conditions.seconds * done
    return done < _LEAST_ROUNDS or (done < _MOST_ROUNDS and in_time)


def _clocked(function: Callable[[], object], conditions: Conditions, repeats: int) -> float:
    clock = time.process_time if conditions.clock == "CPU time" else time.perf_counter
    wait_for(conditions.device)
    start = clock()
    for _ in range(repeats):
        function()
    wait_for(conditions.device)
    return clock() - start


def wait_for(device: torch.device) -> None:
    """Until everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
