"""The tables of a comparison or of runs side by side, and the verdicts before them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dotkd.evidence.comparison import Row
from dotkd.evidence.settings import Evidence, Table
from dotkd.evidence.statistics import Difference, Estimate
from dotkd.evidence.verdict import headline, verdicts
from dotkd.report.figures import Axis, Forest, Interval
from dotkd.report.markup import ABSENT, Content, Markup, Number, folded, joined, table, tag
from dotkd.report.wording import (
    amount,
    count,
    loss_change,
    percent,
    plain,
    points,
    points_alone,
    probability,
    shown,
    sign,
)

# So many verdicts are told in full; of more, first what they say of the accuracy.
_IN_FULL = 2


def verdict_part(evidence: Evidence) -> Markup:
    """The sentences on the claims of DOT, one a setting and method, each with its sign; then all gains counted."""
    several = len(evidence.tables) > 1
    told = [(part, method, sentence) for part in evidence.tables for method, sentence in verdicts(part).items()]
    items: list[Markup] = []
    for part, method, sentence in told:
        row = part.row(f"{method}+dot")
        found = shown(row.gain) if row is not None else "none"
        where = tag("strong", f"{part.name}: ") if several else ""
        short = len(told) > _IN_FULL
        words = [tag("p", where, true_minus(headline(part, method=method) if short else sentence))]
        if short:
            words.append(folded("With losses and controls", tag("p", true_minus(sentence))))
        items.append(tag("li", tag("p", sign(found)), *words, class_=f"verdict {found}"))
    said = [tag("ul", *items, class_="verdicts")] if items else []
    return joined([*said, tag("p", _counted(evidence), class_="counted")])


def true_minus(sentence: str) -> str:
    """The hyphens before numbers as minus signs; those in names stay."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", sentence)


def _counted(evidence: Evidence) -> str:
    gains = [row.gain for part in evidence.tables for row in part.rows if row.cell.against is not None]
    tested = [gain for gain in gains if gain.p is not None]
    if not tested:
        return "No gain could be tested: a paired test needs two seeds that ended in both cells."
    outcomes = [shown(gain) for gain in tested]
    untested = f" {len(gains) - len(tested)} had too few seeds for a test." if len(tested) < len(gains) else ""
    return (
        f"Differences in test accuracy that were tested: {len(tested)}. Shown to be gains: {outcomes.count('gain')}; "
        f"shown to be losses: {outcomes.count('loss')}; not shown, which is not the same as equal: "
        f"{outcomes.count('none')}.{untested} Tests are paired over seeds, two-sided at the 5 % level, and corrected "
        f"by Holm over the {evidence.tests} test{'s' if evidence.tests != 1 else ''} of accuracy in this comparison."
    )


def gains_forest(tables: Sequence[Table]) -> Forest | None:
    """The gains of all cells with their intervals; None where there is none."""
    several = len(tables) > 1
    rows: list[Interval] = []
    for part in tables:
        for row in part.rows:
            gain = row.gain
            if row.cell.against is None or gain.mean is None:
                continue
            p = f"corrected p {probability(gain.p_corrected).text}" if gain.p is not None else "no test"
            name = f"{row.cell.name} \N{MINUS SIGN} {row.cell.against}"
            bar = gain_bar(f"{part.name}: {name}" if several else name, gain)
            rows.append(bar._replace(note=f"{p}, n = {gain.n}"))
    if not rows:
        return None
    return Forest(
        "Gains in test accuracy",
        "Difference in percentage points to the cell named after the minus, mean and 95 % interval over paired seeds. "
        "Filled: shown after correction, in either direction; hollow: not shown. Intervals are not corrected.",
        Axis("difference, percentage points", "difference"),
        rows,
    )


def gain_bar(name: str, gain: Difference) -> Interval:
    """A difference of accuracies, whose mean exists, in percentage points."""
    assert gain.mean is not None
    mean, width = 100 * gain.mean, None if gain.half_width is None else 100 * gain.half_width
    low, high = (None, None) if width is None else (mean - width, mean + width)
    return Interval(name, mean, low, high, shown(gain), points_alone(gain))


