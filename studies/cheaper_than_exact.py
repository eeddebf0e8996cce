"""Can DOT be had for less than two backward passes? What cheaper forms cost, and what they learn.

    python studies/cheaper_than_exact.py [--seeds 16] [--only digits] [--variants dot,half] [--out runs/cheaper]
    python studies/cheaper_than_exact.py --check     # the equalities that this study rests on
    python studies/cheaper_than_exact.py --time      # the steps, timed in turns; kept for the tables

The forms are those of `cheap_differences.py`, beside exact DOT, plain KD and two controls with one momentum: `matched`
(the losses weighed as DOT ends up weighing them) and DOT's larger momentum for everything. Seeds are trained in stacks
(`stacked_students.py`), from the initial weights and on the batches of `dotkd compare`. Started again it skips what is
done. Differences are paired over seeds; p-values are corrected by Holm over the rows of their column.

FLOPs are those of a training step over KD's, by torch's counter. A part of the batch costs what they say only where
samples do not meet inside the network: through BatchNorm, J^T r of a part is taken over the whole batch here, and its
time is that of two forward passes over parts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cheap_differences import MOMENTUM, VARIANTS, Streams, Variant, at_the_logits
from stacked_students import Problem, Students
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dotkd import DOT, models, schedule
from dotkd.allocator import keep_freed_memory
from dotkd.bench.rounds import Conditions, Quantity, timed_in_turns
from dotkd.evidence.statistics import estimate, holm, paired_difference
from dotkd.optim import StreamSGD

STACK = 16  # seeds trained at once: more of them leave the processor's cache
MLP = ["student=mlp", "student_options={}", "epochs=40"]
EVEN = ["temperature=1.0", "task_weight=0.5", "distill_weight=0.5"]  # as the paper on ImageNet; 4, 0.1, 0.9 elsewhere
LITERAL = ("kd", "matched", "dot", "momentum 0.975")  # what the library's own optimizers do
TIMED = ("dot", "keep 2", "keep 4", "keep 8", "half", "quarter", "project", "last stage", "early half", "sketch")
SETTINGS: dict[str, tuple[str, list[str]]] = {  # a recipe and what is changed in it
    "resnet lr 0.003": ("mnist1d", ["lr=0.003"]),
    "resnet lr 0.01": ("mnist1d", ["lr=0.01"]),
    "mlp lr 0.005": ("mnist1d", [*MLP, "lr=0.005"]),
    "mlp T 1 lr 0.01": ("mnist1d", [*MLP, "lr=0.01", *EVEN]),
    "digits lr 0.001": ("digits", ["lr=0.001"]),
    "digits lr 0.01": ("digits", ["lr=0.01"]),
    "digits T 1 lr 0.01": ("digits", ["lr=0.01", *EVEN]),
}


def weights(problem: Problem, variant: Variant) -> tuple[float, float, float]:
    """Of the task loss, of the distillation loss, and the decay: as configured, or as DOT ends up weighing them."""
    task, distill, _ = schedule.weights(problem.config)
    rest, delta = 1 - MOMENTUM, VARIANTS["dot"].delta
    less, more = (rest / (rest + delta), rest / (rest - delta)) if variant.matched else (1.0, 1.0)
    return task * less, distill * more, problem.config.weight_decay * less


def train(problem: Problem, variant: Variant, seeds: Sequence[int], students: Students, most: int = 0) -> None:
    """To the end, or for the first `most` > 0 steps."""
    streams = Streams(variant, students.params, problem.student(0).feature_points[-1])
    task, distill, decay = weights(problem, variant)
    for step, lr, (inputs, targets, known) in problem.training(seeds, most):
        logits = students(inputs)
        a, b = at_the_logits(logits, targets, known, task, distill, problem.temperature)
        of_part = logits[:, : round(variant.part * logits.shape[1])]
        g_sum, g_diff = streams.gradients(logits, of_part, a, b, step, step / problem.steps)
        streams.update(g_sum, g_diff, lr=lr, decay=decay)


def literal(problem: Problem, variant: Variant, seed: int, most: int) -> dict[str, Tensor]:
    """The same for one seed, by the optimizers of the library."""
    task, distill, decay = weights(problem, variant)
    if variant.delta:
        optimizer_of = partial(DOT, momentum=MOMENTUM, delta=variant.delta, weight_decay=decay)
    else:
        optimizer_of = partial(StreamSGD, momenta={"total": variant.momentum}, weight_decay=decay)
    return problem.literal(optimizer_of, task, distill, seed, most)


def check(out: Path) -> None:
    """In float64: stack, sum and difference are model and optimizer, and k = 1 is exact in every form."""
    seeds, most = (3, 5), 12
    forms = (Variant(project=True), Variant(between="extrapolate"), Variant(every=None, exact=(0.0, 1.0), project=True))
    for setting, (recipe, overrides) in SETTINGS.items():
        problem = Problem(recipe, overrides, out, torch.float64)
        pairs = [(variant, variant) for name, variant in VARIANTS.items() if name in LITERAL]
        worst = 0.0
        for form, oracle in [*pairs, *((form, VARIANTS["dot"]) for form in forms)]:
            students = Students([problem.student(seed) for seed in seeds])
            train(problem, form, seeds, students, most)
            for place, seed in enumerate(seeds):
                for name, value in literal(problem, oracle, seed, most).items():
                    if not name.endswith("num_batches_tracked"):
                        mine = {**students.params, **students.buffers}[name][place]
                        worst = max(worst, (value - mine).abs().max().item())
        sys.stdout.write(f"{setting}: largest difference after {most} steps {worst:.1e}\n")
        if not worst < 1e-12:
            sys.exit("expected less than 1e-12")


def flops(problem: Problem, variant: Variant) -> float:
    """Multiplications of a step over those of plain KD's."""
    student = problem.student(0)
    last = [p for name, p in student.named_parameters() if name.startswith((student.feature_points[-1], "head"))]
    (inputs,), _, _ = next(problem.batches([0], 0))

    def counted(wanted: Sequence[Tensor]) -> int:
        with FlopCounterMode(display=False) as counter:
            logits = student(inputs)
            if wanted:
                torch.autograd.grad(logits, wanted, torch.ones_like(logits))
        return counter.get_total_flops()

    forward, plain = counted([]), counted(list(student.parameters()))
    if variant.last:
        return (plain + counted(last) - forward) / plain
    begin, end = variant.exact
    passes = (end - begin) + (1 - end + begin) * variant.part / variant.every if variant.every else end - begin
    return 1 + passes * (1 - forward / plain)


