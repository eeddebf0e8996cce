"""Two gradients of one student: by this library's optimizers and by TorchJD, a library for gradients of several losses.

    python -m pip install --no-deps --target peer torchjd==0.18.0 --constraint constraints.txt
    PYTHONPATH=peer python benchmarks/torchjd_peer.py [--threads 1] [--rounds 9]

ResNet8x4, batch 64 of 32x32, cross-entropy and KD with the teacher's logits given; every side runs the forward pass and
ends with the gradient of each loss and their sum. Prints time and peak of tensor memory over those of two calls of
`torch.autograd.grad`, the least that exact gradients take; medians over rounds that run the sides in turns, by CPU time
with one thread. That all of them find the same gradients is checked first.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor
from torchjd.aggregation import Sum
from torchjd.autojac import backward, jac_to_grad, mtl_backward

from dotkd import DOT, losses, models
from dotkd.bench import Conditions, Quantity
from dotkd.bench.memory import peak_bytes
from dotkd.bench.rounds import timed_in_turns

CPU = torch.device("cpu")
BATCH, CLASSES, SHAPE = 64, 100, (3, 32, 32)

Gradients = dict[str, list[Tensor]]


class Student:
    """The same weights and batch for every side."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = models.build("resnet8x4", num_classes=CLASSES, input_shape=SHAPE)
        self.params = list(self.model.parameters())
        self.inputs, self.targets = torch.randn(BATCH, *SHAPE), torch.randint(CLASSES, (BATCH,))
        self.teacher_logits = torch.randn(BATCH, CLASSES)
        self.optimizer = DOT(self.params, lr=0.05)

    def losses(self) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.model(self.inputs)
        task = 0.1 * F.cross_entropy(logits, self.targets)
        return task, 0.9 * losses.kd(logits, self.teacher_logits, temperature=4.0), logits


def by_grad(student: Student) -> Gradients:
    task, distill, _ = student.losses()
    first = torch.autograd.grad(distill, student.params, retain_graph=True)
    second = torch.autograd.grad(task, student.params)
    return {"task": list(second), "distill": list(first), "sum": list(torch._foreach_add(first, second))}


def by_dot(student: Student) -> Gradients:
    task, distill, _ = student.losses()
    student.optimizer.zero_grad()
    student.optimizer.backward(task=task, distill=distill)
    return _streams(student)


def by_join(student: Student) -> Gradients:
    task, distill, _ = student.losses()
    student.optimizer.zero_grad()
    student.optimizer.join(task=task, distill=distill).backward()
    return _streams(student)


def by_torchjd(chunk: int | None) -> Callable[[Student], Gradients]:
    def gradients(student: Student) -> Gradients:
        task, distill, _ = student.losses()
        _forget(student)
        backward([task, distill], inputs=student.params, parallel_chunk_size=chunk)
        return _rows(student)

    return gradients


def by_mtl_backward(student: Student) -> Gradients:
    task, distill, logits = student.losses()
    _forget(student)
    mtl_backward([task, distill], features=logits, tasks_params=[[], []], shared_params=student.params)
    return _rows(student)


SIDES: dict[str, Callable[[Student], Gradients]] = {
    "torch.autograd.grad, twice": by_grad,
    "dotkd: optimizer.backward": by_dot,
    "dotkd: optimizer.join(...).backward": by_join,
    "TorchJD: backward, in parallel": by_torchjd(None),
    "TorchJD: backward, chunks of 1": by_torchjd(1),
    "TorchJD: mtl_backward from the logits": by_mtl_backward,
}


def _streams(student: Student) -> Gradients:
    of = student.optimizer.stream_grad
    found = {name: [of(p, name) for p in student.params] for name in ("task", "distill")}
    return {**found, "sum": [p.grad for p in student.params]}


def _forget(student: Student) -> None:
    for p in student.params:
        p.grad = None
        if hasattr(p, "jac"):
            del p.jac


def _rows(student: Student) -> Gradients:
    jacobians = [p.jac for p in student.params]
    jac_to_grad(student.params, Sum())
    return {
        "task": [jacobian[0] for jacobian in jacobians],
        "distill": [jacobian[1] for jacobian in jacobians],
        "sum": [p.grad for p in student.params],
    }


def refuse_disagreement() -> None:
    """Raise AssertionError where a side's gradients are not those of autograd, to rounding."""
    torch.set_default_dtype(torch.float64)
    expected = by_grad(Student())
    for name, side in SIDES.items():
        found = side(Student())
        for stream, grads in found.items():
            for mine, theirs in zip(grads, expected[stream], strict=True):
                error = float((mine - theirs).norm() / theirs.norm())
                assert error < 1e-10, f"{name}: {stream} is off by {error:.1e}"
    torch.set_default_dtype(torch.float32)


def _lived_through(side: Callable[[Student], Gradients]) -> tuple[Student, Gradients]:
    student = Student()
    return student, side(student)  # the gradients live to the end: they are what was asked for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    refuse_disagreement()
    conditions = Conditions(CPU, threads=args.threads, rounds=args.rounds)
    students = {name: Student() for name in SIDES}
    with conditions.held():
        seconds = timed_in_turns([lambda name=name: SIDES[name](students[name]) for name in SIDES], conditions)
        peaks = [peak_bytes(lambda side=side: _lived_through(side), CPU) for side in SIDES.values()]
    print(f"TorchJD {version('torchjd')}, torch {torch.__version__}, {args.threads} threads, by {conditions.clock}")
    print("| two gradients of ResNet8x4, batch 64 | time | IQR | n | ms | peak memory | MiB |")
    print("|---|---|---|---|---|---|---|")
    for name, spent, peak in zip(SIDES, seconds, peaks, strict=True):
        ratio = Quantity.of([mine / least for mine, least in zip(spent, seconds[0], strict=True)])
        print(
            f"| {name} | {ratio.median:.3f} | {ratio.interquartile or 0:.3f} | {ratio.n} | "
            f"{1000 * Quantity.of(spent).median:.0f} | {peak / peaks[0]:.3f} | {peak / 2**20:.0f} |"
        )


if __name__ == "__main__":
    main()
