"""Where DOT helps and where it hurts, on MNIST-1D: one factor at a time, with both controls.

    python benchmarks/where_dot_helps.py [--seeds 8] [--only resnet] [--out runs/where-dot-helps]

Each setting is one `dotkd compare` (printed, so that it can be run alone); all learn from one teacher. Started again
it skips what is done. Prints a Markdown table: test accuracy after the last epoch in percent (the mean over seeds), the
paired difference to KD with its p-value (not corrected), and the final task and distillation loss on the training
split.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from dotkd import Config
from dotkd.evidence.statistics import paired_difference
from dotkd.trainer import teacher_run

CELLS = ("ce", "kd", "kd+dot", "kd+dot-normalized", "kd+sgd-matched")
RESNET = ["lr=0.01"]
MLP = ["student=mlp", "epochs=40", "lr=0.02"]
# `dotkd compare mnist1d` with these changes.
SETTINGS: dict[str, list[str]] = {
    **{f"resnet lr {lr}": [f"lr={lr}"] for lr in (0.003, 0.01, 0.03, 0.1)},
    **{f"resnet delta {delta}": [*RESNET, f"delta={delta}"] for delta in (0.05, 0.09)},
    **{f"resnet epochs {epochs}": [*RESNET, f"epochs={epochs}"] for epochs in (10, 60)},
    "resnet group norm": [*RESNET, "student_options={depth: 8, width: 4, norm: group}"],
    **{f"resnet width {width}": [*RESNET, f"student_options={{depth: 8, width: {width}}}"] for width in (2, 8)},
    **{f"mlp lr {lr}": [*MLP, "student_options={}", f"lr={lr}"] for lr in (0.005, 0.02, 0.05, 0.1)},
    "mlp delta 0.05": [*MLP, "student_options={}", "delta=0.05"],
    "mlp no norm": [*MLP, "student_options={norm: none}"],
    "mlp width 256": [*MLP, "student_options={width: 256}"],
}


def compare(name: str, overrides: list[str], seeds: int, out: Path) -> dict[str, dict[int, dict[str, float]]]:
    """Run one setting; the numbers of its runs by cell and seed."""
    folder = out / name.replace(" ", "-")
    command = ["dotkd", "compare", "mnist1d", f"teacher_weights={out / 'teacher'}", *overrides, "--methods", "none,kd"]
    command += ["--trainers", "sgd,dot,dot-normalized,sgd-matched", "--seeds", str(seeds), "--out", str(folder)]
    sys.stderr.write(" ".join(f"'{word}'" if " " in word else word for word in command) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode not in (0, 3):
        sys.exit(f"{name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    runs: dict[str, dict[int, dict[str, float]]] = {}
    for run in json.loads((folder / "comparison.json").read_text())["runs"]:
        runs.setdefault(run["cell"], {})[run["seed"]] = run
    return runs


def row(name: str, runs: dict[str, dict[int, dict[str, float]]]) -> str:
    def column(cell: str, key: str) -> dict[int, float]:
        return {seed: run[key] for seed, run in runs[cell].items() if run["status"] == "done"}

    def mean(values: dict[int, float]) -> float:
        return sum(values.values()) / len(values) if values else float("nan")

    texts = [name]
    for cell in CELLS:
        accuracy = column(cell, "test_accuracy_last")
        text = f"{100 * mean(accuracy):.2f}"
        if cell != "kd":
            change = paired_difference(accuracy, column("kd", "test_accuracy_last"))
            if change.mean is not None and change.p is not None:
                text += f" ({100 * change.mean:+.2f}, p {change.p:.3f})"
        if len(accuracy) < len(runs[cell]):
            text += f" [{len(runs[cell]) - len(accuracy)} diverged]"
        texts.append(text)
    for cell in ("kd", "kd+dot", "kd+sgd-matched"):
        losses = [mean(column(cell, f"train_{loss}_loss")) for loss in ("task", "distill")]
        texts.append(" / ".join(f"{loss:.3g}" for loss in losses))
    return "| " + " | ".join(texts) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", default="", help="settings whose name starts so")
    parser.add_argument("--out", type=Path, default=Path("runs/where-dot-helps"))
    args = parser.parse_args()
    out = args.out.resolve()
    teacher_run(Config.from_sources("mnist1d", ["threads=1"]), out / "teacher")
    losses = [f"train task / distill, {cell}" for cell in ("kd", "kd+dot", "kd+sgd-matched")]
    sys.stdout.write("| " + " | ".join(["setting", *CELLS, *losses]) + " |\n" + "|---" * (len(CELLS) + 4) + "|\n")
    for name, overrides in SETTINGS.items():
        if name.startswith(args.only):
            sys.stdout.write(row(name, compare(name, overrides, args.seeds, out)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
