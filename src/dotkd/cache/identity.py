"""What the logits in a cache depend on, so that a cache of something else is refused by name."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from dotkd.assembly import Batching
from dotkd.config import Config
from dotkd.data import Dataset

# The keys of the configuration that say how a teacher is built; what it has learnt is in its weights.
_ARCHITECTURE = ("teacher", "teacher_options", "teacher_input", "teacher_choice")


def identity_of(
    config: Config, teacher: nn.Module | None, dataset: Dataset, batching: Batching, precision: str
) -> dict[str, Any]:
    """Names and plain values of everything that settles what the teacher says of a numbered view.

    Where views are not counted (see `dotkd.data.views`), seed, batch size and mixing are among them. The device is not:
    another one's logits differ by rounding.
    """
    plain = config.model_dump(mode="json")
    architecture = {key: plain[key] for key in _ARCHITECTURE}
    architecture["more_teachers"] = [
        {k: v for k, v in more.items() if k != "weights"} for more in plain["more_teachers"]
    ]
    views: dict[str, Any] = {"augment": batching.augment, "views": batching.view_count}
    if batching.view_count is None:
        views |= {"seed": batching.seed, "batch_size": batching.size, "mix": batching.mix}
        views |= {"mix_alpha": batching.mix_alpha} if batching.mix != "none" else {}
    return {
        "teacher_weights": weights_hash(teacher) if teacher else None,
        **architecture,
        "data": dataset.fingerprint,
        "input_shape": list(dataset.input_shape),
        "mean": dataset.mean.tolist(),
        "std": dataset.std.tolist(),
        "precision": precision,
        **views,
    }


def weights_hash(model: nn.Module) -> str:
    """sha256 of names, types, shapes and bytes of a model's parameters and buffers, in hex."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
