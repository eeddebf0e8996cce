"""A learning rate for each trainer, chosen on the validation split among a grid of as many values for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import page
from page import Row

from dotkd.evidence.runs import read_evaluations, read_run


def tried(folder: Path, recipe: str, rates: Sequence[float], *, prefix: str = "") -> list[Row]:
    """The runs of `dotkd compare RECIPE ... --vary lr=...` in `folder`, setting `prefix` + "lr RATE", cell the trainer.

    "validation" is the accuracy on that split after the last epoch, in percent.
    """
    rows: list[Row] = []
    for rate in rates:
        for path in sorted(folder.glob(f"{recipe}-lr={rate:g}/*/seed-*/summary.json")):
            last, run = read_evaluations(path.parent)[-1].val.accuracy, read_run(path.parent)
            row = page.row_of(f"{prefix}lr {rate:g}", run.trainer, run)
            rows.append({**row, "validation": None if last is None else 100 * last})
    return rows


def best(rows: Sequence[Row], trainer: str, rates: Sequence[float], *, prefix: str = "") -> float:
    """The rate with the best mean accuracy on the validation split; a run that diverged counts as 0."""

    def score(rate: float) -> float:
        found = [row for row in rows if row["setting"] == f"{prefix}lr {rate:g}" and row["cell"] == trainer]
        return sum(row["validation"] or 0.0 for row in found if row["status"] == "done") / len(found)

    return max(rates, key=score)


def line(rows: Sequence[Row], trainer: str, rates: Sequence[float], *, prefix: str = "") -> str:
    """The mean accuracy on the validation split at every rate, the best in bold."""
    texts: list[str] = []
    for rate in rates:
        value = page.mean(rows, f"{prefix}lr {rate:g}", trainer, "validation")
        text = f"{rate:g}: {page.estimate_text(value._replace(half_width=None))}"
        texts.append(f"**{text}**" if rate == best(rows, trainer, rates, prefix=prefix) else text)
    return ", ".join(texts)
