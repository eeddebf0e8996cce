"""What the tests of the training loop share: data sets and models of a few numbers, stops, and a literal loop.

The models are named to the trainer as `tiny_runs:NAME`.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from dotkd import Config, Trainer, data, models
from dotkd.checkpoint import load_latest
from dotkd.trainer import Interrupted
from reference import dot_adamw_step

CLASSES, FEATURES = 3, 8
TRAIN, VAL, TEST = 96, 24, 48
BATCH, STEPS = 24, 4  # steps in an epoch
TIMING = ("images_per_second", "seconds", "metrics")  # `metrics` is a position in bytes, which their digits move

# --- data and configurations


def _labels(count: int) -> np.ndarray:
    return np.arange(count) % CLASSES


def vectors(folder: Path, *, validation: bool = True) -> str:
    """Three noisy clusters in 8 dimensions; `validation` False leaves the trainer to hold some out."""
    random = np.random.RandomState(0)
    centres = np.random.RandomState(1).randn(CLASSES, FEATURES)
    arrays: dict[str, np.ndarray] = {}
    for name, count in (("train", TRAIN), ("val", VAL), ("test", TEST))[:: 1 if validation else 2]:
        noise = 0.8 * random.randn(count, FEATURES)
        arrays |= {f"x_{name}": (centres[_labels(count)] + noise).astype(np.float32), f"y_{name}": _labels(count)}
    return _stored(folder / "vectors.npz", arrays)


def images(folder: Path) -> str:
    """Pictures (3, 8, 8) of noise around a brightness that tells the class."""
    random = np.random.RandomState(0)
    arrays: dict[str, np.ndarray] = {}
    for name, count in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        noise = random.randint(0, 120, (count, 3, 8, 8)) + 50 * _labels(count)[:, None, None, None]
        arrays |= {f"x_{name}": noise.astype(np.uint8), f"y_{name}": _labels(count)}
    return _stored(folder / "images.npz", arrays)


def _stored(path: Path, arrays: dict[str, np.ndarray]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return f"arrays:{path}"


def given_teacher(folder: Path, **options: object) -> dict[str, object]:
    """The keys of a config for an untrained perceptron with batch norm whose statistics have moved, as a teacher."""
    options = {"width": 16, "depth": 1, **options}
    torch.manual_seed(7)
    model = models.build("mlp", num_classes=CLASSES, input_shape=(FEATURES,), options=options)
    model(torch.randn(64, FEATURES) + 0.5)
    save_file(model.state_dict(), folder / "teacher.safetensors")
    weights = str(folder / "teacher.safetensors")
    return {"teacher": "mlp", "teacher_options": options, "teacher_weights": weights}


def tiny(source: str, **changes: object) -> Config:
    values = {"data": source, "teacher": "mlp", "student": "mlp", "student_options": {"width": 8}, "epochs": 2}
    values |= {"batch_size": BATCH, "threads": 1, "log_every": 2, "lr": 0.05, "device": "cpu"}
    return Config(**{**values, **changes})


# --- models


class Net(nn.Module):
    """A linear layer, whatever is put in between, and a head; hooks find it by its type."""

    def __init__(self, features: int, *between: nn.Module, classes: int = CLASSES) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(features, 8), *between)
        self.head = nn.Linear(8, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.inner(inputs))


def smooth(num_classes, input_shape):
    """No batch norm and no corners, so that rounding stays small."""
    return Net(math.prod(input_shape), nn.Tanh(), classes=num_classes)


def dropout(num_classes, input_shape):
    """Draws from torch's generator in every step, and keeps batch statistics."""
    return Net(math.prod(input_shape), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), classes=num_classes)


class Double(Net):
    def __init__(self, features: int, *between: nn.Module, classes: int = CLASSES) -> None:
        super().__init__(features, *between, classes=classes)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.double())


def double(num_classes, input_shape):
    return Double(math.prod(input_shape), nn.BatchNorm1d(8), nn.Tanh(), classes=num_classes)


def double_smooth(num_classes, input_shape):
    return Double(math.prod(input_shape), nn.Tanh(), classes=num_classes)


class Faulty(Net):
    """Not finite in its training steps `first` to `last` (from 1)."""

    def __init__(self, features: int, first: int, last: int) -> None:
        super().__init__(features, nn.Tanh())
        self.first, self.last, self.calls = first, last, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += self.training
        bad = self.training and self.first <= self.calls <= self.last
        return super().forward(inputs) * (math.nan if bad else 1.0)


def faulty(input_shape, first=1, last=10**9):
    return Faulty(math.prod(input_shape), first, last)


class NaNTeacher(nn.Module):
    """Not finite for samples whose first number lies above `above`, and for whole batches of `size` samples."""

    def __init__(self, features: int, above: float, size: int) -> None:
        super().__init__()
        self.head, self.above, self.size = nn.Linear(features, CLASSES), above, size

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        bad = (flat[:, :1] > self.above) | (len(flat) == self.size)
        return self.head(flat).masked_fill(bad, math.nan)


def nan_teacher(input_shape, above=math.inf, size=-1):
    return NaNTeacher(math.prod(input_shape), above, size)


def too_wide(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes + 2))


# --- stops


