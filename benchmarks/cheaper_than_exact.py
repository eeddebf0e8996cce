"""Can DOT be had for less than two backward passes? What the cheaper forms cost, and what they learn.

    python benchmarks/cheaper_than_exact.py [--seeds 32] [--only resnet] [--variants keep-4,half] [--out runs/cheaper]
    python benchmarks/cheaper_than_exact.py --check     # the equalities that this file rests on
    python benchmarks/cheaper_than_exact.py --time      # the steps, timed in turns; kept for the table

With s = v_task + v_distill, d = v_distill - v_task, Delta, mu, lambda and the gradients as in `dotkd.DOT`, DOT is

    s <- mu s + Delta d + g_sum  + lambda theta          g_sum  = g_distill + g_task = J^T (b + a)
    d <- mu d + Delta s + g_diff - lambda theta          g_diff = g_distill - g_task = J^T (b - a)
    theta <- theta - lr s                                (both right sides with the old s and d)

Both losses reach the network through the logits (N, C) alone: J is their Jacobian, a and b are the gradients of the
weighted losses at the logits, which cost nothing. Every variant takes g_sum exactly, in one backward pass, and makes
up g_diff, which enters by Delta only:

    g_diff ~ c g_sum + R,    R an estimate of J^T r,    r = (b - a) - c (b + a),

c = 0, or with `project` the number that makes |r| least. R is refreshed every k steps and kept, decayed or continued on
a line in between; or taken from a part of the batch, without bias; or left out. FLOPs by torch's counter. A part of the
batch costs what the table says only where samples do not meet in the network: through BatchNorm J^T r of a part
needs the whole batch, and is taken so for the accuracy; its time is that of two forward passes over parts.

The seeds of a setting are trained at once, in a stack, from the initial weights and on the batches of `dotkd compare`.
Started again it skips what is done. p-values are corrected by Holm over the rows of their column.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import stack_module_state
from torch.utils.flop_counter import FlopCounterMode

from dotkd import DOT, Config, data, losses, models
from dotkd.allocator import keep_freed_memory
from dotkd.bench.rounds import Conditions, timed_in_turns
from dotkd.evidence.statistics import estimate, paired_difference
from dotkd.models.mlp import MLP
from dotkd.models.resnet_small import BasicBlock, ResNet
from dotkd.optim import StreamSGD
from dotkd.schedule import learning_rate
from dotkd.trainer import teacher_run

STACK = 16  # seeds trained at once: more of them leave the processor's cache
MLP_KEYS = ["student=mlp", "student_options={}", "epochs=40"]
GROUP = "student_options={depth: 8, width: 4, norm: group}"
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "resnet lr 0.003": ("mnist1d", ["lr=0.003"]),
    "resnet lr 0.005": ("mnist1d", ["lr=0.005"]),
    "resnet lr 0.01": ("mnist1d", ["lr=0.01"]),
    "mlp lr 0.005": ("mnist1d", [*MLP_KEYS, "lr=0.005"]),
    "digits lr 0.001": ("digits", ["lr=0.001"]),
    "resnet group norm lr 0.003": ("mnist1d", ["lr=0.003", GROUP]),
}


@dataclass(frozen=True)
class Variant:
    """How g_diff is made up. every: steps between refreshes of R, None: no R. part: share of the batch in R. last: c
    and R from the last stage and the head, which need a short backward pass. exact: share of training with every = 1.
    sketch: kappa, g_sum and g_diff from one pass with J^T (b + a +- kappa r), the sign changing every step."""

    momentum: float = 0.9
    delta: float = 0.075
    matched: bool = False
    every: int | None = 1
    between: Literal["keep", "decay", "extrapolate"] = "keep"
    part: float = 1.0
    project: bool = False
    last: bool = False
    exact: tuple[float, float] = (0.0, 0.0)
    sketch: float = 0.0


VARIANTS: dict[str, Variant] = {
    "kd": Variant(delta=0.0, every=None),
    "matched": Variant(delta=0.0, every=None, matched=True),
    "dot": Variant(),
    "momentum 0.975": Variant(momentum=0.975, delta=0.0, every=None),
    **{f"keep {k}": Variant(every=k) for k in (2, 4, 8)},
    "decay 4": Variant(every=4, between="decay"),
    "extrapolate 4": Variant(every=4, between="extrapolate"),
    "half": Variant(part=0.5),
    "quarter": Variant(part=0.25),
    "project": Variant(every=None, project=True),
    "project keep 4": Variant(every=4, project=True),
    "project quarter": Variant(part=0.25, project=True),
    "last stage": Variant(every=None, last=True),
    "early half": Variant(every=None, project=True, exact=(0.0, 0.5)),
    "late half": Variant(every=None, project=True, exact=(0.5, 1.0)),
    "sketch": Variant(every=None, project=True, sketch=1.0),
}


class Students:
    """A stack of S equal models of this library, trained at once. Activations are (S, channels, N, length)."""

    def __init__(self, copies: Sequence[nn.Module]) -> None:
        self.frame = copies[0]
        self.params, self.buffers = stack_module_state(list(copies))

    def __call__(self, inputs: Tensor, *, training: bool) -> Tensor:
        """The logits (S, N, C) of inputs (S, N, ...)."""
        self.training = training
        x = inputs.flatten(2) if isinstance(self.frame, MLP) else inputs
        return self._run(self.frame, "", x.transpose(1, 2)).transpose(1, 2)

    def _run(self, module: nn.Module, name: str, x: Tensor) -> Tensor:
        def child(which: str, value: Tensor) -> Tensor:
            return self._run(module.get_submodule(which), f"{name}{which}.", value)

        def of(what: str) -> Tensor:  # (S, ...)
            return self.params[name + what]

        match module:
            case ResNet():
                return child("head", child("stages", child("stem", x)).mean(3))
            case MLP():
                return child("head", child("hidden", x))
            case BasicBlock():
                inner = child("norm1", child("conv1", x)).relu()
                return (child("shortcut", x) + child("norm2", child("conv2", inner))).relu()
            case nn.Sequential():
                for which, _ in module.named_children():
                    x = child(which, x)
                return x
            case nn.Linear():
                y = of("weight") @ x
                return y if module.bias is None else y + of("bias").unsqueeze(2)
            case nn.Conv1d():
                (size,), (stride,), padding = module.kernel_size, module.stride, int(module.padding[0])
                padded = F.pad(x, (padding, padding))
                end = padded.shape[3] - size + 1
                taps = torch.cat([padded[..., tap : end + tap : stride] for tap in range(size)], 1)
                weight = of("weight").transpose(2, 3).flatten(2)  # (S, out, taps x channels)
                return (weight @ taps.flatten(2)).unflatten(2, taps.shape[2:])
            case nn.BatchNorm1d():
                rows = x.reshape(1, x.shape[0] * x.shape[1], -1)
                kept = [self.buffers[name + what].view(-1) for what in ("running_mean", "running_var")]
                affine = [of(what).reshape(-1) for what in ("weight", "bias")]
                return F.batch_norm(rows, *kept, *affine, self.training, module.momentum or 0.0, module.eps).view(
                    x.shape
                )
            case nn.GroupNorm():
                groups = x.unflatten(1, (module.num_groups, -1))
                var, mean = torch.var_mean(groups, (2, 4), correction=0, keepdim=True)
                scaled = ((groups - mean) * (var + module.eps).rsqrt()).view(x.shape)
                return scaled * of("weight")[..., None, None] + of("bias")[..., None, None]
            case nn.ReLU() | nn.Identity():
                return x.relu() if isinstance(module, nn.ReLU) else x
            case _:
                raise TypeError(f"expected a module of resnet1d or mlp, got {type(module).__name__}")


class Trained:
    """theta, s and d of one variant, and its R. Every tensor has the seeds first, or none where there is one."""

    def __init__(self, variant: Variant, named: dict[str, Tensor], last: str) -> None:
        self.variant, self.theta = variant, list(named.values())
        self.late = [index for index, name in enumerate(named) if name.startswith((last, "head"))]
        self.s, self.d = ([torch.zeros_like(p) for p in self.theta] for _ in range(2))
        self.rest: list[list[Tensor]] = []  # R of the last refreshes, the newest last
        self.age = 0

    def gradients(self, logits: Tensor, of_part: Tensor, a: Tensor, b: Tensor, step: int, share: float) -> Any:
        """(g_sum, g_diff), lists. of_part: the logits of the first samples, for `part`; share: of training done."""
        v = self.variant
        total, c = a + b, torch.zeros(len(a), 1, 1, dtype=a.dtype)
        if v.project:
            c = ((b - a) * total).sum((1, 2), keepdim=True) / (total * total).sum((1, 2), keepdim=True)
        rest = (b - a) - c * total
        if v.sketch:
            sign = v.sketch if step % 2 else -v.sketch
            g_sum = torch.autograd.grad(logits, self.theta, total + sign * rest)
            return g_sum, [_per_seed(c + 1 / sign, g) * g for g in g_sum]
        refresh = v.exact[0] <= share < v.exact[1] or (v.every is not None and step % v.every == 0)
        again = refresh or v.last
        g_sum = torch.autograd.grad(logits, self.theta, total, retain_graph=again)
        if v.last:
            late = torch.autograd.grad(logits, [self.theta[i] for i in self.late], rest)
            pairs = [(g, g_sum[i]) for i, g in zip(self.late, late, strict=True)]
            products = [
                sum((g * h).reshape(len(a), -1).sum(1) for g, h in p) for p in (pairs, [(h, h) for _, h in pairs])
            ]
            c = products[0] / products[1]
            g_diff = [_per_seed(c, g) * g for g in g_sum]
            for i, g in zip(self.late, late, strict=True):
                g_diff[i] = g
            return g_sum, g_diff
        self.age += 1
        if refresh:
            rows = of_part.shape[1]
            cotangent = rest[:, :rows] * (rest.shape[1] / rows)
            self.rest, self.age = [*self.rest[-1:], list(torch.autograd.grad(of_part, self.theta, cotangent))], 0
        elif v.every is None:
            self.rest = []
        g_diff = [_per_seed(c, g) * g for g in g_sum] if v.project else [torch.zeros_like(g) for g in g_sum]
        for index, g in enumerate(g_diff):
            for factor, old in zip(self._factors(), reversed(self.rest), strict=False):
                g.add_(old[index], alpha=factor)
        return g_sum, g_diff

    def _factors(self) -> tuple[float, float]:
        """What the last R and the one before it count now."""
        if self.variant.between == "decay":
            return 0.5**self.age, 0.0
        if self.variant.between == "extrapolate" and len(self.rest) > 1 and self.variant.every:
            return 1 + self.age / self.variant.every, -self.age / self.variant.every
        return 1.0, 0.0

    @torch.no_grad()
    def update(self, g_sum: Sequence[Tensor], g_diff: Sequence[Tensor], *, lr: float, decay: float) -> None:
        v = self.variant
        for theta, s, d, total, difference in zip(self.theta, self.s, self.d, g_sum, g_diff, strict=True):
            before = s.clone()
            s.mul_(v.momentum).add_(d, alpha=v.delta).add_(total).add_(theta, alpha=decay)
            if v.delta:
                d.mul_(v.momentum).add_(before, alpha=v.delta).add_(difference).sub_(theta, alpha=decay)
            theta.sub_(s, alpha=lr)


def _per_seed(c: Tensor, like: Tensor) -> Tensor:
    return c.reshape(-1, *[1] * (like.dim() - 1))


class Problem:
    """The data, teacher and configuration of one setting."""

    def __init__(self, setting: str, out: Path, dtype: torch.dtype = torch.float32) -> None:
        recipe, overrides = SETTINGS[setting]
        self.config, self.dtype = Config.from_sources(recipe, [*overrides, "threads=1"]), dtype
        self.dataset = data.load(self.config.data, validation=self.config.validation)
        self.per_epoch = data.batch_count(self.dataset, "train", batch_size=self.config.batch_size, drop_last=True)
        teacher = self.model(self.config.teacher, self.config.teacher_options)
        models.load_weights(teacher, teacher_run(self.config, out / f"teacher-{recipe}"))
        teacher.eval()
        self.splits = {
            split: next(data.batches(self.dataset, split, batch_size=len(getattr(self.dataset, split).targets)))
            for split in ("train", "test")
        }
        with torch.no_grad():
            self.known = {split: teacher(batch.inputs) for split, batch in self.splits.items()}

    def model(self, name: str, options: Any) -> nn.Module:
        shape = self.dataset.input_shape
        return models.build(name, num_classes=self.dataset.num_classes, input_shape=shape, options=options)

    def student(self, seed: int) -> Any:
        torch.manual_seed(seed)
        return self.model(self.config.student, self.config.student_options).to(self.dtype)

    def batches(self, seeds: Sequence[int], epoch: int) -> Any:
        """(inputs, targets, teacher logits) of every step, the seeds stacked."""
        size = self.config.batch_size
        drawn = [
            data.batches(self.dataset, "train", batch_size=size, epoch=epoch, seed=seed, shuffle=True, drop_last=True)
            for seed in seeds
        ]
        for parts in zip(*drawn, strict=True):
            index = torch.stack([part.index for part in parts])
            inputs, targets = (torch.stack([getattr(part, key) for part in parts]) for key in ("inputs", "targets"))
            yield inputs.to(self.dtype), targets, self.known["train"][index].to(self.dtype)

    def weights(self, variant: Variant) -> tuple[float, float, float]:
        """Of the task loss, of the distillation loss, and the decay: as published, or as DOT ends up weighing them."""
        mu, delta = 0.9, VARIANTS["dot"].delta
        less, more = ((1 - mu) / (1 - mu + delta), (1 - mu) / (1 - mu - delta)) if variant.matched else (1.0, 1.0)
        return 0.1 * less, 0.9 * more, self.config.weight_decay * less

    def train(self, variant: Variant, seeds: Sequence[int], students: Students, most: int | None = None) -> None:
        """`most`: stop after so many steps."""
        trained = Trained(variant, students.params, self.student(0).feature_points[-1])
        task, distill, decay = self.weights(variant)
        total = self.config.epochs * self.per_epoch
        for step in range(most or total):
            if step % self.per_epoch == 0:
                batches = self.batches(seeds, step // self.per_epoch)
            inputs, targets, known = next(batches)
            logits = students(inputs, training=True)
            a, b = at_the_logits(logits, targets, known, task, distill)
            of_part = logits[:, : round(variant.part * logits.shape[1])]
            g_sum, g_diff = trained.gradients(logits, of_part, a, b, step, step / total)
            trained.update(g_sum, g_diff, lr=learning_rate(self.config, step, self.per_epoch), decay=decay)

    def scores(self, students: Students, seeds: Sequence[int]) -> list[dict[str, float | None]]:
        found: list[dict[str, float | None]] = [{} for _ in seeds]
        for split, batch in self.splits.items():
            with torch.no_grad():
                parts = batch.inputs.split(500)
                logits = torch.cat([students(x.expand(len(seeds), *x.shape), training=False) for x in parts], 1)
            for line, mine in zip(found, logits, strict=True):
                finite = bool(mine.isfinite().all())
                right = (mine.argmax(1) == batch.targets).double().mean().item()
                line[f"{split}_accuracy"] = 100 * right if finite else None
                line[f"{split}_task"] = F.cross_entropy(mine, batch.targets).item() if finite else None
                line[f"{split}_distill"] = losses.kd(mine, self.known[split]).item() if finite else None
        return found


def at_the_logits(logits: Tensor, targets: Tensor, known: Tensor, task: float, distill: float) -> tuple[Tensor, Tensor]:
    """a and b, (S, N, C): of each seed's weighted losses, which are means over its N samples."""
    leaf = logits.detach().requires_grad_()
    flat = leaf.flatten(0, 1)
    entropy = task * len(leaf) * F.cross_entropy(flat, targets.flatten())
    (a,) = torch.autograd.grad(entropy, leaf, retain_graph=True)
    (b,) = torch.autograd.grad(distill * len(leaf) * losses.kd(flat, known.flatten(0, 1)), leaf)
    return a, b