def time_steps() -> dict[str, float]:
    """Median ratios of each step to KD's: a larger student, one seed, CPU time in turns, 8 steps a turn."""
    conditions = Conditions(torch.device("cpu"), rounds=5)
    with conditions.held():
        plain, found = _work(VARIANTS["kd"]), {"kd": 1.0}
        for name in TIMED:
            ours, other = timed_in_turns(_work(VARIANTS[name]), plain, conditions)
            found[name] = Quantity.of([x / y for x, y in zip(ours, other, strict=True)]).median
    return found


def _work(variant: Variant) -> Callable[[], None]:
    inputs, targets, known = torch.randn(64, 3, 16, 16), torch.randint(100, (64,)), torch.randn(1, 64, 100)
    student: Any = models.build("resnet2d", num_classes=100, input_shape=(3, 16, 16), options={"width": 32})
    streams = Streams(variant, dict(student.named_parameters()), student.feature_points[-1])
    rows = round(variant.part * len(inputs))

    def work() -> None:
        for step in range(8):
            outputs = [student(x) for x in inputs.split([rows, len(inputs) - rows]) if len(x)]
            logits = torch.cat(outputs)[None] if len(outputs) > 1 else outputs[0][None]
            a, b = at_the_logits(logits, targets, known, 0.1, 0.9, 4.0)
            streams.update(*streams.gradients(logits, outputs[0][None], a, b, step, step / 8), lr=1e-3, decay=5e-4)

    return work


def table(problem: Problem, lines: Sequence[Mapping[str, Any]], times: Mapping[str, float]) -> str:
    """Of n finished runs: costs, test accuracy, its paired differences and corrected p, final losses in training."""
    lines = [line for line in lines if line["test_accuracy"] is not None]
    runs = {name: {line["seed"]: line for line in lines if line["variant"] == name} for name in VARIANTS}
    runs = {name: found for name, found in runs.items() if found}

    def column(name: str, key: str) -> dict[int, float | None]:
        return {seed: line[key] for seed, line in runs.get(name, {}).items()}

    def differences(other: str) -> dict[str, str]:
        theirs = column(other, "test_accuracy")
        found = {name: paired_difference(column(name, "test_accuracy"), theirs) for name in runs if name != other}
        p = holm({name: change.p for name, change in found.items() if change.p is not None})
        return {name: f"{found[name].mean:+.2f} ± {found[name].half_width:.2f} ({p[name]:.3f})" for name in p}

    def mean(name: str, key: str) -> str:
        found = estimate(list(column(name, key).values()))
        short = key != "test_accuracy" or found.half_width is None
        return f"{found.mean:.3g}" if short else f"{found.mean:.2f} ± {found.half_width:.2f}"

    against = {other: differences(other) for other in ("dot", "kd", "matched")}
    heads = ["variant", "n", "FLOPs", "time", "accuracy %", *(f"- {other} (p)" for other in against), "task", "distill"]
    rows = [heads, ["---"] * len(heads)]
    for name in runs:
        row = [name, str(len(runs[name])), f"{flops(problem, VARIANTS[name]):.2f}"]
        row += [f"{times[name]:.2f}" if name in times else "-", mean(name, "test_accuracy")]
        row += [changes.get(name, "") for changes in against.values()]
        rows.append([*row, mean(name, "train_task"), mean(name, "train_distill")])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost and the accuracy of cheaper forms of DOT.")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--only", default="", help="settings whose name starts so")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="names with commas between them")
    parser.add_argument("--out", type=Path, default=Path("runs/cheaper-than-exact"))
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--time", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    results, timing = args.out / "results.jsonl", args.out / "time.json"
    if args.check:
        return check(args.out)
    if args.time:
        timing.write_text(json.dumps(time_steps(), indent=2))
    times = json.loads(timing.read_text()) if timing.exists() else {}
    for setting, (recipe, overrides) in SETTINGS.items():
        if not setting.startswith(args.only):
            continue
        problem = Problem(recipe, overrides, args.out)
        lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        lines = [line for line in lines if line["setting"] == setting]
        for name in args.variants.split(","):
            done = {line["seed"] for line in lines if line["variant"] == name}
            missing = [seed for seed in range(args.seeds) if seed not in done]
            for first in range(0, len(missing), STACK):
                seeds = missing[first : first + STACK]
                students = Students([problem.student(seed) for seed in seeds])
                train(problem, VARIANTS[name], seeds, students)
                found = zip(seeds, problem.scores(students, len(seeds)), strict=True)
                new = [{"setting": setting, "variant": name, "seed": seed, **scores} for seed, scores in found]
                lines += new
                with results.open("a") as file:
                    file.writelines(json.dumps(line) + "\n" for line in new)
        sys.stdout.write(f"\n{setting}\n\n{table(problem, lines, times)}")


if __name__ == "__main__":
    main()
