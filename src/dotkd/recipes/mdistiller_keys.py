"""The keys of mdistiller's configuration with their defaults, and its names of data, models and methods."""

from __future__ import annotations

from typing import Any, NamedTuple

# Section -> key -> default; of a missing key the experiment has this value.
DEFAULTS: dict[str, Any] = {
    "EXPERIMENT": {"PROJECT": "distill", "NAME": "", "TAG": "default"},
    "DATASET": {"TYPE": "cifar100", "NUM_WORKERS": 2, "TEST": {"BATCH_SIZE": 64}},
    "DISTILLER": {"TYPE": "NONE", "TEACHER": "ResNet50", "STUDENT": "resnet32"},
    "SOLVER": {
        "TRAINER": "base",
        "BATCH_SIZE": 64,
        "EPOCHS": 240,
        "LR": 0.05,
        "LR_DECAY_STAGES": [150, 180, 210],
        "LR_DECAY_RATE": 0.1,
        "WEIGHT_DECAY": 0.0001,
        "MOMENTUM": 0.9,
        "TYPE": "SGD",
        "DOT": {"DELTA": 0.075},
    },
    "LOG": {"TENSORBOARD_FREQ": 500, "SAVE_CHECKPOINT_FREQ": 40, "PREFIX": "./output", "WANDB": True},
    "KD": {"TEMPERATURE": 4, "LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9}},
    "AT": {"P": 2, "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1000.0}},
    "RKD": {
        "DISTANCE_WEIGHT": 25,
        "ANGLE_WEIGHT": 50,
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1.0},
        "PDIST": {"EPSILON": 1e-12, "SQUARED": False},
    },
    "FITNET": {"HINT_LAYER": 2, "INPUT_SIZE": (32, 32), "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 100.0}},
    "KDSVD": {"K": 1, "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1.0}},
    "OFD": {"LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 0.001}, "CONNECTOR": {"KERNEL_SIZE": 1}},
    "NST": {"LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 50.0}},
    "PKT": {"LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 30000.0}},
    "SP": {"LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 3000.0}},
    "VID": {
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1.0},
        "EPS": 1e-5,
        "INIT_PRED_VAR": 5.0,
        "INPUT_SIZE": (32, 32),
    },
    "CRD": {
        "MODE": "exact",
        "FEAT": {"DIM": 128, "STUDENT_DIM": 256, "TEACHER_DIM": 256},
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 0.8},
        "NCE": {"K": 16384, "MOMENTUM": 0.5, "TEMPERATURE": 0.07},
    },
    "REVIEWKD": {
        "CE_WEIGHT": 1.0,
        "REVIEWKD_WEIGHT": 1.0,
        "WARMUP_EPOCHS": 20,
        "SHAPES": [1, 8, 16, 32],
        "OUT_SHAPES": [1, 8, 16, 32],
        "IN_CHANNELS": [64, 128, 256, 256],
        "OUT_CHANNELS": [64, 128, 256, 256],
        "MAX_MID_CHANNEL": 512,
        "STU_PREACT": False,
    },
    "DKD": {"CE_WEIGHT": 1.0, "ALPHA": 1.0, "BETA": 8.0, "T": 4.0, "WARMUP": 20},
}


class Unused(NamedTuple):
    """A key that needs no counterpart, and why."""

    why: str


class Same(NamedTuple):
    """A key that can only be what it is here."""

    value: object
    why: str


class After(NamedTuple):
    """A number that is counted from 1 there and from 0 here; why: what 0 is there."""

    key: str
    why: str

    def count(self, value: object) -> int:
        """The number here; raises ValueError for one that is none, or that is 0 there."""
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"expected a whole number >= 1 ({self.why}), got {value}")
        return value - 1


Target = str | Unused | Same | After


class Method(NamedTuple):
    """name: of `dotkd.methods.METHODS`. keys: what becomes of each key of the section."""

    name: str
    keys: dict[str, Target]


class Data(NamedTuple):
    """A data set of mdistiller.

    name: as in `data`. augment: what mdistiller does to it. students, teachers: its names of models -> ours.
    implied: `key=value` of how the teacher came about. pretrained: whether the teacher comes with its weights.
    """

    name: str
    augment: str
    students: dict[str, str]
    teachers: dict[str, str]
    implied: tuple[str, ...]
    pretrained: bool


NO_MEANING: dict[str, Unused] = {
    **dict.fromkeys(
        ("EXPERIMENT.PROJECT", "EXPERIMENT.NAME", "EXPERIMENT.TAG", "LOG.PREFIX"),
        Unused("no meaning here: --out names the run folder"),
    ),
    "DATASET.NUM_WORKERS": Unused("no meaning here: batches are made without workers"),
    "DATASET.TEST.BATCH_SIZE": Unused("no meaning here: no result depends on it"),
    "LOG.TENSORBOARD_FREQ": Unused("no meaning here: tensorboard=true, log_every"),
    "LOG.SAVE_CHECKPOINT_FREQ": Unused("no meaning here: a checkpoint after every epoch, or checkpoint_every"),
    "LOG.WANDB": Unused("no meaning here: metrics.jsonl, tensorboard=true"),
}

TRAINERS = {"base": "sgd", "crd": "sgd", "dot": "dot", "crd_dot": "dot"}

_FOUND = Unused("no meaning here: found from the models")
_WEIGHTS: dict[str, Target] = {"LOSS.CE_WEIGHT": "task_weight", "LOSS.FEAT_WEIGHT": "distill_weight"}

METHODS: dict[str, Method] = {
    "KD": Method(
        "kd", {"TEMPERATURE": "temperature", "LOSS.CE_WEIGHT": "task_weight", "LOSS.KD_WEIGHT": "distill_weight"}
    ),
    "AT": Method("at", {"P": "method_options.p", **_WEIGHTS}),
    "RKD": Method(
        "rkd",
        {
            "DISTANCE_WEIGHT": "method_options.distance_weight",
            "ANGLE_WEIGHT": "method_options.angle_weight",
            **_WEIGHTS,
            "PDIST.EPSILON": Unused("no meaning here: distances of zero have no gradient"),
            "PDIST.SQUARED": Same(False, "distances are not squared"),
        },
    ),
    "FITNET": Method(
        "fitnet", {"HINT_LAYER": After("method_options.hint", "0 is the stem"), "INPUT_SIZE": _FOUND, **_WEIGHTS}
    ),
    "KDSVD": Method("kdsvd", {"K": "method_options.k", **_WEIGHTS}),
    "OFD": Method("ofd", {**_WEIGHTS, "CONNECTOR.KERNEL_SIZE": Same(1, "the connector is a pointwise convolution")}),
    "NST": Method("nst", _WEIGHTS),
    "PKT": Method("pkt", _WEIGHTS),
    "SP": Method("sp", _WEIGHTS),
    "VID": Method(
        "vid",
        {
            **_WEIGHTS,
            "EPS": "method_options.min_variance",
            "INIT_PRED_VAR": "method_options.initial_variance",
            "INPUT_SIZE": _FOUND,
        },
    ),
    "CRD": Method(
        "crd",
        {
            "MODE": "method_options.positives",
            "FEAT.DIM": "method_options.dim",
            "FEAT.STUDENT_DIM": _FOUND,
            "FEAT.TEACHER_DIM": _FOUND,
            **_WEIGHTS,
            "NCE.K": "method_options.negatives",
            "NCE.MOMENTUM": "method_options.momentum",
            "NCE.TEMPERATURE": "method_options.tau",
        },
    ),
    "REVIEWKD": Method(
        "reviewkd",
        {
            "CE_WEIGHT": "task_weight",
            "REVIEWKD_WEIGHT": "distill_weight",
            "WARMUP_EPOCHS": "distill_warmup_epochs",
            "SHAPES": _FOUND,
            "OUT_SHAPES": _FOUND,
            "IN_CHANNELS": _FOUND,
            "OUT_CHANNELS": _FOUND,
            "MAX_MID_CHANNEL": Unused("no meaning: mdistiller's code does not read it"),
            "STU_PREACT": "method_options.preactivated",
        },
    ),
    "DKD": Method(
        "dkd",
        {
            "CE_WEIGHT": "task_weight",
            "ALPHA": "method_options.alpha",
            "BETA": "method_options.beta",
            "T": "temperature",
            "WARMUP": "distill_warmup_epochs",
        },
    ),
}

_SHARED = {"ResNet18": "resnet18_small", "ShuffleV2": "shufflenet_v2"}
_ALIKE = (
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet8x4", "resnet32x4"),
    *("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "vgg8", "vgg11", "vgg13", "vgg16", "vgg19"),
)
_CIFAR = (
    {name: name for name in _ALIKE}
    | _SHARED
    | {"ResNet50": "resnet50_small", "MobileNetV2": "mobilenet_v2_cifar", "ShuffleV1": "shufflenet_v1"}
)
_TINY = _SHARED | {"MobileNetV2": "mobilenet_v2_tiny"}
_TORCHVISION = {name: f"torchvision:{name.lower()}" for name in ("ResNet18", "ResNet34", "ResNet50", "ResNet101")}

DATA: dict[str, Data] = {
    # The teachers on CIFAR-100 were trained with this learning rate, whatever the student's is.
    "cifar100": Data("cifar100", "crop-flip", _CIFAR, _CIFAR, ("teacher_lr=0.05",), pretrained=False),
    "tiny_imagenet": Data("tiny-imagenet:PATH", "rotate-flip", _TINY, _TINY, (), pretrained=False),
    "imagenet": Data(
        "imagenet:PATH",
        "resized-crop-flip",
        {
            "ResNet18": "resnet18",
            "ResNet34": "resnet34",
            "ResNet50": "resnet50",
            "ResNet101": "torchvision:resnet101",
            "MobileNetV1": "mobilenet_v1",
        },
        _TORCHVISION,
        ("teacher_options={weights: IMAGENET1K_V1}", "teacher_epochs=0"),
        pretrained=True,
    ),
}
