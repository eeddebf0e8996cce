"""Transformers, convolutional networks and hybrids of other libraries teach each other, features included.

For each pair and method: both losses are finite, one step of DOT lowers their sum on the batch it was taken on, the
gradient reaches the student's first layer, and the method's own parameters move with it. Built small from options; no
weights are fetched.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dotkd
from dotkd import models

pytest.importorskip("torchvision")
pytest.importorskip("timm")
pytest.importorskip("transformers")

VIT = ("timm:vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2})
RESNET = ("timm:resnet10t", {})
CONVNEXT = ("transformers:convnext", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]})
HYBRID = ("timm:mobilevit_xxs", {})
PAIRS = {
    "a ViT from a ResNet": (VIT, RESNET, 32),
    "a ConvNeXt from a ViT": (CONVNEXT, VIT, 32),
    "a hybrid from a ViT": (HYBRID, VIT, 64),
    "a ResNet from a hybrid": (RESNET, HYBRID, 64),
}
WEIGHTS = {"kd": 0.9, "at": 10.0, "fitnet": 1.0, "reviewkd": 0.1, "srrl": 0.1}


def build(model: tuple[str, dict[str, Any]], side: int, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    spec, options = model
    return models.build(spec, num_classes=3, input_shape=(3, side, side), options=options)


@pytest.mark.parametrize("method", WEIGHTS)
@pytest.mark.parametrize("pair", PAIRS)
def test_they_teach_each_other(pair, method):
    first, second, side = PAIRS[pair]
    student, teacher = build(first, side, 0), build(second, side, 1)
    torch.manual_seed(2)
    inputs, targets = torch.randn(6, 3, side, side), torch.arange(6) % 3
    distiller = dotkd.Distiller(student, teacher, method, example=inputs)
    optimizer = dotkd.DOT(distiller.parameters(), lr=1e-4)

    def loss() -> float:
        task, distill, _ = distiller(inputs, targets)
        optimizer.backward(task=task, distill=WEIGHTS[method] * distill)
        return task.item() + WEIGHTS[method] * distill.item()

    before, own = loss(), [p.detach().clone() for p in distiller.extra.parameters()]
    grad = next(p for p in student.parameters() if p.dim() > 1).grad
    assert grad is not None
    assert grad.abs().max() > 0
    assert all(p.grad is None for p in teacher.parameters())
    optimizer.step()
    optimizer.zero_grad()
    assert loss() < before
    assert all(not torch.equal(p, q) for p, q in zip(distiller.extra.parameters(), own, strict=True) if p.dim() > 1)
