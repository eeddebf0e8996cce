"""Where DOT helps and where it hurts: Delta, learning rate, temperature, length, batch size, size of the student.

    python studies/sensitivity.py [--out runs/sensitivity]    # about 80 minutes on one core
    python studies/sensitivity.py --check                     # stack = model and optimizer of the library, in float64
    python studies/sensitivity.py --page                      # docs/results/sensitivity.md from its CSV

MNIST-1D, the ResNet of the recipe `mnist1d`, 8 seeds, one factor at a time around Delta 0.075, learning rate 0.01, T 4,
30 epochs, batch 64, width 4; Delta with the learning rate as a grid. Seeds are trained in stacks
(`stacked_students.py`), from the initial weights and on the batches of `dotkd compare`, with the update of `dotkd.DOT`,
which `--check` holds them against. Started again it skips what is done.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import page
import pictures
import torch
import torch.nn.functional as F
from page import Row
from stacked_students import Problem, Students
from torch import Tensor

from dotkd import DOT, losses, schedule
from dotkd.allocator import keep_freed_memory
from dotkd.optim import StreamSGD
from dotkd.provenance import provenance

NAME = "sensitivity"
SEEDS = 8
MU = 0.9
DELTAS, RATES = (0.025, 0.05, 0.075, 0.09), (0.003, 0.01, 0.03, 0.1)
FACTORS: dict[str, tuple[Any, ...]] = {
    "temperature": (1.0, 4.0, 8.0),
    "epochs": (10, 30, 60, 90),
    "batch": (16, 32, 64, 256),
    "width": (2, 4, 8, 16),
}
BASE: dict[str, Any] = {"lr": 0.01, "delta": 0.075, "temperature": 4.0, "epochs": 30, "batch": 64, "width": 4}


class Setting(NamedTuple):
    """One point: what is varied, and the overrides of the recipe that give it."""

    name: str
    values: dict[str, Any]

    @property
    def overrides(self) -> list[str]:
        values = {**BASE, **self.values}
        return [
            f"lr={values['lr']}",
            f"temperature={values['temperature']}",
            f"epochs={values['epochs']}",
            f"batch_size={values['batch']}",
            f"student_options={{depth: 8, width: {values['width']}}}",
        ]


def settings() -> Iterator[tuple[Setting, tuple[tuple[str, float], ...]]]:
    """Every setting with its cells: (name, Delta)."""
    for rate in RATES:
        cells = [("kd", 0.0)]
        for delta in DELTAS:
            cells += [(f"kd+dot {delta:g}", delta), (f"kd+sgd-matched {delta:g}", delta)]
        yield Setting(f"lr {rate:g}", {"lr": rate}), tuple(cells)
    base = BASE["delta"]
    for factor, values in FACTORS.items():
        for value in values:
            if value != BASE[factor]:
                cells = (("kd", 0.0), (f"kd+dot {base:g}", base), (f"kd+sgd-matched {base:g}", base))
                yield Setting(f"{factor} {value:g}", {factor: value}), cells


def weights(problem: Problem, cell: str, delta: float) -> tuple[float, float, float]:
    """Of the task loss, of the distillation loss, and the decay: as configured, or as DOT ends up weighing them."""
    task, distill, _ = schedule.weights(problem.config)
    if "matched" not in cell:
        return task, distill, problem.config.weight_decay
    less, more = (1 - MU) / (1 - MU + delta), (1 - MU) / (1 - MU - delta)
    return task * less, distill * more, problem.config.weight_decay * less


def train(problem: Problem, cell: str, delta: float, seeds: Sequence[int], most: int = 0) -> Students:
    """The students of all `seeds` after the last step, or after the first `most` > 0."""
    students = Students([problem.student(seed) for seed in seeds])
    params = list(students.params.values())
    task, distill, decay = weights(problem, cell, delta)
    apart = "dot" in cell
    buffers = [[torch.zeros_like(p) for p in params] for _ in range(2 if apart else 1)]
    momenta = (MU - delta, MU + delta) if apart else (MU,)
    for _, lr, (inputs, targets, known) in problem.training(seeds, most):
        logits = students(inputs)
        size = targets.shape[1]  # a mean over the samples of each seed, and a sum over seeds
        entropy = task * F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / size
        rows = logits.flatten(0, 1), known.flatten(0, 1)
        divergence = distill * losses.kd(*rows, temperature=problem.temperature) * len(seeds)
        wanted = [entropy, divergence] if apart else [entropy + divergence]
        grads = [torch.autograd.grad(loss, params, retain_graph=loss is not wanted[-1]) for loss in wanted]
        with torch.no_grad():
            for position, (momentum, buffer, grad) in enumerate(zip(momenta, buffers, grads, strict=True)):
                torch._foreach_mul_(buffer, momentum)
                torch._foreach_add_(buffer, grad)
                if position == 0:
                    torch._foreach_add_(buffer, params, alpha=decay)
            for buffer in buffers:
                torch._foreach_add_(params, buffer, alpha=-lr)
    return students


def literal(problem: Problem, cell: str, delta: float, seed: int, most: int) -> dict[str, Tensor]:
    """The same for one seed, by the optimizers of the library."""
    task, distill, decay = weights(problem, cell, delta)
    if "dot" in cell:
        optimizer_of = partial(DOT, momentum=MU, delta=delta, weight_decay=decay)
    else:
        optimizer_of = partial(StreamSGD, momenta={"total": MU}, weight_decay=decay)
    return problem.literal(optimizer_of, task, distill, seed, most)


def check(out: Path) -> None:
    """Weights of a stack and of one seed at a time after 12 steps, in float64, for the cells of three settings."""
    seeds, most, worst = (3, 5), 12, 0.0
    for setting, cells in settings():
        if setting.name not in ("lr 0.03", "temperature 1", "width 8"):
            continue
        problem = Problem("mnist1d", setting.overrides, out, torch.float64)
        for cell, delta in cells:
            students = train(problem, cell, delta, seeds, most)
            for place, seed in enumerate(seeds):
                for name, value in literal(problem, cell, delta, seed, most).items():
                    if not name.endswith("num_batches_tracked"):
                        mine = {**students.params, **students.buffers}[name][place]
                        worst = max(worst, (value - mine).abs().max().item())
    sys.stdout.write(f"largest difference after {most} steps {worst:.1e}\n")
    if not worst < 1e-12:
        sys.exit("expected less than 1e-12")


def run(out: Path, _jobs: int) -> tuple[list[Row], list[str]]:
    torch.set_num_threads(1)
    keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(line["setting"], line["cell"]) for line in lines}
    for setting, cells in settings():
        for cell, delta in cells:
            if (setting.name, cell) in done:
                continue
            problem = Problem("mnist1d", setting.overrides, out)
            scores = problem.scores(train(problem, cell, delta, range(SEEDS)), SEEDS)
            origin = provenance(torch.device("cpu"))
            new = [row_of(setting.name, cell, seed, found) for seed, found in enumerate(scores)]
            with results.open("a") as file:
                file.writelines(json.dumps({**row, "commit": origin["commit"]}) + "\n" for row in new)
            sys.stderr.write(f"{setting.name}, {cell}: {page.estimate_text(page.mean(new, setting.name, cell))}\n")
            lines += [{**row, "commit": origin["commit"]} for row in new]
    hardware = provenance(torch.device("cpu"))
    commits = ", ".join(sorted({str(line.pop("commit")) for line in lines}))
    told = [f"commit: {commits}", f"hardware: {hardware['hardware']}", f"torch: {hardware['versions']['torch']}"]
    return lines, told


def row_of(setting: str, cell: str, seed: int, scores: Mapping[str, float | None]) -> Row:
    status = "diverged" if scores["test_accuracy"] is None else "done"
    keys = ("test_task", "test_distill", "train_task", "train_distill")
    found = {key: scores[key] for key in keys}
    return {
        "setting": setting,
        "cell": cell,
        "seed": seed,
        "status": status,
        "accuracy": scores["test_accuracy"],
        **found,
    }


def blocks(rows: Sequence[Row]) -> Mapping[str, str]:
    rates = [f"lr {rate:g}" for rate in RATES]
    dot, matched = ([f"{stem} {delta:g}" for delta in DELTAS] for stem in ("kd+dot", "kd+sgd-matched"))
    direct = {(s, a, b): page.change(rows, s, a, b) for s in rates for a, b in zip(dot, matched, strict=True)}
    told = page.told_together(direct)
    base = f"{BASE['delta']:g}"
    cells = ("kd", f"kd+dot {base}", f"kd+sgd-matched {base}")
    tables = {
        "rates-dot": page.comparison_table(rows, rates, ["kd", *dot], "kd", "accuracy", digits=2),
        "rates-matched": page.comparison_table(rows, rates, ["kd", *matched], "kd", "accuracy", digits=2),
        "direct": page.table(
            ["setting", *(f"Delta {delta:g}" for delta in DELTAS)],
            [[s, *(told[s, a, b] for a, b in zip(dot, matched, strict=True))] for s in rates],
        ),
    }
    for factor, values in FACTORS.items():
        names = [name_of(factor, value) for value in values]
        found = page.comparison_table(rows, names, cells, "kd", "accuracy", digits=2)
        tables[factor] = found.replace(f"| lr {BASE['lr']:g} |", f"| {factor} {BASE[factor]:g} |")
    others = [name_of(factor, value) for factor, values in FACTORS.items() for value in values if value != BASE[factor]]
    told = page.told_together({name: page.change(rows, name, *cells[1:]) for name in others})
    tables["factors-direct"] = page.table(["setting", "DOT - sgd-matched"], list(told.items()))
    return tables


def name_of(factor: str, value: Any) -> str:
    """The setting of a value; that of the base is the one of its learning rate."""
    return f"lr {BASE['lr']:g}" if value == BASE[factor] else f"{factor} {value:g}"


def picture(rows: Sequence[Row], path: Path) -> None:
    figure, axes = pictures.panels(len(RATES) + len(FACTORS), columns=4, width=3.1, height=2.9)
    for panel, rate in zip(axes, RATES, strict=False):
        found = {
            cell: [page.mean(rows, f"lr {rate:g}", f"kd+{cell} {delta:g}" if delta else "kd") for delta in (0, *DELTAS)]
            for cell in ("dot", "sgd-matched")
        }
        pictures.against(panel, (0.0, *DELTAS), found, title=f"Delta, at lr {rate:g}")
    base = f"{BASE['delta']:g}"
    for panel, (factor, values) in zip(axes[len(RATES) :], FACTORS.items(), strict=True):
        found = {
            short: [page.mean(rows, name_of(factor, value), cell) for value in values]
            for short, cell in (("dot", f"kd+dot {base}"), ("sgd-matched", f"kd+sgd-matched {base}"), ("kd", "kd"))
        }
        pictures.against(panel, values, found, title=f"{factor}, at lr {BASE['lr']:g}", log=True)
    for panel in axes[::4]:
        panel.set_ylabel("test accuracy, %")
    pictures.save(figure, path, legend_from=-1)


if __name__ == "__main__":
    if "--check" in sys.argv:
        check(Path("runs") / NAME)
    else:
        page.main(NAME, __doc__, run, blocks, picture)
