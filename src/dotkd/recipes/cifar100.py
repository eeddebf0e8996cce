"""CIFAR-100, as in the DOT paper (Zhao et al. 2023, arXiv 2307.08436), with the settings of its published code.

Batch 64, 240 epochs, learning rate 0.05 (0.01 for ShuffleNet) times 0.1 after 150, 180 and 210, weight decay 5e-4; KD
at T = 4 with weights 0.1 and 0.9; Delta 0.075. All of the training split is trained on. Published accuracies are those
of the best epoch on the test split, which `summary.json` calls `best_of_test`; what we report is the last epoch.

Teachers are trained as those that the paper loads (Tian et al. 2020, arXiv 1910.10699): the same schedule from 0.05,
whatever the student's learning rate.

The paper's study of Delta is one command for each of its values, with one teacher for all:

    dotkd train cifar100-resnet32x4
    dotkd compare cifar100-resnet32x4-resnet8x4-kd-dot delta=0.05 --trainers sgd,dot \\
        teacher_weights=runs/cifar100-resnet32x4-sgd-seed0 --out runs/delta-0.05
"""

from __future__ import annotations

from dotkd.config import Config
from dotkd.recipes.row import row, teacher

_KD = Config(
    data="cifar100",
    validation=0.0,
    augment="crop-flip",
    teacher="resnet32x4",
    teacher_lr=0.05,
    student="resnet8x4",
    method="kd",
    trainer="dot",
    lr=0.05,
    momentum=0.9,
    delta=0.075,
    weight_decay=5e-4,
    epochs=240,
    batch_size=64,
    schedule="step",
    milestones=(150, 180, 210),
)
_VGG = _KD.replace(teacher="vgg13", student="vgg8")
# Scikit-learn's digits: 8 x 8 pixels, 22 batches of 64 an epoch; smaller models of the same families.
_DIGITS = {"data": "digits", "augment": "none", "teacher": "resnet8x4"}
_VGG_DIGITS = {**_DIGITS, "teacher": "vgg11"}

RECIPES = {
    **teacher("cifar100-resnet32x4", _KD, 79.42, _DIGITS),
    **teacher("cifar100-vgg13", _VGG, 74.64, _VGG_DIGITS),
    **row(
        "cifar100-resnet32x4-resnet8x4",
        _KD,
        paper=(73.33, 75.12),
        dkd={"method_options": {"beta": 8.0}},
        crd={},
        mini={**_DIGITS, "student": "resnet8"},
    ),
    **row(
        "cifar100-vgg13-vgg8",
        _VGG,
        paper=(72.98, 73.77),
        dkd={"method_options": {"beta": 6.0}},
        crd={},
        mini=_VGG_DIGITS,
    ),
    **row(
        "cifar100-resnet32x4-shufflenetv2",
        _KD.replace(student="shufflenet_v2", lr=0.01),
        paper=(74.45, 75.55),
        dkd={"method_options": {"beta": 8.0}},
        crd={},
        mini=_DIGITS,
    ),
}
