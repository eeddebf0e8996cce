"""Does DOT reach flatter minima? Loss landscape and curvature of the runs of `studies/trade_off.py` on MNIST-1D.

    python studies/flatness.py [--out runs/trade-off]    # after studies/trade_off.py; about 10 minutes on one core
    python studies/flatness.py --page                    # docs/results/flatness.md from its CSV

The claim (arXiv 2307.08436): DOT reaches flatter minima. One `dotkd analyse`, which is printed, for each setting: of
the task loss on 512 training samples, the same for all runs, its rise along a filter-normalised random direction and
its Hessian's largest eigenvalue and trace, these also in units of the filters, which rescaling a layer cannot change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import page
import pictures
from page import Row
from trade_off import CELLS

from dotkd.evidence.flatness import QUANTITIES as FIGURES
from dotkd.evidence.runs import read_run

NAME = "flatness"
SETTINGS = ("mnist1d lr 0.005", "mnist1d lr 0.03")
QUANTITIES = {
    "rise": "rise of the task loss half a filter norm away",
    "eigenvalue, normalised": "largest eigenvalue, units of the filters",
    "trace, normalised": "trace, units of the filters",
    "eigenvalue": "largest eigenvalue of the Hessian",
    "trace": "trace of the Hessian",
}


def run(out: Path, _jobs: int) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    for setting in SETTINGS:
        folder = out / setting.replace(" ", "-")
        page.dotkd("analyse", *(str(folder / cell) for cell in CELLS), "--what", "line,hessian", "--samples", "512")
        for path in sorted(folder.glob("*/seed-*/analysis.json")):
            found, trained = json.loads(path.read_text(encoding="utf-8")), read_run(path.parent)
            row = page.row_of(setting, path.parent.parent.name, trained)
            kept = {key: row[key] for key in (*page.KEYS, "accuracy", "train_task")}
            rows.append({**kept, **{_key(name): FIGURES[name](found) for name in QUANTITIES}})
    return rows, page.origin_lines([out / setting.replace(" ", "-") for setting in SETTINGS])


def blocks(rows: Sequence[Row]) -> Mapping[str, str]:
    return {_key(name): page.comparison_table(rows, SETTINGS, CELLS, "kd", _key(name), digits=3) for name in QUANTITIES}


def picture(rows: Sequence[Row], path: Path) -> None:
    shown = ("rise", "eigenvalue, normalised", "eigenvalue")
    figure, axes = pictures.panels(len(SETTINGS) * len(shown), columns=len(shown))
    places = [(setting, key) for setting in SETTINGS for key in shown]
    for panel, (setting, key) in zip(axes, places, strict=True):
        for place, cell in enumerate(CELLS):
            mean = page.mean(rows, setting, cell, _key(key))
            seeds = [value for value in page.column(rows, setting, cell, _key(key)).values() if value is not None]
            panel.scatter([place] * len(seeds), seeds, **pictures.style(place), s=12, alpha=0.4, linewidths=0)
            if mean.mean is not None:
                panel.errorbar(place, mean.mean, yerr=mean.half_width, **pictures.style(place), capsize=4, label=cell)
        panel.set_xticks([])
        panel.set_title(f"{setting}:\n{QUANTITIES[key]}", fontsize=9)
        panel.set_ylim(bottom=0)
    pictures.save(figure, path)


def _key(name: str) -> str:
    """The name of a quantity's column and table."""
    return name.replace(", ", "-")


if __name__ == "__main__":
    page.main(NAME, __doc__, run, blocks, picture)