def flops(problem: Problem, variant: Variant) -> float:
    """Multiplications of a step over those of plain KD's."""
    student = problem.student(0)
    last = [p for name, p in student.named_parameters() if name.startswith((student.feature_points[-1], "head"))]

    def counted(wanted: Sequence[Tensor]) -> int:
        inputs = problem.splits["train"].inputs[: problem.config.batch_size].to(problem.dtype)
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


def check(out: Path) -> None:
    """In float64: the stack is the models, and s and d are the published optimizer; k = 1 is exact in every form."""
    seeds, most = (3, 5), 12
    for setting in SETTINGS:
        problem = Problem(setting, out, torch.float64)

        def trained(variant: Variant, problem: Problem = problem) -> dict[str, Tensor]:
            students = Students([problem.student(seed) for seed in seeds])
            problem.train(variant, seeds, students, most)
            return {**students.params, **students.buffers}

        ends = {name: trained(VARIANTS[name]) for name in ("kd", "matched", "dot")}
        worst = 0.0
        for name, end in ends.items():
            for place, seed in enumerate(seeds):
                student = problem.student(seed)
                task, distill, decay = problem.weights(VARIANTS[name])
                if name == "dot":
                    optimizer = DOT(student.parameters(), lr=1.0, weight_decay=decay)
                else:
                    optimizer = StreamSGD(student.parameters(), lr=1.0, momenta={"total": 0.9}, weight_decay=decay)
                batches = problem.batches([seed], 0)
                for step in range(most):
                    (inputs,), (targets,), (known,) = next(batches)
                    optimizer.param_groups[0]["lr"] = learning_rate(problem.config, step, problem.per_epoch)
                    logits = student(inputs)
                    parts = task * F.cross_entropy(logits, targets), distill * losses.kd(logits, known)
                    if name == "dot":
                        optimizer.backward(task=parts[0], distill=parts[1])
                    else:
                        optimizer.backward(total=parts[0] + parts[1])
                    optimizer.step()
                    optimizer.zero_grad()
                for key, value in student.state_dict().items():
                    if "tracked" not in key:
                        worst = max(worst, (value - end[key][place]).abs().max().item())
        forms = [
            Variant(project=True),
            Variant(between="extrapolate"),
            Variant(every=None, exact=(0.0, 1.0), project=True),
        ]
        for form in forms:
            pairs = zip(trained(form).values(), ends["dot"].values(), strict=True)
            worst = max(worst, *((x - y).abs().max().item() for x, y in pairs))
        sys.stdout.write(f"{setting}: largest difference after {most} steps {worst:.1e}\n")
        if not worst < 1e-12:
            sys.exit("expected less than 1e-12")


