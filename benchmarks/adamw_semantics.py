"""Which AdamW should DOT become? The semantics of DOTAdamW against the two that were rejected, and plain AdamW.

    python benchmarks/adamw_semantics.py [--seeds 8] [--epochs 20] [--lrs 0.001,0.003,0.01]

An MLP learns MNIST-1D from a ResNet; the same seeds, batches and initial weights for every variant. Prints the mean
test accuracy with its 95 % interval, and the paired difference to plain AdamW.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from dotkd import Config, Distiller, data, models
from dotkd.distiller import logits_of
from dotkd.optim import DOTAdamW, StreamAdamW
from dotkd.trainer import teacher_run

CONFIG = Config(teacher_options={"width": 32, "depth": 8}, student="mlp", teacher_epochs=20, teacher_lr=0.1, threads=1)


class SecondMomentPerStream(DOTAdamW):
    """Each stream divided by the root of its own second moment."""

    def _update(self, group: dict[str, Any], found: Mapping[torch.device, Tensor]) -> None:
        for p in group["params"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])
            for name, grad in self._gradients.of.get(p, {}).items():
                keep = 1 - found[p.device]
                (moment,), (weight,) = self._average([p], f"moment_{name}", [grad], self._beta1s(group)[name], keep)
                (square,), (scale,) = self._average([p], f"square_{name}", [grad * grad], group["betas"][1], keep)
                p.addcdiv_(moment / weight, (square / scale).sqrt() + group["eps"], value=-group["lr"])


class SumsInsteadOfAverages(DOTAdamW):
    """DOT's hidden weights carried over: stream s enters times (1 - beta1) / (1 - beta_s)."""

    def backward(self, **losses: Tensor) -> None:
        group = self.param_groups[0]
        rest = 1 - group["betas"][0]
        super().backward(**{name: loss * rest / (1 - self._beta1s(group)[name]) for name, loss in losses.items()})


VARIANTS = {
    "AdamW": lambda params, lr: StreamAdamW(params, beta1s={"task": 0.9, "distill": 0.9}, lr=lr),
    "DOTAdamW": lambda params, lr: DOTAdamW(params, lr=lr),
    "second moment per stream": lambda params, lr: SecondMomentPerStream(params, lr=lr),
    "sums instead of averages": lambda params, lr: SumsInsteadOfAverages(params, lr=lr),
}


def accuracy(job: tuple[str, float, int, int, str]) -> float:
    """Test accuracy in percent of one student."""
    variant, lr, seed, epochs, teacher_path = job
    torch.set_num_threads(1)
    dataset = data.load("mnist1d")
    shape = {"num_classes": dataset.num_classes, "input_shape": dataset.input_shape}
    teacher = models.build("resnet1d", **shape, options=CONFIG.teacher_options)
    models.load_weights(teacher, teacher_path)
    torch.manual_seed(seed)
    student = models.build("mlp", **shape)
    optimizer = VARIANTS[variant](student.parameters(), lr)
    distiller = Distiller(student, teacher)
    everything = torch.cat([b.inputs for b in data.batches(dataset, "train", batch_size=4096)])
    known = distiller.teacher_logits(everything)
    per_epoch = data.batch_count(dataset, "train", batch_size=64, drop_last=True)
    for epoch in range(epochs):
        student.train()
        for number, batch in enumerate(
            data.batches(dataset, "train", batch_size=64, epoch=epoch, seed=seed, shuffle=True, drop_last=True)
        ):
            share = (epoch * per_epoch + number) / (epochs * per_epoch)
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + np.cos(np.pi * share))
            task, distill, _ = distiller(batch.inputs, batch.targets, known[batch.index])
            optimizer.backward(task=0.1 * task, distill=0.9 * distill)
            optimizer.step()
            optimizer.zero_grad()
    student.eval()
    with torch.no_grad():
        (test,) = data.batches(dataset, "test", batch_size=4096)
        return 100 * float((logits_of(student(test.inputs)).argmax(1) == test.targets).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lrs", default="0.001,0.003,0.01")
    args = parser.parse_args()
    lrs = [float(lr) for lr in args.lrs.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        teacher = str(teacher_run(CONFIG, Path(folder) / "teacher"))
        jobs = list(product(VARIANTS, lrs, range(args.seeds), [args.epochs], [teacher]))
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            results = dict(zip(jobs, pool.map(accuracy, jobs), strict=True))
    for lr in lrs:
        table = {v: np.array([results[v, lr, s, args.epochs, teacher] for s in range(args.seeds)]) for v in VARIANTS}
        for variant, values in table.items():
            half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
            line = f"lr {lr:g}  {variant:26s} {values.mean():6.2f} +- {half:.2f}  n={len(values)}"
            if variant != "AdamW" and len(values) > 1:
                difference = values - table["AdamW"]
                line += f"  {difference.mean():+.2f}, p = {stats.ttest_1samp(difference, 0).pvalue:.3f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
