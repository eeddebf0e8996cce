"""The settings and the cells of `auto_delta.py`."""

from __future__ import annotations

import auto_rules as rules
from auto_rules import Cell, steered

MLP = ["student=mlp", "student_options={}", "epochs=40"]
EVEN = ["temperature=1.0", "task_weight=0.5", "distill_weight=0.5"]  # T = 4, 0.1 and 0.9 elsewhere
SETTINGS: dict[str, tuple[str, list[str], int]] = {  # a recipe, what is changed in it, seeds
    **{f"digits lr {lr}": ("digits", [f"lr={lr}"], 16) for lr in (0.001, 0.01, 0.05)},
    "digits T 1 lr 0.01": ("digits", ["lr=0.01", *EVEN], 16),
    **{f"mlp lr {lr}": ("mnist1d", [*MLP, f"lr={lr}"], 8) for lr in (0.005, 0.02, 0.05)},
    "mlp T 1 lr 0.01": ("mnist1d", [*MLP, "lr=0.01", *EVEN], 8),
    **{f"resnet lr {lr}": ("mnist1d", [f"lr={lr}"], 8) for lr in (0.003, 0.01, 0.03, 0.1)},
    "resnet T 1 lr 0.01": ("mnist1d", ["lr=0.01", *EVEN], 8),
}
FIXED = {
    "kd": Cell(0.0),
    **{f"delta {value}": Cell(value) for value in (0.025, 0.05, 0.075, 0.09)},
    "matched 0.075": Cell(0.075, "matched"),
}
AUTO = {
    "buffer": Cell(steered(rules.buffer)),
    "hypergradient": Cell(steered(rules.hypergradient)),
    "sensitivity": Cell(steered(rules.sensitivity)),
    "displacement": Cell(steered(rules.displacement)),
    "both": Cell(steered(rules.both)),
    "both, z": Cell(steered(rules.both_z)),
    "snr": Cell(rules.snr),
    "distance": Cell(rules.distance),
    "agreement": Cell(rules.agreement),
    "annealed": Cell(rules.annealed),
    "late": Cell(rules.late),
}
RIVALS = {
    "matched, displacement": Cell(steered(rules.displacement), "matched"),
    "rate, one buffer": Cell(steered(rules.one_buffer), "rate"),
    "rate, displacement": Cell(steered(rules.displacement), "rate"),
}
CELLS = FIXED | AUTO | RIVALS
WIDE = (*FIXED, "sensitivity", "both", "rate, displacement")
