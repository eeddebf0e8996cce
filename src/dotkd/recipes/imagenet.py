"""ImageNet, as in the DOT paper (Zhao et al. 2023, arXiv 2307.08436), with the settings of its published code.

Batch 512, 100 epochs, learning rate 0.2 times 0.1 after 30, 60 and 90, weight decay 1e-4; KD at T = 1 with weights 0.5
and 0.5; Delta 0.09. CRD runs with batch 256 and learning rate 0.1, as its published settings are. The teachers are
torchvision's, trained already.
"""

from __future__ import annotations

from dotkd.config import Config
from dotkd.recipes.row import row

_KD = Config(
    data="imagenet:PATH",
    validation=0.0,
    augment="resized-crop-flip",
    teacher="torchvision:resnet34",
    teacher_options={"weights": "IMAGENET1K_V1"},
    teacher_epochs=0,
    student="resnet18",
    method="kd",
    temperature=1.0,
    task_weight=0.5,
    distill_weight=0.5,
    trainer="dot",
    lr=0.2,
    momentum=0.9,
    delta=0.09,
    weight_decay=1e-4,
    epochs=100,
    batch_size=512,
    schedule="step",
    milestones=(30, 60, 90),
)
_DKD = {"temperature": 1.0, "distill_warmup_epochs": 1.0}
_CRD = {"batch_size": 256, "lr": 0.1}
# On a folder in the form of Tiny-ImageNet, of a few thousand pictures, that teaches the teacher too.
_SLICE = {"data": "tiny-imagenet:PATH", "teacher_options": {}, "teacher_epochs": None, "batch_size": 64, "lr": 0.025}

RECIPES = {
    **row(
        "imagenet-resnet34-resnet18",
        _KD,
        paper=(71.03, 71.72),
        dkd={**_DKD, "method_options": {"beta": 0.5}},
        crd=_CRD,
        mini={**_SLICE, "teacher": "resnet34"},
    ),
    **row(
        "imagenet-resnet50-mobilenetv1",
        _KD.replace(teacher="torchvision:resnet50", student="mobilenet_v1"),
        paper=(70.50, 73.09),
        dkd={**_DKD, "method_options": {"beta": 2.0}},
        crd=_CRD,
        mini={**_SLICE, "teacher": "resnet50"},
    ),
}