def time_steps() -> dict[str, float]:
    """Median ratios of each step to KD's: a larger student, one seed, CPU time in turns, 8 steps a turn."""
    found: dict[str, float] = {}
    conditions = Conditions(torch.device("cpu"), rounds=5)
    with conditions.held():
        inputs, targets, known = torch.randn(64, 3, 32, 32), torch.randint(100, (64,)), torch.randn(1, 64, 100)
        work = {name: _work(variant, inputs, targets, known) for name, variant in VARIANTS.items()}
        for name in VARIANTS:
            ours, other = timed_in_turns(work[name], work["kd"], conditions)
            found[name] = statistics.median(x / y for x, y in zip(ours, other, strict=True))
            sys.stderr.write(f"{name}: {found[name]:.3f}\n")
    return found


def _work(variant: Variant, inputs: Tensor, targets: Tensor, known: Tensor) -> Any:
    options = {"depth": 8, "width": 32}
    student: Any = models.build("resnet2d", num_classes=100, input_shape=(3, 32, 32), options=options)
    trained = Trained(variant, dict(student.named_parameters()), student.feature_points[-1])
    rows = round(variant.part * len(inputs))

    def work() -> None:
        for step in range(8):
            outputs = [student(x) for x in inputs.split([rows, len(inputs) - rows]) if len(x)]
            logits = torch.cat(outputs)[None] if len(outputs) > 1 else outputs[0][None]
            a, b = at_the_logits(logits, targets, known, 0.1, 0.9)
            trained.update(*trained.gradients(logits, outputs[0][None], a, b, step, step / 8), lr=1e-3, decay=5e-4)

    return work


