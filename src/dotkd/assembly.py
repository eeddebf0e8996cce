"""Everything that a config names, built and held against each other before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dotkd import data, models
from dotkd.allocator import keep_freed_memory
from dotkd.config import Config
from dotkd.data import Augment, Dataset
from dotkd.distiller import logits_of
from dotkd.randomness import seed_everything
from dotkd.schedule import Plan, plan


class Parts(NamedTuple):
    """What a run is made of. ``average`` is the moving average of the student.

    ``teacher`` has its weights where ``teacher_weights`` names some; else it is still to be trained.
    """

    device: torch.device
    dataset: Dataset
    augment: Augment
    student: nn.Module
    teacher: nn.Module | None
    plan: Plan
    average: AveragedModel | None


def assemble(config: Config) -> Parts:
    """Build the parts; the student's initial weights depend on ``config.seed`` alone.

    With ``method: none`` there is a teacher only where ``teacher_weights`` names one, to measure against.

    Raises:
        ValueError, OSError: data, models, weights and device do not fit together, or are not there.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = _device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    dataset = data.load(config.data, validation=config.validation, image_size=config.image_size)
    augment: Augment = "crop-flip" if config.data.startswith("imagefolder:") else "none"
    if config.augment != "auto":
        augment = config.augment
    # What does not fit the data is refused at this call, before a teacher has been trained.
    data.batches(dataset, "train", batch_size=config.batch_size, drop_last=True, augment=augment)
    seed_everything(config.seed, device)
    student = build_model(config.student, config.student_options, dataset, device)
    if config.student_weights:
        models.load_weights(student, config.student_weights)
    teacher = None
    if config.method != "none" or config.teacher_weights:
        teacher = build_model(config.teacher, config.teacher_options, dataset, device)
        if config.teacher_weights:
            models.load_weights(teacher, config.teacher_weights)
    average = None
    if config.ema:
        average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
    return Parts(device, dataset, augment, student, teacher, plan(config, student.parameters()), average)


def build_model(spec: str, options: Mapping[str, object], dataset: Dataset, device: torch.device) -> nn.Module:
    """The model for a data set, in eval mode; raises ValueError where its logits are not (N, number of classes)."""
    classes, shape = dataset.num_classes, dataset.input_shape
    model = models.build(spec, num_classes=classes, input_shape=shape, options=options).to(device).eval()
    first = next(data.batches(dataset, "val", batch_size=2, device=device))
    with torch.no_grad():
        logits = logits_of(model(first.inputs))
    if logits.shape != (len(first.targets), classes):
        raise ValueError(
            f"expected {spec} to give logits of shape (N, {classes}) for {dataset.name}, got {tuple(logits.shape)}"
        )
    return model


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch sees no GPU: use device=cpu or device=auto")
    return torch.device(name)
