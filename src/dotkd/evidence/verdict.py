"""One sentence about the claims of DOT, computed from a comparison: what these runs showed, and what they did
not.

The claims are those of arXiv 2307.08436: a separate, larger momentum for the distillation loss gives a higher
accuracy than plain distillation, and ends with both losses lower. The rival account: in steady state DOT also
multiplies the distillation gradient by 1/(1 - mu - delta) and the task gradient by 1/(1 - mu + delta), so the
gain may be that reweighting alone. Two controls tell them apart: `sgd-matched` has the weights without the
momenta, `dot-normalized` the momenta without the weights.

"Shown" means a paired, two-sided t-test below 0.05 after Holm's correction over all tests of its quantity in the
comparison (see `settings`). All else is "not shown", which is not "shown to be equal".
"""

from __future__ import annotations

from collections.abc import Sequence

from dotkd.evidence.comparison import NO_DISTILLATION, Row
from dotkd.evidence.settings import REWEIGHTING, Table
from dotkd.evidence.statistics import Difference

NORMALIZED = "dot-normalized"


def verdicts(table: Table) -> dict[str, str]:
    """{method: its sentence}, for the methods that were run both with DOT and plainly."""
    return {method: verdict(table, method=method) for method in judged(table)}


def judged(table: Table) -> list[str]:
    """The methods that were run both with DOT and plainly."""
    names = {row.cell.name for row in table.rows}
    methods = dict.fromkeys(row.cell.method for row in table.rows)
    return [method for method in methods if method != NO_DISTILLATION and {method, f"{method}+dot"} <= names]


def verdict(table: Table, *, method: str = "kd") -> str:
    """One sentence on `method+dot` against `method`, which `table` has both, and on the controls where it has them."""
    candidate, baseline = f"{method}+dot", method
    gain = _gain(table, candidate)
    left_out = _diverged(table, [row.cell.name for row in table.rows])
    if gain.n < 2:
        return f"{_untold(table, candidate, baseline)}{_diverged(table, (candidate, baseline))}."
    parts = [_accuracy_part(candidate, baseline, gain), _losses_part(table.row(candidate))]
    parts += _controls_part(table, method, candidate, gain)
    return "; ".join(parts) + left_out + "."


def headline(table: Table, *, method: str) -> str:
    """What `verdict` says about the accuracy alone."""
    candidate, baseline = f"{method}+dot", method
    gain = _gain(table, candidate)
    told = _untold(table, candidate, baseline) if gain.n < 2 else _accuracy_part(candidate, baseline, gain)
    return f"{told}{_diverged(table, (candidate, baseline))}."


def _gain(table: Table, cell: str) -> Difference:
    row = table.row(cell)
    return Difference(None, None, None, None, None, 0) if row is None else row.gain


def _untold(table: Table, candidate: str, baseline: str) -> str:
    seeds = "one seed has" if _gain(table, candidate).n == 1 else "no seed has"
    return (
        f"Nothing is shown about {candidate} against {baseline}: a paired test needs two seeds finished in both, "
        f"and {seeds}"
    )


def _accuracy_part(candidate: str, baseline: str, gain: Difference) -> str:
    start = f"Over {gain.n} seeds"
    if _up(gain):
        return f"{start}, {candidate} was shown to beat {baseline} in test accuracy ({_numbers(gain)})"
    if gain.shown:
        return f"{start}, {candidate} was shown to be worse than {baseline} in test accuracy ({_numbers(gain)})"
    return f"{start}, no difference in test accuracy between {candidate} and {baseline} was shown ({_numbers(gain)})"


def _losses_part(row: Row | None) -> str:
    assert row is not None
    changes = {"task": row.task_change, "distillation": row.distill_change}
    told = " and ".join(f"the {name} loss {_course(change)}" for name, change in changes.items())
    if all(change.shown and (change.mean or 0.0) < 0 for change in changes.values()):
        return f"both test losses ended lower: {told}"
    return f"that both test losses end lower was not shown: {told}"


def _course(change: Difference) -> str:
    if change.mean is None:
        return "is missing"
    if not change.shown:
        return f"showed no change ({change.mean:+.3g}, {p_text(change)})"
    return f"ended {'lower' if change.mean < 0 else 'higher'} ({change.mean:+.3g}, {p_text(change)})"


def _controls_part(table: Table, method: str, candidate: str, gain: Difference) -> list[str]:
    """What each control says about the gain; without a gain there is nothing to explain."""
    matched, normalized = f"{method}+{REWEIGHTING}", f"{method}+{NORMALIZED}"
    present = [name for name in (matched, normalized) if _gain(table, name).n > 0]
    if not present:
        return ["no control was run, so nothing is said about the changed loss weights as a cause"]
    if not _up(gain):
        own = ", ".join(f"{name} {_numbers(_gain(table, name))}" for name in present)
        return [f"without a gain there is nothing for the controls to explain (against {method}: {own})"]
    parts: list[str] = []
    if matched in present:
        parts.append(_matched_part(matched, table.against_matched[method], _gain(table, matched)))
    if normalized in present:
        left = _gain(table, normalized)
        kept = "remained" if _up(left) else "was not shown"
        parts.append(f"with the weights held ({normalized}) a gain {kept} ({_numbers(left)})")
    return parts


def _matched_part(name: str, ahead: Difference, own: Difference) -> str:
    """Does plain SGD with DOT's effective weights do as well? ahead: DOT - it; own: it - plain KD."""
    numbers = f"DOT minus it: {_numbers(ahead)}"
    if _up(ahead):
        return f"the loss weights alone do not explain it, {name} stays behind ({numbers})"
    if _up(own):
        return f"the loss weights alone may explain it, {name} gains as well ({_numbers(own)}; {numbers})"
    return f"whether the loss weights alone explain it stays open, {name} is told from neither ({numbers})"


def _up(change: Difference) -> bool:
    return change.shown and change.mean is not None and change.mean > 0


def _numbers(change: Difference) -> str:
    return f"{points(change)}, {p_text(change)}"


def _diverged(table: Table, names: Sequence[str]) -> str:
    counts = {name: sum(run.diverged for run in table.runs.get(name, ())) for name in names}
    told = [f"{count} of {name}" for name, count in counts.items() if count]
    return f" (diverged, and compared are the seeds that did not: {', '.join(told)})" if told else ""


def points(change: Difference) -> str:
    """A difference of accuracies in percentage points with its 95 % half width, or a dash."""
    if change.mean is None:
        return "-"
    mean = f"{100 * change.mean:+.2f}"
    return f"{mean} points" if change.half_width is None else f"{mean} ± {100 * change.half_width:.2f} points"


def p_text(change: Difference) -> str:
    """The corrected p-value as it is written in a sentence, or "no test" where none exists."""
    if change.p_corrected is None:
        return "no test"
    return "corrected p < 0.001" if change.p_corrected < 0.001 else f"corrected p = {change.p_corrected:.3f}"
