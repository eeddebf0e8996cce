"""Tiny-ImageNet, as in the DOT paper (Zhao et al. 2023, arXiv 2307.08436), with the settings of its published code.

Batch 256, 200 epochs, learning rate 0.2 times 0.1 after 60, 120 and 160, weight decay 5e-4; KD at T = 4 with weights
0.1 and 0.9; Delta 0.075; pictures are turned by up to 20 degrees and mirrored. How the teacher was trained is not
published: here by the student's own schedule. For DKD and CRD no settings are published: here those for CIFAR-100.
"""

from __future__ import annotations

from dotkd.config import Config
from dotkd.recipes.row import row, teacher

_KD = Config(
    data="tiny-imagenet:PATH",
    validation=0.0,
    augment="rotate-flip",
    teacher="resnet18_small",
    student="mobilenet_v2_tiny",
    method="kd",
    trainer="dot",
    lr=0.2,
    momentum=0.9,
    delta=0.075,
    weight_decay=5e-4,
    epochs=200,
    batch_size=256,
    schedule="step",
    milestones=(60, 120, 160),
)
# Scikit-learn's digits are few: a batch of 32 and the learning rate that goes with it by the linear rule.
_DIGITS = {
    "data": "digits",
    "augment": "none",
    "batch_size": 32,
    "lr": 0.025,
    "teacher": "resnet20",
}

RECIPES = {
    **teacher("tiny-resnet18", _KD, None, _DIGITS),
    **row(
        "tiny-resnet18-mobilenetv2",
        _KD,
        paper=(58.35, 64.01),
        dkd={},
        crd={},
        mini={**_DIGITS, "student": "shufflenet_v1"},  # no MobileNet takes 8 pixels
    ),
    **row(
        "tiny-resnet18-shufflenetv2",
        _KD.replace(student="shufflenet_v2"),
        paper=(62.26, 65.75),
        dkd={},
        crd={},
        mini=_DIGITS,
    ),
}
