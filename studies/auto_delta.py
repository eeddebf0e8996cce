"""A Delta that sets itself: does a rule find the Delta that a run wants?

    python studies/auto_delta.py [--only digits] [--minutes 30] [--out runs/auto-delta]
    python studies/auto_delta.py --page     # docs/results/auto-delta.md from its CSV
    python studies/auto_delta.py --check    # the equalities that this study rests on

The rules stand in `auto_rules.py`. Beside them: fixed Deltas, DOT's matched control (`sgd-matched`), and the rivals of
any claim: the matched control with the Delta of a rule, and plain KD whose learning rate the same signal sets. All
cells are trained with the same seeds, in stacks (`stacked_students.py`), from the initial weights and on the
batches of `dotkd compare`. Started again it skips what is done. The digits are cheap: there every rule runs; elsewhere
those of WIDE.
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
from auto_rules import Cell, steered
from cheap_differences import VARIANTS
from cheaper_than_exact import literal
from page import Row
from stacked_students import Problem, Students

from dotkd import provenance
from dotkd.allocator import keep_freed_memory
from dotkd.evidence.statistics import estimate, holm, paired_difference

NAME = "auto-delta"
AT_ONCE = 4  # seeds in a stack
MLP = ["student=mlp", "student_options={}", "epochs=40"]
EVEN = ["temperature=1.0", "task_weight=0.5", "distill_weight=0.5"]  # T = 4, 0.1 and 0.9 elsewhere
SETTINGS: dict[str, tuple[str, list[str], int]] = {  # a recipe, what is changed in it, seeds
    **{f"digits lr {lr}": ("digits", [f"lr={lr}"], 16) for lr in (0.001, 0.01, 0.05)},
    "digits T 1 lr 0.01": ("digits", ["lr=0.01", *EVEN], 16),
    **{f"mlp lr {lr}": ("mnist1d", [*MLP, f"lr={lr}"], 8) for lr in (0.005, 0.02, 0.05)},
    "mlp T 1 lr 0.01": ("mnist1d", [*MLP, "lr=0.01", *EVEN], 8),
    **{f"resnet lr {lr}": ("mnist1d", [f"lr={lr}"], 8) for lr in (0.003, 0.1, 0.01, 0.03)},
    "resnet T 1 lr 0.01": ("mnist1d", ["lr=0.01", *EVEN], 8),
}
FIXED = {
    "kd": Cell(0.0),
    **{f"delta {value}": Cell(value) for value in (0.025, 0.05, 0.075, 0.09)},
    "matched 0.075": Cell(0.075, "matched"),
}
AUTO = {
    "buffer": Cell(steered(rules.buffer)),
    "hypergradient": Cell(steered(rules.hypergradient)),
    "sensitivity": Cell(steered(rules.sensitivity)),
    "displacement": Cell(steered(rules.displacement)),
    "both": Cell(steered(rules.both)),
    "both, z": Cell(steered(rules.both_z)),
    "snr": Cell(rules.snr),
    "distance": Cell(rules.distance),
    "agreement": Cell(rules.agreement),
    "annealed": Cell(rules.annealed),
    "late": Cell(rules.late),
}
RIVALS = {
    "matched, displacement": Cell(steered(rules.displacement), "matched"),
    "rate, one buffer": Cell(steered(rules.one_buffer), "rate"),
    "rate, displacement": Cell(steered(rules.displacement), "rate"),
}
CELLS = FIXED | AUTO | RIVALS
WIDE = (*FIXED, "sensitivity", "both", "rate, displacement")


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
    return [
        {"setting": setting, "cell": cell, "seed": seed, **scores, "delta": [round(x, 4) for x in tenths]}
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


def accuracy(rows: Sequence[Row], setting: str, cell: str) -> dict[int, float | None]:
    found = [row for row in rows if row["setting"] == setting and row["cell"] == cell]
    return {
        int(key[5:]): value
        for row in found
        for key, value in row.items()
        if key.startswith("seed_") and value is not None
    }


def blocks(rows: Sequence[Row]) -> Mapping[str, str]:
    groups = ("digits", "mlp", "resnet")
    tables = {group: accuracies(rows, [s for s in SETTINGS if s.startswith(group)]) for group in groups}
    return {**tables, "verdict": verdict(rows), "rivals": rivals(rows), "losses": losses(rows), "found": found(rows)}


def accuracies(rows: Sequence[Row], settings: Sequence[str]) -> str:
    """A line a cell, a column a setting: KD, then paired differences to it; p by Holm over the table."""
    settings = [setting for setting in settings if accuracy(rows, setting, "kd")]
    cells = [cell for cell in CELLS if any(accuracy(rows, setting, cell) for setting in settings)]
    changes = {
        (setting, cell): paired_difference(accuracy(rows, setting, cell), accuracy(rows, setting, "kd"))
        for setting in settings
        for cell in cells
        if cell != "kd"
    }
    told = page.told_together(changes)
    own = {setting: estimate(list(accuracy(rows, setting, "kd").values())) for setting in settings}
    first = ["kd", *(f"{page.estimate_text(own[setting])} (n = {own[setting].n})" for setting in settings)]
    rest = [[cell, *(told[setting, cell] for setting in settings)] for cell in cells if cell != "kd"]
    return page.table(["cell", *settings], [first, *rest])


def verdict(rows: Sequence[Row]) -> str:
    """A line a rule: in how many settings it was behind KD, and behind the fixed Delta with the best mean there.

    Shown: p < 0.05, first as it comes, then by Holm over the settings of the line.
    """
    lines: list[list[str]] = []
    for cell in (*FIXED, *AUTO, *RIVALS):
        settings = [setting for setting in SETTINGS if accuracy(rows, setting, cell) and accuracy(rows, setting, "kd")]
        line = [cell, str(len(settings))]
        for baseline in (dict.fromkeys(settings, "kd"), {s: best_fixed(rows, s) for s in settings}):
            changes = {
                setting: paired_difference(accuracy(rows, setting, cell), accuracy(rows, setting, baseline[setting]))
                for setting in settings
                if cell != baseline[setting]
            }
            p = {setting: change.p for setting, change in changes.items() if change.p is not None}
            corrected = holm(p)
            behind = [setting for setting, change in changes.items() if (change.mean or 0) < 0]
            shown = [sum(values.get(s, 1.0) < 0.05 for s in behind) for values in (p, corrected)]
            worst = min(changes, key=lambda s: changes[s].mean or 0.0, default=None)
            text = (
                "-" if worst is None else f"{changes[worst].mean:+.2f} ± {changes[worst].half_width or 0:.2f} ({worst})"
            )
            line += [f"{len(behind)} / {shown[0]} / {shown[1]}", text]
        lines.append(line)
    heads = [
        "cell",
        "settings",
        "behind KD / shown / by Holm",
        "most",
        "behind the best Delta / shown / by Holm",
        "most",
    ]
    return page.table(heads, lines)


def rivals(rows: Sequence[Row]) -> str:
    """Paired differences of the rule that did best to what must be beaten, p by Holm over the table."""
    others = ("matched 0.075", *RIVALS)
    settings = [setting for setting in SETTINGS if any(accuracy(rows, setting, other) for other in others)]
    changes = {
        (setting, other): paired_difference(accuracy(rows, setting, "sensitivity"), accuracy(rows, setting, other))
        for setting in settings
        for other in others
    }
    told = page.told_together(changes)
    return page.table(["setting", *others], [[s, *(told[s, other] for other in others)] for s in settings])


def best_fixed(rows: Sequence[Row], setting: str) -> str:
    """The fixed Delta, 0 included, whose mean is the best."""
    means = {
        cell: estimate(list(accuracy(rows, setting, cell).values())).mean for cell in FIXED if "matched" not in cell
    }
    return max((cell for cell in means if means[cell] is not None), key=lambda cell: means[cell] or 0.0)


def losses(rows: Sequence[Row]) -> str:
    """Final training losses, task / distillation, means over the seeds that did not diverge."""
    cells = ("kd", "delta 0.05", "delta 0.075", "delta 0.09", "matched 0.075", "sensitivity", "rate, displacement")
    told = {
        (r["setting"], r["cell"]): f"{r['train_task']:.3f} / {r['train_distill']:.3f}" for r in rows if r["train_task"]
    }
    settings = [setting for setting in SETTINGS if (setting, "kd") in told]
    return page.table(["setting", *cells], [[s, *(told.get((s, cell), "-") for cell in cells)] for s in settings])


def found(rows: Sequence[Row]) -> str:
    """Mean Delta in the first, third, sixth and last tenth of training."""
    cells = [cell for cell in (*AUTO, *RIVALS) if any(row["cell"] == cell for row in rows)]
    told = {(r["setting"], r["cell"]): " ".join(f"{r[f'delta_{k}']:.3f}"[1:] for k in (1, 3, 6, 10)) for r in rows}
    settings = [setting for setting in SETTINGS if any(row["setting"] == setting for row in rows)]
    return page.table(["setting", *cells], [[s, *(told.get((s, cell), "-") for cell in cells)] for s in settings])


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
        origin = provenance.provenance(torch.device("cpu"))
        told = [f"commit: {origin['commit']}", f"hardware: {origin['hardware']}, 1 thread"]
        page.write_rows(csv, rows_of(read(args.out / "results.jsonl")), [*told, f"torch: {torch.__version__}"])
    rows = page.read_rows(csv)
    page.renew(text, {"origin": page.origin_of(csv), **blocks(rows)})


if __name__ == "__main__":
    main()
