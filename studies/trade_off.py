"""The trade-off between task loss and distillation loss: CE, KD, KD + DOT and both controls.

    python studies/trade_off.py [--jobs 2] [--out runs/trade-off]      # about 25 minutes on two cores
    python studies/trade_off.py --page                                 # docs/results/trade-off.md from its CSV

The claims (arXiv 2307.08436, its figure 1): a distillation loss leaves the task loss less converged than training on
the labels alone does, and DOT ends with both losses lower than plain distillation. Every setting is one `dotkd compare`,
which is printed, over 8 seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from page import (
    Row,
    change,
    change_text,
    comparison_rows,
    dotkd,
    estimate_text,
    main,
    mean,
    origin_lines,
    table,
)

NAME = "trade-off"
CELLS = ("ce", "kd", "kd+dot", "kd+dot-normalized", "kd+sgd-matched")
MNIST1D = ("mnist1d", "digits")
# Two learning rates of the ResNet and of the digits: one below that which suits plain distillation, and that one.
SETTINGS: dict[str, list[str]] = {
    "mnist1d lr 0.005": ["mnist1d", "lr=0.005"],
    "mnist1d lr 0.03": ["mnist1d", "lr=0.03"],
    "mnist1d mlp lr 0.02": ["mnist1d", "student=mlp", "student_options={}", "epochs=40", "lr=0.02"],
    "digits lr 0.01": ["digits", "teacher_lr=0.05", "lr=0.01"],
    "digits lr 0.05": ["digits", "teacher_lr=0.05", "lr=0.05"],
}