def holm(p: dict[str, float]) -> dict[str, float]:
    """Holm's (1979) corrected p-values: the i-th smallest of m times m - i + 1, made to rise."""
    corrected, highest = {}, 0.0
    for place, name in enumerate(sorted(p, key=lambda name: p[name])):
        corrected[name] = highest = min(1.0, max(highest, (len(p) - place) * p[name]))
    return corrected


def table(problem: Problem, setting: str, lines: Sequence[dict[str, Any]], times: dict[str, float]) -> str:
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for line in lines:
        if line["setting"] == setting:
            runs.setdefault(line["variant"], {})[line["seed"]] = line

    def column(name: str, key: str) -> dict[int, float | None]:
        return {seed: line[key] for seed, line in runs.get(name, {}).items()}

    against = {
        other: {
            name: paired_difference(column(name, "test_accuracy"), column(other, "test_accuracy"))
            for name in VARIANTS
            if name != other and name in runs
        }
        for other in ("dot", "kd", "matched")
    }
    corrected = {
        other: holm({name: change.p for name, change in changes.items() if change.p is not None})
        for other, changes in against.items()
    }
    heads = ["variant", "FLOPs", "time", "test accuracy %", *(f"- {o} (p)" for o in against), "train task", "distill"]
    rows = [heads, ["---"] * len(heads)]
    for name, variant in VARIANTS.items():
        if name not in runs:
            continue
        score = estimate(list(column(name, "test_accuracy").values()))
        cells = [name, f"{flops(problem, variant):.2f}", f"{times[name]:.2f}" if times else "-"]
        cells.append(
            f"{score.mean:.2f} ± {score.half_width:.2f}" + f" [{score.diverged} diverged]" * bool(score.diverged)
        )
        for other, changes in against.items():
            change = changes.get(name)
            has = change is not None and change.mean is not None and change.p is not None
            cells.append(
                f"{change.mean:+.2f} ± {change.half_width:.2f} ({corrected[other][name]:.3f})" if has and change else ""
            )
        for key in ("train_task", "train_distill"):
            mean = estimate(list(column(name, key).values())).mean
            cells.append("-" if mean is None else f"{mean:.3g}")
        rows.append(cells)
    n = min(len(found) for found in runs.values())
    return f"\n{setting}, n = {n}\n\n" + "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
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
    for setting in (name for name in SETTINGS if name.startswith(args.only)):
        problem = Problem(setting, args.out)
        for name in args.variants.split(","):
            lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
            done = {line["seed"] for line in lines if (line["setting"], line["variant"]) == (setting, name)}
            missing = [seed for seed in range(args.seeds) if seed not in done]
            for seeds in (missing[first : first + STACK] for first in range(0, len(missing), STACK)):
                students = Students([problem.student(seed) for seed in seeds])
                problem.train(VARIANTS[name], seeds, students)
                with results.open("a") as file:
                    for seed, scores in zip(seeds, problem.scores(students, seeds), strict=True):
                        line = {"setting": setting, "variant": name, "seed": seed, **scores}
                        file.write(json.dumps(line) + "\n")
                        lines.append(line)
        times = json.loads(timing.read_text()) if timing.exists() else {}
        sys.stdout.write(table(problem, setting, lines, times))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
