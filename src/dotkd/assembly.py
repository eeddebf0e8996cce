"""Everything that a config names, built and held against each other before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dotkd import data, distributed, models
from dotkd.activation_checkpointing import checkpoint_activations
from dotkd.allocator import keep_freed_memory
from dotkd.averaging import MovingAverage
from dotkd.config import Config
from dotkd.data import Augment, Dataset, Mix
from dotkd.data.views import Views
from dotkd.distiller import Distiller
from dotkd.execution import Execution
from dotkd.methods.activations import logits_of
from dotkd.methods.objective import Objective
from dotkd.randomness import seed_everything
from dotkd.schedule import Plan, plan
from dotkd.teachers import AdaptedTeacher, Ensemble

# What `augment: auto` stands for; data that is not here is left as it is.
USUAL_AUGMENT: dict[str, Augment] = {
    "imagefolder": "crop-flip",
    "hf": "crop-flip",
    "cifar10": "crop-flip",
    "cifar100": "crop-flip",
    "tiny-imagenet": "rotate-flip",
    "imagenet": "resized-crop-flip",
}


class Parts(NamedTuple):
    """What a run is made of. ``average`` is the moving average of the student, ``example`` inputs of two samples.

    ``teacher`` is the model to be trained first, None where the weights of all teachers are given.
    """

    device: torch.device
    execution: Execution
    dataset: Dataset
    batches: Batching
    student: nn.Module
    teacher: nn.Module | None
    distiller: Distiller | None
    plan: Plan
    average: MovingAverage | None
    example: Tensor


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
    execution = Execution.of(config, device, dataset.input_shape)
    batching = Batching.of(config)
    # What does not fit the data is refused at this call, before a teacher has been trained.
    first = next(batching.batches(dataset, device=device))
    seed_everything(config.seed, device)
    student = build_model(config.student, config.student_options, dataset, device)
    if config.sync_batch_norm:
        student = _synchronised(student, device)
    if config.student_weights:
        models.load_weights(student, config.student_weights)
    execution.laid_out(student)
    average = MovingAverage(student, decay=config.ema) if config.ema else None
    untrained, distiller = None, None
    if config.method != "none" or config.teacher_weights:
        untrained, distiller = _distiller(config, dataset, student, average, first.inputs[:2])
        if config.sync_batch_norm and distiller.objective.module is not None:
            distiller.objective.module = _synchronised(distiller.objective.module, device)
        if distiller.teacher is not None:
            execution.laid_out(distiller.teacher)
    if config.activation_checkpointing:
        checkpoint_activations(student)
    optimizing = plan(config, trained_parameters(config, student, distiller))
    example = first.inputs[:2]
    return Parts(device, execution, dataset, batching, student, untrained, distiller, optimizing, average, example)


def trained_parameters(config: Config, student: nn.Module, distiller: Distiller | None) -> Iterable[nn.Parameter]:
    """What the optimizer is given."""
    return distiller.parameters() if distiller and config.method != "none" else student.parameters()


class Batching(NamedTuple):
    """How the training split is cut into batches, and what is done to them."""

    size: int
    seed: int
    augment: Augment
    mix: Mix
    mix_alpha: float
    strong: bool
    views: int | None

    @classmethod
    def of(cls, config: Config) -> Batching:
        """As the config says."""
        augment = config.augment
        if augment == "auto":
            augment = USUAL_AUGMENT.get(config.data.partition(":")[0], "none")
        strong = config.method != "none" and Objective(config.method, options=config.method_options).wants_strong
        return cls(config.batch_size, config.seed, augment, config.mix, config.mix_alpha, strong, config.views)

    @property
    def view_count(self) -> int | None:
        """How many views of a sample there are; None where every epoch has its own (see `dotkd.data.views`)."""
        return Views(self.augment, self.mix, self.mix_alpha, self.strong, self.views, self.seed).count

    def batches(
        self, dataset: Dataset, *, device: torch.device, epoch: int = 0, start: int = 0
    ) -> Iterator[data.Batch]:
        """The batches of an epoch from ``start`` on; of each, this process's part."""
        return data.batches(
            dataset,
            "train",
            batch_size=self.size,
            epoch=epoch,
            seed=self.seed,
            start=start,
            shuffle=True,
            drop_last=True,
            augment=self.augment,
            mix=self.mix,
            mix_alpha=self.mix_alpha,
            strong=self.strong,
            views=self.views,
            part=(distributed.rank(), distributed.size()),
            device=device,
        )


