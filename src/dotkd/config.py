"""The configuration of a run: typed, frozen, and checked as a whole, so that every mistake is reported at once.

A value is settled by the last of these that names it: the default, the recipe, the YAML file, the overrides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from dotkd import config_rules, config_sources
from dotkd.config_contradictions import contradictions

Options = dict[str, JsonValue]


class ConfigError(ValueError):
    """A configuration that cannot be run; its text has one line for each thing wrong."""

    @property
    def problems(self) -> tuple[str, ...]:
        """The lines of the text."""
        return tuple(str(self).splitlines())


class Key(NamedTuple):
    """One key of `Config` as a user should know it; `rule` and `default` in words."""

    name: str
    rule: str
    default: str
    meaning: str


class Config(BaseModel):
    """What a run does. Every key has a default; `describe` lists keys, rules, defaults and meanings."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    # data
    data: str = Field(default="mnist1d", description="a data set by name, with :PATH where it is your own")
    image_size: int | None = Field(default=None, ge=1, description="side in pixels that pictures are brought to")
    validation: float = Field(
        default=0.1, ge=0, lt=0.5, description="fraction held out of train to select on; 0: nothing is selected"
    )
    augment: Literal["auto", "none", "crop-flip", "rotate-flip", "resized-crop-flip"] = Field(
        default="auto", description="changes to training pictures; auto: as is usual for the data"
    )
    views: int | None = Field(
        default=None, ge=1, description="distinct views of a training picture; null: as many as its augmentation makes"
    )
    mix: Literal["none", "mixup", "cutmix"] = Field(default="none", description="training samples mixed in pairs")
    mix_alpha: float = Field(default=1.0, gt=0, description="both parameters of the Beta distribution of the share")

    # teacher
    teacher: str = Field(
        default="resnet1d",
        description="a model of dotkd, timm:NAME, torchvision:NAME, transformers:NAME, module:attr for your own, "
        "or self: the moving average of the student",
    )
    teacher_options: Options = Field(default_factory=dict, description="options of the teacher model")
    teacher_weights: str | None = Field(
        default=None, description="weights file or run directory; null: the teacher is trained first"
    )
    teacher_epochs: int | None = Field(
        default=None,
        ge=0,
        description="epochs of its training; null: as epochs; 0: it is taken as it comes, pretrained",
    )
    teacher_lr: float | None = Field(default=None, gt=0, description="learning rate of its training; null: as lr")
    teacher_input: Options = Field(
        default_factory=dict,
        description="what it was trained on, where that differs from the student's: image_size, mean, std, classes",
    )
    teacher_learns: tuple[str, ...] = Field(
        default=(), strict=False, description="modules of the teacher that go on learning, from its own task loss"
    )
    acclimation_weight: float = Field(default=1.0, gt=0, description="weight of that loss, with teacher_learns")
    more_teachers: tuple[Options, ...] = Field(
        default=(), strict=False, description="further teachers: model, weights, options, input and share of each"
    )
    teacher_choice: Literal["mean", "best"] = Field(
        default="mean", description="several teachers: weighted mean of logits, or the best one for each sample"
    )

    cache: str | None = Field(
        default=None, description="folder that keeps what the teacher says of each view; made if it is not there"
    )
    cache_top_k: int | None = Field(
        default=None, ge=1, description="classes of a record of the cache, the rest sampled; null: all of them"
    )

    # student
    student: str = Field(default="resnet1d", description="a model, named as the teacher is")
    student_options: Options = Field(default_factory=dict, description="options of the student model")
    student_weights: str | None = Field(default=None, description="weights file or run directory to start from")

    # objective
    method: str = Field(
        default="kd", description="a distillation method, module:attr for your own, or none: task loss alone"
    )
    method_options: Options = Field(default_factory=dict, description="options of the method")
    student_features: tuple[str, ...] = Field(
        default=(), strict=False, description="modules whose outputs a feature method sees; []: those of the family"
    )
    teacher_features: tuple[str, ...] = Field(default=(), strict=False, description="likewise, of the teacher")
    temperature: float | None = Field(
        default=None, gt=0, description="divides the logits in the distillation loss; null: as published"
    )
    task_weight: float | None = Field(default=None, ge=0, description="weight of the task loss; null: as published")
    distill_weight: float | None = Field(
        default=None, ge=0, description="weight of the distillation loss; null: as published"
    )
    distill_warmup_epochs: float | None = Field(
        default=None, ge=0, description="epochs of linear rise of distill_weight from 0; null: as published"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="of the task loss")

    # optimizer
    trainer: Literal["dot", "sgd", "dot-normalized", "sgd-matched", "adamw", "dot-adamw", "deepkd"] = Field(
        default="dot",
        description="optimizer; -normalized and -matched are the controls for DOT's hidden reweighting, deepkd has "
        "three momenta",
    )
    lr: float = Field(default=0.05, gt=0, description="learning rate at its highest")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum; beta1 of the AdamW forms")
    delta: float = Field(
        default=0.075, ge=0, lt=1, description="DOT: task momentum - delta, distillation momentum + delta"
    )
    weight_decay: float = Field(default=5e-4, ge=0, description="decay of the weights")
    nesterov: bool = Field(default=False, description="Nesterov's momentum, SGD forms")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="decay of the second moment, AdamW forms")
    eps: float = Field(default=1e-8, gt=0, description="added to the denominator, AdamW forms")

    # schedule
    epochs: int = Field(default=40, ge=1, description="passes over the training split")
    batch_size: int = Field(default=64, ge=1, description="samples to one step of the optimizer")
    accumulate: int = Field(default=1, ge=1, description="micro-batches that a batch is computed in")
    schedule: Literal["cosine", "step", "constant"] = Field(default="cosine", description="course of the learning rate")
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), strict=False, description="epochs after which lr is multiplied by gamma, schedule step"
    )
    gamma: float = Field(default=0.1, gt=0, le=1, description="factor at each milestone, schedule step")
    warmup_epochs: float = Field(default=0.0, ge=0, description="epochs, or a part of one, of linear rise from 0 to lr")
    clip_norm: float | None = Field(default=None, gt=0, description="largest norm of the summed gradient")
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of a moving average of the student's weights"
    )

    # machine and output
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="of the forward and backward passes; auto: bf16 on a GPU that has it, else fp32"
    )
    compile: bool | Literal["auto"] = Field(
        default="auto", description="compile the step, or with methods that look inside the student; auto: no"
    )
    channels_last: bool | Literal["auto"] = Field(
        default="auto", description="layout of pictures in memory; auto: on a GPU in 16 bits"
    )
    low_memory: bool = Field(
        default=False, description="gradients are added to the momentum buffers as they arise and never kept, SGD forms"
    )
    activation_checkpointing: bool = Field(
        default=False, description="the student's blocks are computed again in each backward pass, not kept"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp", description="in several processes, weights are kept whole in each (ddp) or spread (fsdp)"
    )
    sync_batch_norm: bool = Field(
        default=False, description="batch norm over the whole batch where several processes share it; GPUs only"
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads; null: torch's default")
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="of initialisation, order and augmentation; not of the splits"
    )
    max_skips: int = Field(
        default=50, ge=1, description="steps skipped in a row (gradient not finite) that end the run"
    )
    checkpoint_every: int | None = Field(default=None, ge=1, description="steps between checkpoints; null: every epoch")
    log_every: int = Field(
        default=50, ge=1, description="steps between lines of metrics.jsonl, about: they divide an epoch evenly"
    )
    diagnostics: bool = Field(
        default=True, description="measure the streams of each recorded step: norms, alignment, signal against noise"
    )
    tensorboard: bool = Field(default=False, description="write the metrics for TensorBoard too")

    if not TYPE_CHECKING:  # a type checker is to see the keys, not **values

        def __init__(self, **values: Any) -> None:
            wrong: dict[str, str] = {}
            faulty: set[str] = set()
            probe: Config = self
            try:
                super().__init__(**values)
            except ValidationError as error:
                wrong = config_rules.field_problems(error, type(self).model_fields)
                # Rules between keys are still checked, wherever the keys themselves are in order.
                faulty |= {name.partition(".")[0] for name in wrong}
                fields = type(self).model_fields
                probe = self.model_construct(**{k: v for k, v in values.items() if k in fields and k not in faulty})
            between = [text for keys, text in contradictions(probe) if not faulty & keys]
            if wrong or between:
                raise ConfigError("\n".join([*wrong.values(), *between]))

    @classmethod
    def from_sources(cls, source: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
        """The configuration of a recipe (by name) or a YAML file, changed by `key=value` overrides.

        A YAML file may say which recipe it changes: `recipe: NAME`. Values are YAML 1.2, so that 1e-3 is a number and
        `no` is text; a key that takes text takes the override's text as it stands. `student_options.width=8` sets one
        entry of a mapping, `student_options={width: 8}` replaces the whole. Of two overrides of a key the last counts.

        Raises ConfigError naming every problem.

        >>> Config.from_sources("mnist1d", ["lr=1e-2", "student_options.width=4"]).lr
        0.01
        >>> Config.from_sources("mnist1d", ["sed=1", "lr=-1"])
        Traceback (most recent call last):
        dotkd.config.ConfigError: sed: unknown key, got 1; did you mean seed?
        lr: expected a number > 0, got -1
        """
        values, problems, complete = config_sources.read(source, overrides, cls.model_fields)
        if complete:  # else what the keys amount to is unknown
            try:
                config = cls(**values)
            except ConfigError as error:
                problems += error.problems
            else:
                if not problems:
                    return config
        raise ConfigError("\n".join(dict.fromkeys(problems)))

    def replace(self, **changes: object) -> Config:
        """A copy with some keys changed, checked as any other (pydantic's `model_copy` checks nothing)."""
        values: dict[str, Any] = {**self.model_dump(), **changes}
        return Config(**values)

    def to_yaml(self) -> str:
        """Every key, as YAML that `from_sources` reads back to an equal configuration."""
        return config_sources.dump({**self.model_dump(), "milestones": list(self.milestones)})


def describe() -> list[Key]:
    """Every key in order, for `--help` and the documentation."""
    keys: list[Key] = []
    for name, field in Config.model_fields.items():
        default = field.get_default(call_default_factory=True)
        text = default if isinstance(default, str) else config_rules.shown(default)
        expected = config_rules.rule(field.annotation, field.metadata)
        keys.append(Key(name, expected, text, field.description or ""))
    return keys
