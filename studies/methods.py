"""DOT with each method of the zoo: every method by SGD and by DOT, DeepKD by its own trainer too.

    python studies/methods.py [--jobs 2] [--out runs/methods-by-dot]     # about 15 minutes on one core
    python studies/methods.py --page                                     # docs/results/methods.md from its CSV

Scikit-learn's digits as bytes, since MLKD and CRLD change bytes alone; a network of three convolutions
(`three_convolutions.py`) with 4, 8, 16 channels learns from one with 24, 48, 96. Weights, temperature and warm-up of
each method as published, the schedule the same for all. DOT takes longer steps than SGD at the same learning rate, so
that a common one would decide the answer: each trainer has the one of RATES that was best for KD on the validation
split, over other seeds. Every part is one `dotkd compare`, which is printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import page
import pictures
import rates
from page import Row
from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from dotkd.evidence.statistics import holm
from dotkd.methods import METHODS

NAME = "methods"
SEEDS = 8
EPOCHS = 5
RATES = (0.01, 0.03, 0.1, 0.3)
TUNING_SEED, TUNING_SEEDS = 100, 3
MODEL = "studies.three_convolutions:three_convolutions"
SETTING = "tuned for KD"
# Method and trainer against the same method by SGD, as the cells of `dotkd compare` are called.
PAIRS = [(f"{method}+dot", method) for method in METHODS] + [("deepkd+deepkd", "deepkd")]


def run(out: Path, jobs: int) -> tuple[list[Row], list[str]]:
    digits = out / "digits.npz"
    write_digits(digits)
    words = [f"data=arrays:{digits}", f"teacher={MODEL}", "teacher_options={width: 24}", "teacher_epochs=10"]
    words += ["teacher_lr=0.1", f"student={MODEL}", "student_options={width: 4}", f"epochs={EPOCHS}"]

    def compare(part: str, trainers: str, methods: str, seeds: int, *more: str) -> Path:
        cells = ["--methods", methods, "--trainers", trainers, "--seeds", str(seeds), "--jobs", str(jobs)]
        page.dotkd("compare", "digits", *words, *more, *cells, "--out", str(out / part))
        return out / part

    grid = ["--vary", f"lr={','.join(str(rate) for rate in RATES)}"]
    tuning = compare("tuning", "sgd,dot", "kd", TUNING_SEEDS, f"seed={TUNING_SEED}", *grid)
    tried = rates.tried(tuning, "digits", RATES)
    taught = f"teacher_weights={tuning / 'teacher'}"
    rate_of = {trainer: rates.best(tried, trainer, RATES) for trainer in ("sgd", "dot")}
    found: list[Row] = []
    for rate in sorted(set(rate_of.values())):
        trainers = ",".join(trainer for trainer in rate_of if rate_of[trainer] == rate)
        folder = compare(f"lr-{rate:g}", trainers, ",".join(METHODS), SEEDS, taught, f"lr={rate}")
        found += page.comparison_rows(SETTING, folder)
    folder = compare("deepkd", "deepkd", "deepkd", SEEDS, taught, f"lr={rate_of['dot']}")
    found += page.comparison_rows(SETTING, folder)
    return tried + found, page.origin_lines([out])


def write_digits(path: Path) -> None:
    """The pictures as bytes, 0 to 255, with their labels, for `data=arrays:PATH`."""
    if not path.exists():
        bunch = cast("Any", load_digits)()
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.round(bunch.images * 255 / 16).astype(np.uint8)
        np.savez(path, x=pixels, y=bunch.target)


def blocks(rows: Sequence[Row]) -> Mapping[str, str]:
    grid = "\n".join(f"- {trainer}: {rates.line(rows, trainer, RATES)}" for trainer in ("sgd", "dot"))
    return {"grid": grid, "methods": method_table(rows, SETTING), "summary": summary(rows, SETTING)}


def method_table(rows: Sequence[Row], setting: str) -> str:
    """A line a pair: accuracies, their paired difference with p by Holm over the table and effect size, the losses."""
    changes = {pair: page.change(rows, setting, *pair) for pair in PAIRS}
    told = page.told_together(changes)
    heads = ["method, trainer", "n", "SGD, %", "DOT, %", "difference", "effect size"]
    heads += ["task loss, SGD > DOT", "distillation loss, SGD > DOT"]
    lines: list[list[str]] = []
    for pair in PAIRS:
        candidate, baseline = pair
        effect = changes[pair].effect_size
        line = [candidate.replace("+", ", "), str(changes[pair].n)]
        line += [page.estimate_text(page.mean(rows, setting, cell)) for cell in (baseline, candidate)]
        line += [told[pair], "-" if effect is None else f"{effect:+.2f}"]
        for key in ("test_task", "test_distill"):
            ends = [page.mean(rows, setting, cell, key).mean for cell in (baseline, candidate)]
            line.append(" > ".join("-" if end is None else f"{end:.3g}" for end in ends))
        lines.append(line)
    return page.table(heads, lines)


def summary(rows: Sequence[Row], setting: str) -> str:
    """How many pairs came out ahead and behind in accuracy and losses, and how many of these are shown (Holm)."""
    lines: list[list[str]] = []
    kinds = {"test accuracy": "accuracy", "test task loss": "test_task", "test distillation loss": "test_distill"}
    for name, key in kinds.items():
        changes = {pair: page.change(rows, setting, *pair, key) for pair in PAIRS}
        p = holm({pair: found.p for pair, found in changes.items() if found.p is not None})
        line = [name]
        for sign in (1, -1):
            there = [pair for pair, found in changes.items() if found.mean is not None and found.mean * sign > 0]
            line.append(f"{len(there)} ({sum(p.get(pair, 1.0) < 0.05 for pair in there)})")
        lines.append(line)
    return page.table(["DOT against SGD", "higher (shown)", "lower (shown)"], lines)


def picture(rows: Sequence[Row], path: Path) -> None:
    figure, (axes,) = pictures.panels(1, width=6.5, height=6.5)
    lines = [(pair[0].replace("+", ", "), page.change(rows, SETTING, *pair), 0) for pair in PAIRS]
    pictures.forest(axes, lines, title="DOT - SGD, 95 % interval (not corrected); logarithmic beyond 5")
    axes.set_xscale("symlog", linthresh=5)  # a few methods lie far out
    axes.set_xticks([-50, -20, -5, 0, 5, 20, 50], ["-50", "-20", "-5", "0", "5", "20", "50"])
    pictures.save(figure, path)


if __name__ == "__main__":
    page.main(NAME, __doc__, run, blocks, picture)
