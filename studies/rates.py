"""A learning rate for each trainer, chosen on the validation split among a grid that is the same for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import page
from page import Row

from dotkd.evidence.runs import read_evaluations, read_run


def tried(folder: Path, rates: Sequence[float], *, prefix: str = "") -> list[Row]:
    """The runs of `dotkd compare ... --vary lr=...` in `folder`, setting `prefix` + "lr RATE", with their accuracy on
    the validation split after the last epoch, in percent."""
    rows: list[Row] = []
    for rate in rates:
        for path in sorted(folder.glob(f"*lr={rate:g}/*/seed-*/summary.json")):
            last = read_evaluations(path.parent)[-1].val.accuracy
            row = page.row_of(f"{prefix}lr {rate:g}", path.parent.parent.name, read_run(path.parent))
            rows.append({**row, "validation": None if last is None else 100 * last})
    return rows


def best(rows: Sequence[Row], cell: str, rates: Sequence[float], *, prefix: str = "") -> float:
    """The rate with the best mean accuracy of the cell on the validation split; a run that diverged counts as 0."""

    def score(rate: float) -> float:
        found = [row for row in rows if row["setting"] == f"{prefix}lr {rate:g}" and row["cell"] == cell]
        return sum(row["validation"] or 0.0 for row in found if row["status"] == "done") / len(found)

    return max(rates, key=score)


def grid_table(rows: Sequence[Row], cells: Sequence[str], rates: Sequence[float], *, prefix: str = "") -> list[str]:
    """For each cell its mean validation accuracy at every rate, the chosen one in bold."""
    lines: list[str] = []
    for cell in cells:
        chosen = best(rows, cell, rates, prefix=prefix)
        texts: list[str] = []
        for rate in rates:
            value = page.mean(rows, f"{prefix}lr {rate:g}", cell, "validation")
            text = f"{rate:g}: {page.estimate_text(value._replace(half_width=None))}"
            texts.append(f"**{text}**" if rate == chosen else text)
        lines.append(", ".join(texts))
    return lines
