"""Is it momentum or reweighting? DOT, both of its controls and plain distillation, each tuned with the same budget.

    python studies/momentum_or_weights.py [--jobs 2] [--out runs/momentum-or-weights]   # about 50 minutes on two cores
    python studies/momentum_or_weights.py --page               # docs/results/momentum-or-weights.md from its CSV

In a steady state momentum m multiplies a gradient by 1 / (1 - m), so that DOT also weighs the losses anew. Two controls
tell the two apart: `sgd-matched` has DOT's weights and one momentum, `dot-normalized` DOT's momenta and SGD's weights.
Every setting is one `dotkd tune`, which is printed: learning rate, weight and temperature of the distillation loss, and
Delta where there is one, 20 trials of each trainer on the validation split; then the best of each with 8 fresh seeds on
the test split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import page
import pictures
import yaml
from page import Row

from dotkd.evidence.runs import read_run

NAME = "momentum-or-weights"
TRAINERS = ("sgd", "dot", "dot-normalized", "sgd-matched")
SETTINGS: dict[str, list[str]] = {
    "digits": ["digits"],
    "mnist1d mlp": ["mnist1d", "student=mlp", "student_options={}", "epochs=40"],
    "mnist1d resnet": ["mnist1d"],
}
TUNED = ("lr", "distill_weight", "temperature", "delta")


def run(out: Path, jobs: int) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    budget = ["--trials", "20", "--final-seeds", "8", "--jobs", str(jobs)]
    for setting, words in SETTINGS.items():
        folder = out / setting.replace(" ", "-")
        page.dotkd("tune", *words, "--trainers", ",".join(TRAINERS), *budget, "--out", str(folder))
        for trainer in TRAINERS:
            best: dict[str, Any] = yaml.safe_load((folder / f"best-{trainer}.yaml").read_text(encoding="utf-8"))
            for path in sorted((folder / "final" / trainer).glob("seed-*/summary.json")):
                row = page.row_of(setting, trainer, read_run(path.parent))
                rows.append({**row, **{key: float(best[key]) for key in TUNED}})
    return rows, page.origin_lines([out])


def blocks(rows: Sequence[Row]) -> Mapping[str, str]:
    tables = {
        key.replace("_", "-"): page.comparison_table(rows, list(SETTINGS), TRAINERS, "sgd", key, digits=digits)
        for key, digits in (("accuracy", 2), ("val_selected", 2), ("test_task", 3), ("test_distill", 3))
    }
    direct = {
        (setting, other): page.change(rows, setting, "dot", other)
        for setting in SETTINGS
        for other in ("sgd-matched", "dot-normalized")
    }
    told = page.told_together(direct)
    heads = ["setting", "DOT - sgd-matched", "DOT - dot-normalized"]
    lines = [[s, told[s, "sgd-matched"], told[s, "dot-normalized"]] for s in SETTINGS]
    chosen = [
        [setting, trainer, *(f"{first[key]:.3g}" if _has(trainer, key) else "-" for key in TUNED)]
        for setting in SETTINGS
        for trainer in TRAINERS
        for first in [next(row for row in rows if (row["setting"], row["cell"]) == (setting, trainer))]
    ]
    return {**tables, "direct": page.table(heads, lines), "chosen": page.table(["setting", "trainer", *TUNED], chosen)}


def _has(trainer: str, key: str) -> bool:
    return key != "delta" or trainer != "sgd"


def picture(rows: Sequence[Row], path: Path) -> None:
    figure, (axes,) = pictures.panels(1, width=7.0, height=4.0)
    lines = [
        (f"{setting}: {trainer} - sgd", page.change(rows, setting, trainer, "sgd"), place)
        for setting in SETTINGS
        for place, trainer in enumerate(TRAINERS)
        if trainer != "sgd"
    ]
    pictures.forest(axes, lines, title="each trainer tuned with the same budget, 8 fresh seeds, 95 % intervals")
    pictures.save(figure, path)


if __name__ == "__main__":
    page.main(NAME, __doc__, run, blocks, picture)