@contextmanager
def before_each_step(act: Callable[[int, Tensor], None]) -> Generator[None]:
    """Calls `act(count, inputs)` before the 1st, 2nd, ... pass of any Net in training mode."""
    count = 0

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal count
        if isinstance(module, Net) and module.training:
            count += 1
            act(count, args[0])

    handle = register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def signal_in(step: int, number: signal.Signals) -> Callable[[int, Tensor], None]:
    return lambda count, _: os.kill(os.getpid(), number) if count == step else None


def run_with_stops(config: Config, out: Path, *stops: int, number: signal.Signals = signal.SIGTERM) -> dict:
    """Each stop is a step counted from where the run (or its last resumption) began."""
    trainer = Trainer(config, out)
    for stop in stops:
        with before_each_step(signal_in(stop, number)):
            try:
                trainer.fit()
            except Interrupted:
                trainer = Trainer.resume(out)
            else:
                raise AssertionError(f"the signal in step {stop} did not stop the run")
    return trainer.fit()


# --- what a run left


def records(out: Path) -> list[dict]:
    """metrics.jsonl without what a clock measured."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def plain(value: object) -> object:
    """Nested state as something that == compares bit for bit, without what a clock measured."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items() if key not in TIMING}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    return repr(value)


def everything(out: Path) -> dict[str, object]:
    """Weights, the whole state of the last checkpoint, and the records, comparable by ==."""
    last = load_latest(out / "checkpoints")
    weights = {path.name: plain(load_file(path)) for path in sorted(out.glob("*.safetensors"))}
    return {**weights, "step": last.step, "state": plain(last.state), "records": records(out)}


# --- the literal loop


def literal_run(
    config: Config, student: nn.Module, teacher: nn.Module, rate: Callable[[int], float]
) -> Iterator[dict[str, Tensor]]:
    """Trains `student` by torch's own optimizers on the two gradients; yields its state after each step.

    rate: the learning rate of step 0, 1, ...
    """
    dataset, params = data.load(config.data, validation=config.validation), list(student.parameters())
    mu, delta, task_weight, distill_weight = config.momentum, config.delta, config.task_weight, config.distill_weight
    if config.trainer == "sgd-matched":
        task_weight, distill_weight = (
            task_weight * (1 - mu) / (1 - mu + delta),
            distill_weight * (1 - mu) / (1 - mu - delta),
        )
    update, step = _literal_update(config, params), 0
    student.train()
    for epoch in range(config.epochs):
        for batch in data.batches(
            dataset, "train", batch_size=config.batch_size, epoch=epoch, seed=config.seed, shuffle=True, drop_last=True
        ):
            logits, known = student(batch.inputs), teacher(batch.inputs).detach()
            task = F.cross_entropy(logits.float(), batch.targets, label_smoothing=config.label_smoothing)
            t = config.temperature
            soft = F.softmax(known.double() / t, 1)
            distill = t * t * F.kl_div(F.log_softmax(logits.double() / t, 1), soft, reduction="batchmean")
            by_task = torch.autograd.grad(task_weight * task, params, retain_graph=True)
            by_distill = torch.autograd.grad(distill_weight * distill, params)
            norm = torch.stack([(a + b).norm() for a, b in zip(by_task, by_distill, strict=True)]).norm()
            factor = min(1.0, config.clip_norm / (float(norm) + 1e-6)) if config.clip_norm else 1.0
            update(rate(step), [factor * g for g in by_task], [factor * g for g in by_distill])
            step += 1
            yield {name: value.detach().clone() for name, value in student.state_dict().items()}


def _literal_update(config: Config, params: list[nn.Parameter]) -> Callable[[float, list[Tensor], list[Tensor]], None]:
    mu, delta, decay = config.momentum, config.delta, config.weight_decay
    share = {m: (1 - m) / (1 - mu) if config.trainer == "dot-normalized" else 1.0 for m in (mu - delta, mu + delta)}
    state: list[dict] = [{} for _ in params]

    def sgd(momentum: float, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            params, lr=1.0, momentum=momentum, weight_decay=weight_decay, nesterov=config.nesterov, foreach=False
        )

    def run(optimizer: torch.optim.Optimizer, lr: float, grads: list[Tensor]) -> None:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()

    def summed(optimizer: torch.optim.Optimizer) -> Callable[[float, list[Tensor], list[Tensor]], None]:
        return lambda lr, task, distill: run(optimizer, lr, [g + h for g, h in zip(task, distill, strict=True)])

    match config.trainer:
        case "sgd":
            return summed(sgd(mu, decay))
        case "sgd-matched":
            return summed(sgd(mu, decay * (1 - mu) / (1 - mu + delta)))
        case "adamw":
            kwargs = {"betas": (mu, config.beta2), "eps": config.eps, "weight_decay": decay, "foreach": False}
            return summed(torch.optim.AdamW(params, **kwargs))
        case "dot" | "dot-normalized":
            first, second = sgd(mu - delta, decay), sgd(mu + delta, 0.0)

            def two(lr: float, task: list[Tensor], distill: list[Tensor]) -> None:
                run(first, lr * share[mu - delta], task)
                run(second, lr * share[mu + delta], distill)

            return two

    @torch.no_grad()
    def dot_adamw(lr: float, task: list[Tensor], distill: list[Tensor]) -> None:
        rest = {"betas": (mu, config.beta2), "delta": delta, "eps": config.eps, "weight_decay": decay}
        for p, g, h, own in zip(params, task, distill, state, strict=True):
            p.copy_(dot_adamw_step(p, g, h, own, lr=lr, **rest))

    return dot_adamw
