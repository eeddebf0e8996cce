"""What the tests of a teacher's cache share: teachers with weights, a run that is distilled from one, and damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from dotkd import Config, Trainer, models
from dotkd.cache.store import Store
from tiny_runs import CLASSES, images, tiny

SHAPE = (3, 8, 8)


def furnished(folder: Path) -> Path:
    """Pictures, and the weights of the teachers."""
    for seed, name in enumerate(("coarse", "smooth", "nan_teacher")):
        torch.manual_seed(seed)
        model = models.build(f"tiny_runs:{name}", num_classes=CLASSES, input_shape=SHAPE)
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    images(folder)
    return folder


def config_of(home: Path, name: str = "coarse", **changes: object) -> Config:
    values = {"augment": "crop-flip", "epochs": 3, "lr": 0.05, "student": "tiny_runs:dropout", "student_options": {}}
    values |= {"teacher": f"tiny_runs:{name}", "teacher_weights": str(home / f"{name}.safetensors")}
    return tiny(f"arrays:{home / 'images.npz'}", **{**values, **changes})


def run(config: Config, out: Path) -> dict:
    Trainer(config, out).fit()
    return json.loads((out / "summary.json").read_text())


def damage(folder: Path, *, every: int) -> int:
    """Changes a byte of the logits in each `every`-th record; returns how many records that are."""
    path, store = folder / "records.npy", Store(folder)
    data = np.memmap(path, np.uint8, "r+")
    begin = len(data) - store.samples * store.views * store.record_bytes
    places = range(begin, len(data), every * store.record_bytes)
    data[list(places)] ^= 4
    data.flush()
    return len(places)