def _distiller(
    config: Config, dataset: Dataset, student: nn.Module, average: MovingAverage | None, example: Tensor
) -> tuple[nn.Module | None, Distiller]:
    """The teacher that is still to be trained, if any, and the distiller with all teachers."""
    method = "kd" if config.method == "none" else config.method
    untrained, teacher = None, None
    if config.teacher == "self":
        assert average is not None
        teacher = average.module
    elif not Objective(method, options={} if config.method == "none" else config.method_options).teacherless:
        teacher = build_teacher(config.teacher, config.teacher_options, config.teacher_input, dataset, example.device)
        inner = getattr(teacher, "adapted", teacher)
        if config.teacher_weights:
            models.load_weights(inner, config.teacher_weights)
        elif config.teacher_epochs == 0:
            again = build_teacher(config.teacher, config.teacher_options, config.teacher_input, dataset, example.device)
            _refuse_untrained(config.teacher, inner, getattr(again, "adapted", again))
        else:
            untrained = inner
        if config.more_teachers:
            teacher = _ensemble(config, teacher, dataset, example.device)
    plain = config.method == "none"
    return untrained, Distiller(
        student,
        teacher,
        method,
        temperature=config.temperature,
        label_smoothing=config.label_smoothing,
        options={} if plain else config.method_options,
        student_features=config.student_features,
        teacher_features=config.teacher_features,
        example=example,
        targets=dataset.train.targets,
        teacher_learns=() if plain else config.teacher_learns,
        acclimation_weight=config.acclimation_weight,
        checks=False,  # data and teacher are checked beforehand; in the loop it would make the host wait
    )


def _ensemble(config: Config, first: nn.Module, dataset: Dataset, device: torch.device) -> Ensemble:
    teachers: list[nn.Module] = [first]
    shares = [1.0]
    for entry in config.more_teachers:
        more = cast("dict[str, Any]", entry)
        model = build_teacher(
            more.get("model", config.teacher), more.get("options", {}), more.get("input", {}), dataset, device
        )
        models.load_weights(getattr(model, "adapted", model), more["weights"])
        teachers.append(model)
        shares.append(more.get("share", 1.0))
    weighted = any("share" in entry for entry in config.more_teachers)
    return Ensemble(teachers, weights=shares if weighted else None, choose=config.teacher_choice)


def _refuse_untrained(spec: str, model: nn.Module, again: nn.Module) -> None:
    """Raise ValueError where some weights are drawn anew each time the model is built, or are all alike."""
    for (name, first), second in zip(model.named_parameters(), again.parameters(), strict=True):
        if not torch.equal(first, second) or (first.dim() > 1 and bool((first == first.flatten()[0]).all())):
            raise ValueError(
                f"teacher_epochs 0 takes the teacher as it comes, but `{name}` of {spec} is not trained: give "
                "teacher_epochs to train it (where only its classifier is new, to fine-tune it), or teacher_weights"
            )


def build_teacher(
    spec: str, options: Mapping[str, object], taken: Mapping[str, Any], dataset: Dataset, device: torch.device
) -> nn.Module:
    """A teacher for the student's batches; ``taken`` says what it takes where that is something else."""
    if not taken:
        return build_model(spec, options, dataset, device)
    side = taken.get("image_size")
    shape = dataset.input_shape if side is None else (dataset.input_shape[0], side, side)
    chosen = taken.get("classes")
    classes = taken.get("num_classes", dataset.num_classes)
    model = models.build(spec, num_classes=classes, input_shape=shape, options=options)
    return AdaptedTeacher(
        model.to(device).eval(),
        image_size=side,
        mean=taken.get("mean"),
        std=taken.get("std"),
        data_mean=dataset.mean.tolist(),
        data_std=dataset.std.tolist(),
        classes=chosen,
    ).to(device)


def build_model(spec: str, options: Mapping[str, object], dataset: Dataset, device: torch.device) -> nn.Module:
    """The model for a data set, in eval mode; raises ValueError where its logits are not (N, number of classes)."""
    classes, shape = dataset.num_classes, dataset.input_shape
    model = models.build(spec, num_classes=classes, input_shape=shape, options=options).to(device).eval()
    first = next(data.batches(dataset, "test", batch_size=2, device=device))
    with torch.no_grad():
        logits = logits_of(model(first.inputs))
    if logits.shape != (len(first.targets), classes):
        raise ValueError(
            f"expected {spec} to give logits of shape (N, {classes}) for {dataset.name}, got {tuple(logits.shape)}"
        )
    return model


def _synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with batch norm over the batches of all processes; alone, as it is.

    What hooks the layers has to come later: they are replaced.
    """
    if device.type == "cpu":
        raise ValueError("expected a GPU for sync_batch_norm, torch has none on the CPU: got device cpu")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if distributed.size() > 1 else model


def _device(name: str) -> torch.device:
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch sees no GPU: use device=cpu or device=auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if distributed.size() > 1 and name != "cpu":
        if name != "cuda":
            raise ValueError(f"expected device auto, cuda or cpu in several processes, a GPU for each, got {name!r}")
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)
