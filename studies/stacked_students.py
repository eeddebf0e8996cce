"""Small problems with a fixed teacher, on which many seeds are trained at once.

A student of this library is run as S copies in one pass: convolutions and linear layers as batched matrix products, one
of them a seed, which on a CPU takes a fraction of the time of S separate networks of a few channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import stack_module_state

from dotkd import Config, data, losses, models, schedule
from dotkd.models.mlp import MLP
from dotkd.models.resnet_small import BasicBlock, ResNet
from dotkd.optim import StreamOptimizer
from dotkd.trainer import teacher_run


class Students:
    """S equal models, resnet1d or mlp with batch norm. Activations inside are (S, channels, N[, length])."""

    def __init__(self, copies: Sequence[nn.Module]) -> None:
        self.frame = copies[0]
        self.params, self.buffers = stack_module_state(list(copies))
        self._training = True

    def __call__(self, inputs: Tensor, *, training: bool = True) -> Tensor:
        """The logits (S, N, C) of inputs (S, N, ...)."""
        self._training = training
        x = inputs.flatten(2) if isinstance(self.frame, MLP) else inputs
        return self._run(self.frame, "", x.transpose(1, 2)).transpose(1, 2)

    def _run(self, module: nn.Module, name: str, x: Tensor) -> Tensor:
        def child(which: str, value: Tensor) -> Tensor:
            return self._run(module.get_submodule(which), f"{name}{which}.", value)

        def of(what: str) -> Tensor:
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
                return y + of("bias").unsqueeze(2) if name + "bias" in self.params else y
            case nn.Conv1d():
                (size,), (stride,), padding = module.kernel_size, module.stride, int(module.padding[0])
                padded = F.pad(x, (padding, padding))
                end = padded.shape[3] - size + 1
                taps = torch.cat([padded[..., tap : end + tap : stride] for tap in range(size)], 1)
                weight = of("weight").transpose(2, 3).flatten(2)  # (S, out, taps x channels)
                return (weight @ taps.flatten(2)).unflatten(2, taps.shape[2:])
            case nn.BatchNorm1d():
                rows = x.reshape(1, x.shape[0] * x.shape[1], -1)  # every channel of every seed is one channel
                mean, var = (self.buffers[name + what].view(-1) for what in ("running_mean", "running_var"))
                scale, shift, momentum = of("weight").reshape(-1), of("bias").reshape(-1), module.momentum or 0.0
                y = F.batch_norm(rows, mean, var, scale, shift, self._training, momentum, module.eps)
                return y.view(x.shape)
            case nn.ReLU():
                return x.relu()
            case nn.Identity():
                return x
            case _:
                raise TypeError(f"expected a module of resnet1d or mlp with batch norm, got {type(module).__name__}")


class Problem:
    """Data, teacher and configuration: a recipe, changed by `overrides`. The teacher is trained once a recipe."""

    def __init__(self, recipe: str, overrides: Sequence[str], out: Path, dtype: torch.dtype = torch.float32) -> None:
        self.config, self.dtype = Config.from_sources(recipe, [*overrides, "threads=1"]), dtype
        self.temperature = self.config.temperature or 4.0  # KD's published one
        self.dataset = data.load(self.config.data, validation=self.config.validation)
        self.per_epoch = data.batch_count(self.dataset, "train", batch_size=self.config.batch_size, drop_last=True)
        teacher = self._model(self.config.teacher, self.config.teacher_options)
        models.load_weights(teacher, teacher_run(self.config, out / f"teacher-{recipe}"))
        teacher.eval()
        self._splits = {
            "train": next(data.batches(self.dataset, "train", batch_size=len(self.dataset.train.targets))),
            "test": next(data.batches(self.dataset, "test", batch_size=len(self.dataset.test.targets))),
        }
        with torch.no_grad():
            self._known = {split: teacher(batch.inputs) for split, batch in self._splits.items()}

    def student(self, seed: int) -> Any:
        """As `dotkd compare` starts it with that seed."""
        torch.manual_seed(seed)
        return self._model(self.config.student, self.config.student_options).to(self.dtype)

    def _model(self, name: str, options: Any) -> nn.Module:
        shape = self.dataset.input_shape
        return models.build(name, num_classes=self.dataset.num_classes, input_shape=shape, options=options)

    def batches(self, seeds: Sequence[int], epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs (S, N, ...), targets (S, N) and teacher logits (S, N, C) of every step, in `dotkd compare`'s order."""
        size = self.config.batch_size
        drawn = [
            data.batches(self.dataset, "train", batch_size=size, epoch=epoch, seed=seed, shuffle=True, drop_last=True)
            for seed in seeds
        ]
        for parts in zip(*drawn, strict=True):
            index = torch.stack([part.index for part in parts])
            inputs, targets = (
                torch.stack([part.inputs for part in parts]),
                torch.stack([part.targets for part in parts]),
            )
            yield inputs.to(self.dtype), targets, self._known["train"][index].to(self.dtype)

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.config.epochs * self.per_epoch

    def training(self, seeds: Sequence[int], most: int = 0) -> Iterator[tuple[int, float, tuple[Tensor, ...]]]:
        """Every step with its learning rate and its batch, to the end or the first `most` > 0."""
        batches = self.batches(seeds, 0)
        for step in range(most or self.steps):
            if step and step % self.per_epoch == 0:
                batches = self.batches(seeds, step // self.per_epoch)
            yield step, schedule.learning_rate(self.config, step, self.per_epoch), next(batches)

    def literal(
        self, optimizer_of: Callable[[Any], StreamOptimizer], task: float, distill: float, seed: int, most: int
    ) -> dict[str, Tensor]:
        """The state of one seed after `most` steps, by an optimizer of the library and a loop as anybody writes it."""
        student = self.student(seed)
        optimizer = optimizer_of(student.parameters())
        for _, lr, ((inputs,), (targets,), (known,)) in self.training([seed], most):
            optimizer.param_groups[0]["lr"] = lr
            logits = student(inputs)
            entropy = task * F.cross_entropy(logits, targets)
            divergence = distill * losses.kd(logits, known, temperature=self.temperature)
            if len(optimizer.streams) > 1:
                optimizer.backward(task=entropy, distill=divergence)
            else:
                optimizer.backward(total=entropy + divergence)
            optimizer.step()
            optimizer.zero_grad()
        return student.state_dict()

    def scores(self, students: Students, count: int) -> list[dict[str, float | None]]:
        """Accuracy in percent and unweighted losses of each of `count` students on both splits, in eval mode.

        None where a student's logits are not finite.
        """
        found: list[dict[str, float | None]] = [{} for _ in range(count)]
        for split, batch in self._splits.items():
            with torch.no_grad():
                parts = batch.inputs.split(500)
                logits = torch.cat([students(x.expand(count, *x.shape), training=False) for x in parts], 1)
            for line, mine in zip(found, logits, strict=True):
                finite = bool(mine.isfinite().all())
                right = (mine.argmax(1) == batch.targets).double().mean().item()
                distill = losses.kd(mine, self._known[split], temperature=self.temperature).item()
                line[f"{split}_accuracy"] = 100 * right if finite else None
                line[f"{split}_task"] = F.cross_entropy(mine, batch.targets).item() if finite else None
                line[f"{split}_distill"] = distill if finite else None
        return found
