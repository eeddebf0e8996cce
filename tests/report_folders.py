"""Folders with everything that a report can show, made from numbers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

METHODS = {"ce": ("none", "sgd"), "kd": ("kd", "sgd"), "kd+dot": ("kd", "dot"), "kd+sgd-matched": ("kd", "sgd-matched")}
BASES = {"ce": 0.70, "kd": 0.80, "kd+dot": 0.86, "kd+sgd-matched": 0.74}
SEEDS = [0, 1, 2, 3]


def full_run(
    directory: Path, cell: str, seed: int, *, epochs: int = 12, shift: float = 0.0, status: str = "done", **config: Any
) -> Path:
    """A run with diagnostics, agreement and calibration; its accuracy at the end is BASES[cell] + shift + noise."""
    method, trainer = METHODS[cell]
    noise = random.Random(f"{cell} {seed} {shift}").uniform(-0.01, 0.01)
    final = BASES[cell] + shift + noise
    streams = ["task"] if method == "none" else ["task", "distill"]
    directory.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        left = math.exp(-4 * epoch / epochs)
        scores = {
            "accuracy": final * (1 - left) + 0.1 * left if epoch < epochs else final,
            "task_loss": 1.2 - final + 2 * left,
            "distill_loss": 2.5 - 2 * final + 12 * left + noise,
            "agreement": 0.95 * final,
            "calibration_error": 0.02 + 0.1 * left,
        }
        found: dict[str, Any] = {
            "grad_norm": {s: 0.2 + left * (3 if s == "distill" else 1) for s in streams},
            "buffer_norm": {s: 2 + left * (9 if s == "distill" else 3) for s in streams},
            "update_share": {s: 1 / len(streams) for s in streams},
            "snr": dict.fromkeys(streams, None if epoch == 1 else 0.1 + left),
            "cosine": {} if method == "none" else {"task,distill": 0.5 - 0.6 * left},
        }
        common = {"step": 10 * epoch, "epoch": epoch}
        lines.append({"kind": "train", **common, "task_loss": 1.0, "diagnostics": found})
        lines.append({"kind": "eval", **common, "val": scores, "test": scores})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = status == "done"
    last = {"task": scores["task_loss"], "distill": scores["distill_loss"]} if ended else {}
    summary = {
        "status": status,
        "trainer": trainer,
        "method": method,
        "seed": seed,
        "config": {"method": method, "trainer": trainer, "seed": seed, "lr": 0.05, "student": "mlp", **config},
        "test_accuracy": dict.fromkeys(("last", "val_selected", "best_of_test"), final if ended else None),
        "losses": {"train": last, "test": last},
        "test_agreement": 0.95 * final if ended else None,
        "test_calibration_error": 0.02 if ended else None,
        "teacher_test_accuracy": 0.95,
        "seconds": 12.5 * (1.6 if trainer == "dot" else 1.0) + seed,
        "versions": {"dotkd": "0.1.0", "torch": "2.13.0", "python": "3.11"},
        "commit": "0123456789ab",
        "hardware": "a machine, 2 cores",
        "threads": 1,
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def analysis(directory: Path, *, sharpness: float) -> None:
    """An `analysis.json` of a paraboloid."""
    alpha = [-1 + k / 5 for k in range(11)]

    def loss(a: float, b: float = 0.0) -> float:
        return 0.3 + sharpness * (a * a + 0.5 * a * b + 1.5 * b * b)

    line = {"alpha": alpha, "task_loss": [loss(a) for a in alpha], "distill_loss": [2 * loss(a) for a in alpha]}
    plane = {"alpha": alpha, "beta": alpha, "task_loss": [[loss(a, b) for b in alpha] for a in alpha]}
    accuracy = [max(0.1, 0.9 - 0.2 * loss(a)) for a in alpha]
    places = ["stem", "layer1.0", "layer2.0", "layer3.0.conv2", "head"]
    contents = {
        "split": "train",
        "samples": 1000,
        "loss": "cross-entropy, in eval mode",
        "landscape": {
            "line": {**line, "accuracy": accuracy},
            "plane": {**plane, "distill_loss": None, "accuracy": [[0.5] * len(alpha)] * len(alpha)},
        },
        "hessian": {
            "eigenvalues": [20 * sharpness, 11 * sharpness, 5.0, 2.0],
            "eigenvalues_normalised": [30 * sharpness, 9.0, 8.0, 1.0],
            "trace": {"mean": 90 * sharpness, "standard_error": 2.0, "samples": 20},
            "trace_normalised": {"mean": 95 * sharpness, "standard_error": 2.0, "samples": 20},
        },
        "cka": {
            "student_points": places,
            "teacher_points": [*places, "the last hidden layer"],
            "values": [[1 / (1 + abs(i - j)) for j in range(6)] for i in range(5)],
        },
    }
    (directory / "analysis.json").write_text(json.dumps(contents))


def comparison(folder: Path, *, deltas: tuple[float, ...] = (0.05,), faults: bool = False) -> Path:
    """A comparison folder of the cells of METHODS over SEEDS, a setting for each delta, without the numbers of a table.

    faults: seed 3 of kd+dot diverged, that of kd has not ended.
    """
    settings: list[dict[str, Any]] = []
    for delta in deltas:
        place = "." if len(deltas) == 1 else f"delta-{delta}"
        cells = [
            {"name": name, "method": method, "trainer": trainer, "against": None if name == "kd" else "kd"}
            for name, (method, trainer) in METHODS.items()
        ]
        name = "mnist1d" if len(deltas) == 1 else f"delta={delta}"
        varied = {} if len(deltas) == 1 else {"delta": delta}
        settings.append({"name": name, "recipe": "mnist1d", "varied": varied, "directory": place, "cells": cells})
        for cell in METHODS:
            for seed in SEEDS:
                path = folder / place / cell / f"seed-{seed}"
                fault = faults and seed == SEEDS[-1] and cell in ("kd", "kd+dot")
                shift = delta - 0.05 if cell == "kd+dot" else 0.0
                status = "diverged" if fault and cell == "kd+dot" else "done"
                full_run(path, cell, seed, shift=shift, status=status, delta=delta)
                if fault and cell == "kd":
                    (path / "summary.json").unlink()
                elif status == "done":
                    analysis(path, sharpness=(2.0 if cell == "kd+dot" else 3.0) + 0.1 * seed)
    contents = {"comparison": "mnist1d", "seeds": SEEDS, "settings": settings, "runs": []}
    (folder / "comparison.json").write_text(json.dumps(contents))
    return folder


def tuning(folder: Path) -> Path:
    """A tuning folder of two trainers."""
    draw = random.Random(0)
    trainers: dict[str, Any] = {}
    for trainer, count in (("sgd", 12), ("dot", 12)):
        trials = [
            {
                "number": number,
                "params": {"lr": 10 ** draw.uniform(-3, -0.5), "temperature": draw.choice([1, 2, 4])},
                "state": draw.choice(["complete", "complete", "pruned"]) if number else "failed",
                "val_accuracy": draw.uniform(0.6, 0.95) if number else None,
                "epochs": draw.choice([5, 20]),
            }
            for number in range(count)
        ]
        best = max(trials[1:], key=lambda trial: trial["val_accuracy"])
        trainers[trainer] = {
            "best": {"params": best["params"], "val_accuracy": best["val_accuracy"]},
            "trials": trials,
        }
    protocol = {
        "text": ["budget: 12 trials of at most 20 epochs for each trainer", "chosen by: accuracy on validation"],
        "searched": {"lr": "0.001 to 0.3, log", "temperature": [1, 2, 4]},
        "sampler": "TPE, seed 0",
        "budget": {"trials": 12, "epochs": 20},
    }
    score = {"mean": 0.8, "half_width": 0.01, "n": 4, "diverged": 0}
    gain = {"mean": -0.02, "half_width": 0.005, "p": 0.001, "p_corrected": 0.001, "effect_size": -3.0, "n": 4}
    final = {
        "split": "test",
        "seeds": [1, 2, 3, 4],
        "against": "sgd",
        "trainers": {
            "sgd": {"last": score, "val_selected": score, "gain": None, "gain_val_selected": None},
            "dot": {"last": {**score, "mean": 0.78}, "val_selected": score, "gain": gain, "gain_val_selected": gain},
        },
        "runs": [],
    }
    folder.mkdir(parents=True)
    (folder / "tune.json").write_text(
        json.dumps({"recipe": "mnist1d", "protocol": protocol, "trainers": trainers, "final": final})
    )
    return folder
