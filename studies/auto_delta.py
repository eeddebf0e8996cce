"""A Delta that sets itself: does a rule find the Delta that a run wants?

    python studies/auto_delta.py [--only digits] [--minutes 30] [--out runs/auto-delta]
    python studies/auto_delta.py --page     # docs/results/auto-delta.md from its CSV
    python studies/auto_delta.py --check    # the equalities that this study rests on

The rules stand in `auto_rules.py`, settings and cells in `auto_cells.py`, the page's tables and picture in
`auto_tables.py`. Beside the rules: fixed Deltas, DOT's matched control (`sgd-matched`), and the rivals of any claim:
the matched control with the Delta of a rule, and plain KD whose learning rate the same signal sets. All cells are
trained with the same seeds, in stacks (`stacked_students.py`), from the initial weights and on the batches of `dotkd
compare`. Started again it skips what is done. The digits are cheap: there every rule runs; elsewhere those of WIDE.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import auto_rules as rules
import page
import torch
from auto_cells import CELLS, SETTINGS, WIDE
from auto_tables import blocks, picture
from cheap_differences import VARIANTS
from cheaper_than_exact import literal
from page import Row
from stacked_students import Problem, Students

from dotkd import provenance
from dotkd.allocator import keep_freed_memory

NAME = "auto-delta"
AT_ONCE = 4  # seeds in a stack


def run(out: Path, only: str, cells: Sequence[str], minutes: float) -> None:
    """Train what is missing, the first seeds of every setting first, until `minutes` have passed."""
    results, begin = out / "results.jsonl", time.monotonic()
    problems: dict[str, Problem] = {}
    for first in range(0, max(seeds for _, _, seeds in SETTINGS.values()), AT_ONCE):
        for setting, (recipe, overrides, count) in SETTINGS.items():
            seeds = range(first, min(first + AT_ONCE, count))
            done = {(line["cell"], line["seed"]) for line in read(results) if line["setting"] == setting}
            wanted = [cell for cell in (CELLS if setting.startswith("digits") else WIDE) if cell in cells]
            missing = [cell for cell in wanted if any((cell, seed) not in done for seed in seeds)]
            if not (setting.startswith(only) and missing and seeds):
                continue
            if time.monotonic() - begin > 60 * minutes:
                sys.stderr.write(f"{minutes:g} minutes have passed, left out: {setting}, seeds from {first}\n")
                return
            problem = problems.setdefault(setting, Problem(recipe, overrides, out))
            students, delta = rules.train(problem, [CELLS[cell] for cell in missing], seeds)
            found = lines_of(problem, students, delta, setting, missing, seeds)
            with results.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in found)
            sys.stderr.write(f"{setting}, seeds {first} to {seeds[-1]}: {time.monotonic() - begin:.0f} s\n")


def lines_of(
    problem: Problem, students: Students, delta: torch.Tensor, setting: str, cells: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    runs = [(cell, seed) for cell in cells for seed in seeds]
    commit = provenance.provenance(torch.device("cpu"))["commit"]
    return [
        {
            "setting": setting,
            "cell": cell,
            "seed": seed,
            **scores,
            "delta": [round(x, 4) for x in tenths],
            "commit": commit,
        }
        for (cell, seed), scores, tenths in zip(
            runs, problem.scores(students, len(runs)), delta.T.tolist(), strict=True
        )
    ]


def read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def rows_of(lines: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row a cell: means of the final training losses and of Delta, and the test accuracy of every seed in percent.

    A run that diverged has the accuracy nan, one that was not made none.
    """
    rows: list[Row] = []
    for setting in SETTINGS:
        for cell in CELLS:
            mine = [line for line in lines if line["setting"] == setting and line["cell"] == cell]
            ended = [line for line in mine if line["test_accuracy"] is not None]
            if not mine:
                continue
            row: Row = {"setting": setting, "cell": cell, "status": f"{len(mine) - len(ended)} diverged"}
            for name in ("train_task", "train_distill"):
                row[name] = sum(line[name] for line in ended) / len(ended) if ended else None
            for tenth in (0, 2, 5, 9):
                row[f"delta_{tenth + 1}"] = sum(line["delta"][tenth] for line in mine) / len(mine)
            of_seed = {f"seed_{line['seed']}": line["test_accuracy"] for line in mine}
            rows.append(row | {key: math.nan if value is None else value for key, value in of_seed.items()})
    return rows


def check(out: Path) -> None:
    """In float64: the cells with a fixed Delta are the optimizers of the library, step by step."""
    pairs = {"kd": "kd", "delta 0.075": "dot", "matched 0.075": "matched"}
    for setting in ("digits lr 0.01", "mlp T 1 lr 0.01", "resnet lr 0.01"):
        recipe, overrides, _ = SETTINGS[setting]
        problem, seeds, worst = Problem(recipe, overrides, out, torch.float64), (3, 5), 0.0
        students, _ = rules.train(problem, [CELLS[cell] for cell in pairs], seeds, most=12)
        for place, variant in enumerate(pairs.values()):
            for own, seed in enumerate(seeds):
                for name, value in literal(problem, VARIANTS[variant], seed, 12).items():
                    if name in students.params:
                        mine = students.params[name][place * len(seeds) + own]
                        worst = max(worst, (value - mine).abs().max().item())
        sys.stdout.write(f"{setting}: largest difference after 12 steps {worst:.1e}\n")
        if not worst < 1e-12:
            sys.exit("expected less than 1e-12")


def main() -> None:
    parser = argparse.ArgumentParser(description="A Delta that sets itself.")
    parser.add_argument("--only", default="", help="settings whose name starts so")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS), help="all by default")
    parser.add_argument("--minutes", type=float, default=600, help="begin nothing after that time")
    parser.add_argument("--out", type=Path, default=Path("runs") / NAME)
    parser.add_argument("--page", action="store_true", help="train nothing: renew the page from its CSV")
    parser.add_argument("--check", action="store_true", help="the stacks against the library's optimizers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.check:
        return check(args.out)
    csv, text = page.RESULTS / f"{NAME}.csv", page.RESULTS / f"{NAME}.md"
    if not args.page:
        run(args.out, args.only, args.cells, args.minutes)
        lines, origin = read(args.out / "results.jsonl"), provenance.provenance(torch.device("cpu"))
        commits = ", ".join(sorted({line["commit"] for line in lines}))
        told = [f"commit: {commits}", f"hardware: {origin['hardware']}, 1 thread", f"torch: {torch.__version__}"]
        page.write_rows(csv, rows_of(lines), told)
    rows = page.read_rows(csv)
    picture(rows, page.RESULTS / f"{NAME}.svg")
    page.renew(text, {"origin": page.origin_of(csv), **blocks(rows)})


if __name__ == "__main__":
    main()
