"""What the tests of the training loop share: data sets, models and teachers of a few numbers, and ways to stop a run.

The models are named to the trainer as `tiny_runs:NAME`.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from dotkd import Config, Trainer, models
from dotkd.checkpoint import load_latest
from dotkd.methods.activations import Activations, Anatomy
from dotkd.trainer import Interrupted

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


def trained_teacher(folder: Path) -> dict[str, object]:
    """The keys of a config for a teacher that knows the classes of `vectors`."""
    given = given_teacher(folder)
    changes = {
        "student_options": given["teacher_options"],
        "method": "none",
        "trainer": "adamw",
        "epochs": 8,
        "lr": 0.02,
    }
    Trainer(tiny(vectors(folder), **changes), folder / "teacher").fit()
    return {**given, "teacher_weights": str(folder / "teacher")}


def tiny(source: str, **changes: object) -> Config:
    values = {"data": source, "teacher": "mlp", "student": "mlp", "student_options": {"width": 8}, "epochs": 2}
    values |= {"batch_size": BATCH, "threads": 1, "log_every": 2, "lr": 0.05, "device": "cpu"}
    return Config(**{**values, **changes})


def vector_run(folder: Path) -> Config:
    """Dropout, batch norm, an average, a warm-up, known teacher logits."""
    changes = {"student": "tiny_runs:dropout", "student_options": {}, "ema": 0.8, "warmup_epochs": 0.5}
    return tiny(vectors(folder), epochs=3, trainer="dot", **changes, **given_teacher(folder))


def pictures_run(home: Path) -> Config:
    """Small convolutional models, the teacher trained already, an average of the student."""
    config = tiny(images(home), trainer="dot", teacher="tiny_runs:small", student="tiny_runs:small")
    config = config.replace(student_options={}, augment="crop-flip", epochs=1, ema=0.8, teacher_epochs=1)
    config = config.replace(student_features=("body",), teacher_features=("body",))
    Trainer(config, home / "pictures").fit()
    return config.replace(teacher_weights=str(home / "pictures" / "teacher"), lr=0.01)


def image_run(folder: Path) -> Config:
    """Augmented views, a teacher trained first and asked at every step, micro-batches, AdamW, fp16 and its scale."""
    changes = {"student": "tiny_runs:dropout", "student_options": {}, "teacher": "tiny_runs:dropout", "accumulate": 2}
    changes |= {"augment": "crop-flip", "trainer": "dot-adamw", "lr": 0.01, "precision": "fp16", "teacher_epochs": 1}
    return tiny(images(folder), epochs=3, **changes)


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


def pretrained(num_classes, input_shape, fresh_head=False):
    """As a library makes a model with its weights loaded; with `fresh_head` for another number of classes."""
    model = Net(math.prod(input_shape), nn.Tanh(), classes=num_classes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not (fresh_head and name.startswith("head")):
                p.copy_(torch.randn(p.shape, generator=generator))
    return model


class Double(Net):
    def __init__(self, features: int, *between: nn.Module, classes: int = CLASSES) -> None:
        super().__init__(features, *between, classes=classes)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.double())


class Coarse(Net):
    """Its logits are quarters, which float16 holds exactly."""

    def forward(self, inputs: Tensor) -> Tensor:
        return (16 * super().forward(inputs)).round() / 4


def coarse(num_classes, input_shape):
    return Coarse(math.prod(input_shape), nn.Tanh(), classes=num_classes)


def double(num_classes, input_shape):
    return Double(math.prod(input_shape), nn.BatchNorm1d(8), nn.Tanh(), classes=num_classes)


def double_smooth(num_classes, input_shape):
    return Double(math.prod(input_shape), nn.Tanh(), classes=num_classes)


class DoubleHint(nn.Module):
    """A projector in float64 between the embeddings, and a tanh so that all of it is bent."""

    needs = ("embedding",)

    def __init__(self, student: Anatomy, teacher: Anatomy) -> None:
        super().__init__()
        self.map = nn.Linear(student.embedding, teacher.embedding).double()

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        return (self.map(student.embedding).tanh() - teacher.embedding).square().mean()


class Faulty(Net):
    """Not finite in its training steps `first` to `last` (from 1); of several processes, in number `rank` alone."""

    def __init__(self, features: int, first: int, last: int, rank: int | None) -> None:
        super().__init__(features, nn.Tanh())
        self.first, self.last, self.calls = first, last, 0
        self.well = rank is not None and os.environ.get("RANK", str(rank)) != str(rank)

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += self.training
        bad = self.training and self.first <= self.calls <= self.last and not self.well
        return super().forward(inputs) * (math.nan if bad else 1.0)


def faulty(input_shape, first=1, last=10**9, rank=None):
    return Faulty(math.prod(input_shape), first, last, rank)


class FaultyInside(nn.Module):
    """What goes through it in training step `step` (from 1) becomes not finite."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.calls = step, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += self.training
        return inputs * (math.inf if self.training and self.calls == self.step else 1.0)


def faulty_inside(input_shape, step):
    """The fault is met by batch norm, which keeps statistics of it."""
    return Net(math.prod(input_shape), FaultyInside(step), nn.BatchNorm1d(8), nn.ReLU())


class Signalled(Net):
    """In its training step `step` (from 1) process `rank` of several is sent a signal, before any restart."""

    def __init__(self, features: int, step: int, number: int, rank: int) -> None:
        super().__init__(features, nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.step, self.number, self.rank, self.calls = step, number, rank, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += self.training
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" and os.environ["RANK"] == str(self.rank)
        if self.training and first and self.calls == self.step:
            os.kill(os.getpid(), self.number)
        return super().forward(inputs)


def signalled(input_shape, step, number, rank):
    return Signalled(math.prod(input_shape), step, number, rank)


class Small(Net):
    """No strided 1x1 convolution, see `dotkd.execution`."""

    def __init__(self, channels: int) -> None:
        super().__init__(32)
        layers = [nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1)]
        self.body, self.pool = nn.Sequential(*layers, nn.ReLU()), nn.AdaptiveAvgPool2d(2)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(self.pool(self.body(inputs)))


def small(input_shape):
    return Small(input_shape[0])


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


def linear(num_classes, input_shape):
    return nn.Linear(math.prod(input_shape), num_classes)


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
    def act(count: int, _: Tensor) -> None:
        if count == step:
            # Else the signal would end pytest.
            assert signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler), "nobody waits for it"
            os.kill(os.getpid(), number)

    return act


class Died(BaseException):
    """Stands for a process that is killed: nothing is saved."""


def die_in(step: int) -> Callable[[int, Tensor], None]:
    def act(count: int, inputs: Tensor) -> None:
        if count == step:
            raise Died

    return act


def stopped_at(step: int, config: Config, out: Path) -> list[Path]:
    """Stops a run in its `step`-th step; returns the checkpoints it left, the oldest first."""
    with before_each_step(signal_in(step, signal.SIGTERM)), suppress(Interrupted):
        Trainer(config, out).fit()
        raise AssertionError(f"the signal in step {step} did not stop the run")
    return sorted((out / "checkpoints").iterdir())


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
