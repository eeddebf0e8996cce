"""A comparison as people read it: accuracies with intervals and tests, losses, and how to read both."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from dotkd.cli import console as consoles
from dotkd.evidence.comparison import Row
from dotkd.evidence.statistics import Difference, Estimate

DASH = "-"


def show_comparison(console: Console, rows: Sequence[Row], *, title: str) -> None:
    """Prints both tables; each fits 80 columns, and a number that does not exist is a dash."""
    against = sorted({row.cell.against for row in rows if row.cell.against is not None})
    gain = f"gain on {against[0]}" if len(against) == 1 else "gain"
    accuracy = consoles.table(console, "cell", "test acc. %", "last epoch", "n", gain, "p", "s")
    losses = consoles.table(console, "cell", "task, test", "train", "distill., test", "train")
    for row in rows:
        change, p = _points(row.gain), _p(row.gain)
        if len(against) > 1 and row.cell.against is not None:
            change += f" on {row.cell.against}"
        accuracy.add_row(
            row.cell.name,
            _percent(row.val_selected),
            _percent(row.last),
            _count(row.val_selected),
            change,
            p,
            _mean(row.seconds),
        )
        losses.add_row(
            row.cell.name,
            _loss(row.task_test),
            _mean(row.task_train),
            _loss(row.distill_test),
            _mean(row.distill_train),
        )
    consoles.say(console, f"{title}: accuracy")
    console.print(accuracy)
    consoles.say(console, f"{title}: losses at the end")
    console.print(losses)
    consoles.say(console, how_to_read(rows))


def how_to_read(rows: Sequence[Row]) -> str:
    """The line under the tables."""
    parts = [
        "mean ± 95 % t-interval over n seeds; test acc.: of the epoch best on validation, the last without one",
        "gain and p: paired t-test on equal seeds, not corrected for the number of tests; losses are unweighted",
    ]
    diverged = [f"{row.val_selected.diverged} of {row.cell.name}" for row in rows if row.val_selected.diverged]
    if diverged:
        parts.append(f"runs that diverged are in no mean: {', '.join(diverged)}")
    if any(row.val_selected.n == 1 for row in rows):
        parts.append("one seed has no interval and no test")
    if all(row.cell.against is None for row in rows):
        parts.append("no gains: there is no plain trainer (sgd, adamw) among the cells to compare with")
    return "; ".join(parts) + "."


def short_means(rows: Sequence[Row]) -> str:
    """The mean accuracies so far on one line, for a progress display."""
    return "  ".join(f"{row.cell.name} {_percent(row.val_selected)}" for row in rows if row.val_selected.n)


def _percent(value: Estimate) -> str:
    if value.mean is None:
        return DASH
    width = DASH if value.half_width is None else f"{100 * value.half_width:.2f}"
    return f"{100 * value.mean:.2f} ± {width}"


def _loss(value: Estimate) -> str:
    if value.mean is None:
        return DASH
    return f"{_digits(value.mean)} ± {DASH if value.half_width is None else _digits(value.half_width)}"


def _mean(value: Estimate) -> str:
    return DASH if value.mean is None else _digits(value.mean)


def _digits(value: float) -> str:
    """Three significant digits; never an exponent for what a person would write out."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
        return f"{value:.{decimals}f}"
    return f"{value:.1e}"


def _count(value: Estimate) -> str:
    return f"{value.n}, {value.diverged} diverged" if value.diverged else str(value.n)


def _points(change: Difference) -> str:
    if change.mean is None:
        return DASH
    width = DASH if change.half_width is None else f"{100 * change.half_width:.2f}"
    return f"{100 * change.mean:+.2f} ± {width}"


def _p(change: Difference) -> str:
    if change.p is None:
        return DASH
    return "<0.001" if change.p < 0.001 else f"{change.p:.3f}"
