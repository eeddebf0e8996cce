"""DOT with each method of the zoo: every method by SGD and by DOT, DeepKD by its own trainer too.

    python studies/methods.py [--jobs 2] [--out runs/methods-by-dot]     # about 25 minutes on one core
    python studies/methods.py --page                                     # docs/results/methods.md from its CSV

Scikit-learn's digits as bytes, since MLKD and CRLD change bytes alone; a network of three convolutions
(`three_convolutions.py`) with 4, 8, 16 channels learns from one with 24, 48, 96. Weights, temperature and warm-up of each
method as published, the schedule the same for all. DOT takes longer steps than SGD at the same learning rate, so that one
learning rate would decide the answer: there are two. Every setting is one `dotkd compare`, which is printed, over 8 seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import page
import pictures
from page import Row
from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from dotkd.evidence.statistics import holm
from dotkd.methods import METHODS

NAME = "methods"
SEEDS = 8
EPOCHS = 4
RATES = (0.03, 0.1)
MODEL = "studies.three_convolutions:three_convolutions"
# Method and trainer against the same method by SGD, as the cells of `dotkd compare` are called.
PAIRS = [(f"{method}+dot", method) for method in METHODS] + [("deepkd+deepkd", "deepkd")]


def run(out: Path, jobs: int) -> tuple[list[Row], list[str]]:
    digits = out / "digits.npz"
    write_digits(digits)
    words = [f"data=arrays:{digits}", f"teacher={MODEL}", "teacher_options={width: 24}", "teacher_epochs=10"]
    words += ["teacher_lr=0.1", f"student={MODEL}", "student_options={width: 4}", f"epochs={EPOCHS}"]
    vary = ["--vary", f"lr={','.join(str(rate) for rate in RATES)}", "--seeds", str(SEEDS), "--jobs", str(jobs)]
    parts = {"zoo": (",".join(METHODS), "sgd,dot"), "deepkd": ("deepkd", "deepkd")}
    rows: list[Row] = []
    for part, (methods, trainers) in parts.items():
        taught = [] if part == "zoo" else [f"teacher_weights={out / 'zoo' / 'teacher'}"]
        cells = ["--methods", methods, "--trainers", trainers]
        page.dotkd("compare", "digits", *words, *taught, *vary, *cells, "--out", str(out / part))
        for rate in RATES:
            rows += page.comparison_rows(name_of(rate), out / part / f"lr={rate}")
    return rows, page.origin_lines([out])


def write_digits(path: Path) -> None:
    """The pictures as bytes, 0 to 255, with their labels, for `data=arrays:PATH`."""
    if not path.exists():
        bunch = cast("Any", load_digits)()
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.round(bunch.images * 255 / 16).astype(np.uint8)
        np.savez(path, x=pixels, y=bunch.target)


def name_of(rate: float) -> str:
    return f"lr {rate:g}"


def blocks(rows: Sequence[Row]) -> Mapping[str, str]:
    tables = {f"lr-{rate:g}": method_table(rows, name_of(rate)) for rate in RATES}
    return {**tables, "summary": summary(rows)}


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


def summary(rows: Sequence[Row]) -> str:
    """How many of the pairs came out ahead and behind, how many of these are shown, and what the losses did."""
    lines: list[list[str]] = []
    for rate in RATES:
        setting = name_of(rate)
        changes = {pair: page.change(rows, setting, *pair) for pair in PAIRS}
        p = holm({pair: found.p for pair, found in changes.items() if found.p is not None})
        line = [setting]
        for sign in (1, -1):
            ahead = [pair for pair, found in changes.items() if found.mean is not None and found.mean * sign > 0]
            line.append(f"{len(ahead)} ({sum(p.get(pair, 1.0) < 0.05 for pair in ahead)})")
        for key in ("test_task", "test_distill"):
            losses = {pair: page.change(rows, setting, *pair, key) for pair in PAIRS}
            corrected = holm({pair: found.p for pair, found in losses.items() if found.p is not None})
            lower = [pair for pair, found in losses.items() if found.mean is not None and found.mean < 0]
            line.append(f"{len(lower)} ({sum(corrected.get(pair, 1.0) < 0.05 for pair in lower)})")
        lines.append(line)
    heads = ["setting", "more accurate (shown)", "less accurate (shown)"]
    return page.table([*heads, "task loss lower (shown)", "distillation loss lower (shown)"], lines)


def picture(rows: Sequence[Row], path: Path) -> None:
    figure, axes = pictures.panels(len(RATES), columns=2, width=4.6, height=6.5)
    for place, (panel, rate) in enumerate(zip(axes, RATES, strict=True)):
        pairs = [(pair[0].replace("+", ", "), page.change(rows, name_of(rate), *pair), place) for pair in PAIRS]
        pictures.forest(panel, pairs, title=f"DOT - SGD, {name_of(rate)}")
    pictures.save(figure, path)


if __name__ == "__main__":
    page.main(NAME, __doc__, run, blocks, picture)
