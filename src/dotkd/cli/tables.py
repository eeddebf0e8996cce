"""A comparison as people read it: accuracies, gains with intervals and tests, cost, losses, and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from dotkd.cli import console as consoles
from dotkd.evidence.comparison import Row
from dotkd.evidence.settings import Evidence
from dotkd.evidence.statistics import Difference, Estimate

DASH = "-"
# A setting's name may be long; broken at this width it leaves room for the numbers in 80 columns.
_NAME_WIDTH = 26


def show_evidence(console: Console, evidence: Evidence) -> None:
    """Prints the tables; each fits 80 columns, and a number that does not exist is a dash. With several settings their
    names head the lines of each, and the losses are left to the files."""
    rows = rows_of(evidence)
    against = sorted({row.cell.against for row in rows if row.cell.against is not None})
    one = against[0] if len(against) == 1 else None

    def gains(row: Row) -> list[str]:
        change = _points(row.gain)
        if one is None and row.cell.against is not None:
            change += f" on {row.cell.against}"
        tests = [_effect(row.gain), p_text(row.gain.p), p_text(row.gain.p_corrected)]
        return [change, *tests, _mean(row.seconds), _mean(row.relative_seconds)]

    heads = ["test acc. %", "last epoch", "best of test", "n"]
    _show(console, evidence, f"{evidence.name}: accuracy", heads, _accuracies)
    heads = [f"gain on {one}" if one else "gain", "effect", "p", "p Holm", "s", f"s / {one}" if one else "ratio"]
    _show(console, evidence, f"{evidence.name}: gain and cost", heads, gains)
    if len(evidence.tables) == 1:
        heads = ["task, test", "train", "distill., test", "train"]
        judged = any(row.agreement.n or row.calibration_error.n for row in rows)
        heads += ["agree %", "ECE"] if judged else []
        _show(console, evidence, f"{evidence.name}: losses at the end", heads, lambda row: _losses(row, judged=judged))
    consoles.say(console, how_to_read(evidence))


def rows_of(evidence: Evidence) -> list[Row]:
    """The lines of all tables."""
    return [row for table in evidence.tables for row in table.rows]


def _show(
    console: Console, evidence: Evidence, title: str, heads: Sequence[str], values: Callable[[Row], Sequence[str]]
) -> None:
    shown = consoles.table(console, "cell", *heads)
    several = len(evidence.tables) > 1
    if several and console.is_terminal:
        shown.columns[0].max_width = _NAME_WIDTH
    for table in evidence.tables:
        if several:
            shown.add_row(table.name, *[""] * len(heads))
        for row in table.rows:
            shown.add_row(f"  {row.cell.name}" if several else row.cell.name, *values(row))
    consoles.say(console, title)
    console.print(shown)


def _accuracies(row: Row) -> list[str]:
    return [_percent(row.val_selected), _percent(row.last), _percent(row.best_of_test), count_text(row.val_selected)]


def _losses(row: Row, *, judged: bool) -> list[str]:
    losses = [
        estimate_text(row.task_test),
        _mean(row.task_train),
        estimate_text(row.distill_test),
        _mean(row.distill_train),
    ]
    agreement = DASH if row.agreement.mean is None else f"{100 * row.agreement.mean:.1f}"
    return [*losses, agreement, _mean(row.calibration_error)] if judged else losses


def how_to_read(evidence: Evidence) -> str:
    """The lines under the tables."""
    rows = rows_of(evidence)
    parts = [
        "mean ± 95 % t-interval over n seeds; test acc.: of the epoch best on validation, the last without one; best "
        "of test: of the epoch best on the test split itself, too high by design",
        "gain: paired difference of test acc. on equal seeds; effect: Hedges' g of the pairs; p: paired t-test, by "
        f"itself and after Holm's correction for all {evidence.tests} tests of accuracy in this comparison",
        "s: seconds a run, and their mean ratio to the baseline's of the same seed; losses are unweighted",
    ]
    counts = [
        (row.val_selected.diverged, row.cell.name if len(evidence.tables) == 1 else f"{row.cell.name} ({table.name})")
        for table in evidence.tables
        for row in table.rows
    ]
    diverged = [f"{count} of {name}" for count, name in counts if count]
    if diverged:
        parts.append(
            f"runs that diverged are in no mean: {', '.join(diverged)}; what is compared there are the seeds that "
            "survived, which flatters the cell that lost the others"
        )
    if any(row.val_selected.n == 1 for row in rows):
        parts.append("one seed has no interval and no test")
    if all(row.cell.against is None for row in rows):
        parts.append("no gains: there is no plain trainer (sgd, adamw) among the cells to compare with")
    if len(evidence.tables) > 1:
        parts.append("losses of each setting: comparison-cells.csv")
    return "; ".join(parts) + "."


def short_means(rows: Sequence[Row]) -> str:
    """The mean accuracies so far on one line, for a progress display."""
    return "  ".join(f"{row.cell.name} {_percent(row.val_selected)}" for row in rows if row.val_selected.n)


def _percent(value: Estimate) -> str:
    if value.mean is None:
        return DASH
    width = DASH if value.half_width is None else f"{100 * value.half_width:.2f}"
    return f"{100 * value.mean:.2f} ± {width}"


def estimate_text(value: Estimate) -> str:
    """A mean and the half width of its interval."""
    if value.mean is None:
        return DASH
    return f"{digits(value.mean)} ± {DASH if value.half_width is None else digits(value.half_width)}"


def _mean(value: Estimate) -> str:
    return DASH if value.mean is None else digits(value.mean)


def digits(value: float) -> str:
    """Three significant digits; never an exponent for what a person would write out."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
        return f"{value:.{decimals}f}"
    return f"{value:.1e}"


def count_text(value: Estimate) -> str:
    """How many runs a mean is over, and how many diverged."""
    return f"{value.n}, {value.diverged} diverged" if value.diverged else str(value.n)


def _points(change: Difference) -> str:
    if change.mean is None:
        return DASH
    width = DASH if change.half_width is None else f"{100 * change.half_width:.2f}"
    return f"{100 * change.mean:+.2f} ± {width}"


def _effect(change: Difference) -> str:
    return DASH if change.effect_size is None else f"{change.effect_size:+.2f}"


def p_text(value: float | None) -> str:
    """A p-value as a table has it."""
    if value is None:
        return DASH
    return "<0.001" if value < 0.001 else f"{value:.3f}"