def accuracy_table(part: Table, *, compared: bool) -> Markup:
    """One line a cell. Accuracies in % with 95 % half widths, gains in points, cost."""
    baselines = {row.cell.against for row in part.rows if row.cell.against is not None}
    headers = ["cell", "val-selected %", "last epoch %", "best of test %"]
    if compared:
        headers += [f"gain on {min(baselines)}, points"] if len(baselines) == 1 else ["gain, points", "against"]
        headers += ["p", "p corrected", "effect size"]
    headers += ["n", "seconds"]
    if compared:
        headers.append("relative time")
    rows: list[list[Content]] = []
    for row in part.rows:
        line: list[Content] = [row.cell.name, percent(row.val_selected), percent(row.last), percent(row.best_of_test)]
        if compared:
            line += [points(row.gain), row.cell.against or ABSENT][: 1 if len(baselines) == 1 else 2]
            line += [probability(row.gain.p), probability(row.gain.p_corrected), plain(row.gain.effect_size)]
        line += [_runs(row.val_selected), amount(row.seconds)]
        if compared:
            line.append(amount(row.relative_seconds))
        rows.append(line)
    return table(f"{part.name}: test accuracy and cost", headers, rows)


def losses_table(part: Table, *, compared: bool) -> Markup:
    """One line a cell: both losses of the final student on both splits, unweighted, and their changes."""
    headers = ["cell", "task loss, test"]
    headers += ["change", "p corrected"] if compared else []
    headers += ["task loss, train", "distillation loss, test"]
    headers += ["change", "p corrected"] if compared else []
    headers.append("distillation loss, train")
    rows: list[list[Content]] = []
    for row in part.rows:
        task: list[Content] = [loss_change(row.task_change), probability(row.task_change.p_corrected)]
        distill: list[Content] = [loss_change(row.distill_change), probability(row.distill_change.p_corrected)]
        rows.append(
            [
                row.cell.name,
                amount(row.task_test),
                *(task if compared else []),
                amount(row.task_train),
                amount(row.distill_test),
                *(distill if compared else []),
                amount(row.distill_train),
            ]
        )
    return table(f"{part.name}: losses of the final student, unweighted", headers, rows)


def likeness_table(part: Table) -> Markup | None:
    """Agreement with the teacher and calibration error; None where no run recorded them."""
    recorded = [row for row in part.rows if row.agreement.n or row.calibration_error.n]
    if not recorded:
        return None
    return table(
        f"{part.name}: agreement with the teacher and calibration, test split",
        ["cell", "agreement with the teacher %", "expected calibration error %", "n"],
        [
            [row.cell.name, percent(row.agreement), percent(row.calibration_error), count(row.val_selected.n)]
            for row in part.rows
        ],
    )


def how_to_read(rows: Sequence[Row], *, compared: bool) -> str:
    """The line under the tables."""
    told = [
        "Mean ± 95 % t-interval over n seeds",
        "val-selected: the epoch best on validation, the last where nothing was held out",
        "best of test chooses the epoch by the test split itself and flatters",
    ]
    if compared:
        told += [
            "gain: val-selected accuracy, paired over equal seeds",
            "effect size: Hedges' g of the paired differences",
            "relative time: seconds over the baseline's, by pairs",
            "runs that diverged are in no mean and are named below",
        ]
    if any(row.val_selected.n == 1 for row in rows):
        told.append("one seed has no interval and no test")
    return "; ".join(told) + "."


def ends_part(part: Table, unfinished: Sequence[str]) -> Markup:
    """The runs that diverged or have not ended, by name: none is dropped in silence. Empty where all ended well."""
    diverged = [f"{cell} seed {run.seed}" for cell, runs in part.runs.items() for run in runs if run.diverged]
    lists: list[Markup] = []
    for title, names in (("Diverged", diverged), ("Not finished", unfinished)):
        if names:
            lists.append(
                tag(
                    "div",
                    tag("p", tag("strong", f"{title}: {len(names)}")),
                    tag("ul", *(tag("li", name) for name in names)),
                    class_="notice",
                )
            )
    return joined(lists)


def _runs(value: Estimate) -> Number:
    if not value.diverged:
        return count(value.n)
    return Number(joined([f"{value.n}, ", tag("span", f"{value.diverged} diverged", class_="outcome loss")]), value.n)
