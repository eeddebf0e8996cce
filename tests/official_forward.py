"""What the published networks compute, written down a second time.

`forward(name, state, x)` gives the logits in eval mode from the entries of a published checkpoint, one convolution
after the other, without any module. Nothing here imports dotkd.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from official_models import CIFAR_DEPTHS, GROUPS, SEPARABLE, STRIDES, VGG, WIDE, WRN, State


class Network:
    """A state and the few operations on it; `convolve` is a convolution followed by its norm."""

    def __init__(self, state: State) -> None:
        self.state = state

    def conv(self, x: Tensor, name: str, stride: int = 1, groups: int = 1, padding: int | None = None) -> Tensor:
        weight = self.state[f"{name}.weight"]
        inside = weight.shape[-1] // 2 if padding is None else padding
        return functional.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, inside, 1, groups)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{entry}"][:, None, None] for entry in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def convolve(self, x: Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        return self.norm(self.conv(x, conv, stride, groups), norm)

    def head(self, x: Tensor, name: str) -> Tensor:
        return x.mean((2, 3)) @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def count(self, prefix: str) -> int:
        """Number of consecutive entries `prefix.0`, `prefix.1`, ..."""
        return len({name[len(prefix) + 1 :].split(".")[0] for name in self.state if name.startswith(f"{prefix}.")})


def _residual(net: Network, x: Tensor, stages: int, shortcut: str) -> Tensor:
    for stage in range(1, stages + 1):
        for index in range(net.count(f"layer{stage}")):
            block, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            deep = f"{block}.conv3.weight" in net.state
            y = net.convolve(x, f"{block}.conv1", f"{block}.bn1", 1 if deep else stride).relu()
            y = net.convolve(y, f"{block}.conv2", f"{block}.bn2", stride if deep else 1)
            if deep:
                y = net.convolve(y.relu(), f"{block}.conv3", f"{block}.bn3")
            if f"{block}.{shortcut}.0.weight" in net.state:
                x = net.convolve(x, f"{block}.{shortcut}.0", f"{block}.{shortcut}.1", stride)
            x = (x + y).relu()
    return x


def _shuffle(x: Tensor, groups: int) -> Tensor:
    width = x.shape[1] // groups
    return x[:, [group * width + channel for channel in range(width) for group in range(groups)]]


def _inverted(net: Network, x: Tensor, block: str, stride: int, active: Callable[[Tensor], Tensor]) -> Tensor:
    y = active(net.convolve(x, f"{block}.0", f"{block}.1"))
    y = active(net.convolve(y, f"{block}.3", f"{block}.4", stride, y.shape[1]))
    y = net.convolve(y, f"{block}.6", f"{block}.7")
    return x + y if stride == 1 and x.shape[1] == y.shape[1] else y


def forward(name: str, state: State, x: Tensor) -> Tensor:
    net, relu, side = Network(state), functional.relu, x.shape[-1]
    if name in CIFAR_DEPTHS:
        x = net.convolve(x, "conv1", "bn1").relu()
        return net.head(_residual(net, x, 3, "downsample"), "fc")
    if name in WIDE and name.endswith("_small"):
        x = net.convolve(x, "conv1", "bn1").relu()
        return net.head(_residual(net, x, 4, "shortcut"), "linear")
    if name in WIDE:
        x = functional.max_pool2d(net.convolve(x, "conv1", "bn1", 2).relu(), 3, 2, 1)
        return net.head(_residual(net, x, 4, "downsample"), "fc")
    if name in WRN:
        x = net.conv(x, "conv1")
        for stage in (1, 2, 3):
            for index in range(net.count(f"block{stage}.layer")):
                block, stride = f"block{stage}.layer.{index}", 2 if stage > 1 and index == 0 else 1
                active = net.norm(x, f"{block}.bn1").relu()
                y = net.conv(net.convolve(active, f"{block}.conv1", f"{block}.bn2", stride).relu(), f"{block}.conv2")
                changes = f"{block}.convShortcut.weight" in state
                x = y + (net.conv(active, f"{block}.convShortcut", stride) if changes else x)
        return net.head(net.norm(x, "bn1").relu(), "fc")
    if name in VGG:
        for number in range(5):
            for index in range(len(VGG[name][number])):
                x = net.convolve(x, f"block{number}.{3 * index}", f"block{number}.{3 * index + 1}").relu()
            if number < 3 or (number == 3 and side == 64):
                x = functional.max_pool2d(x, 2)
        return net.head(x, "classifier")
    if name == "mobilenet_v2_cifar":
        x = net.convolve(x, "conv1.0", "conv1.1", 2).relu()
        for number, stride in enumerate(STRIDES[name]):
            for index in range(GROUPS[number][1]):
                x = _inverted(net, x, f"blocks.{number}.{index}.conv", stride if index == 0 else 1, relu)
        return net.head(net.convolve(x, "conv2.0", "conv2.1").relu(), "classifier.0")
    if name == "mobilenet_v2_tiny":
        x = functional.relu6(net.norm(net.conv(x, "pre.0", padding=1), "pre.1"))
        for number, stride in enumerate(STRIDES[name], 1):
            for index in range(GROUPS[number - 1][1]):
                block = (
                    f"stage{number}.{index}"
                    if f"stage{number}.{index}.residual.0.weight" in state
                    else f"stage{number}"
                )
                x = _inverted(net, x, f"{block}.residual", stride if index == 0 else 1, functional.relu6)
        return net.head(functional.relu6(net.convolve(x, "conv1.0", "conv1.1")), "conv2")
    if name == "mobilenet_v1":
        x = net.convolve(x, "model.0.0", "model.0.1", 2).relu()
        for number, (_, stride) in enumerate(SEPARABLE, 1):
            x = net.convolve(x, f"model.{number}.0", f"model.{number}.1", stride, x.shape[1]).relu()
            x = net.convolve(x, f"model.{number}.3", f"model.{number}.4").relu()
        return net.head(x, "fc")
    x = net.convolve(x, "conv1", "bn1").relu()
    for stage in (1, 2, 3):
        for index in range(net.count(f"layer{stage}")):
            x = (_unit_v1 if name == "shufflenet_v1" else _unit_v2)(net, x, f"layer{stage}.{index}", index == 0)
    if name == "shufflenet_v2":
        x = net.convolve(x, "conv2", "bn2").relu()
    return net.head(x, "linear")


def _unit_v1(net: Network, x: Tensor, unit: str, down: bool) -> Tensor:
    groups = 1 if x.shape[1] == 24 else 3
    y = _shuffle(net.convolve(x, f"{unit}.conv1", f"{unit}.bn1", 1, groups).relu(), groups)
    y = net.convolve(y, f"{unit}.conv2", f"{unit}.bn2", 2 if down else 1, y.shape[1]).relu()
    y = net.convolve(y, f"{unit}.conv3", f"{unit}.bn3", 1, 3)
    return (torch.cat([y, functional.avg_pool2d(x, 3, 2, 1)], 1) if down else x + y).relu()


def _unit_v2(net: Network, x: Tensor, unit: str, down: bool) -> Tensor:
    def step(y: Tensor, number: int, stride: int = 1, depthwise: bool = False) -> Tensor:
        return net.convolve(y, f"{unit}.conv{number}", f"{unit}.bn{number}", stride, y.shape[1] if depthwise else 1)

    if down:
        left = step(step(x, 1, 2, True), 2).relu()
        right = step(step(step(x, 3).relu(), 4, 2, True), 5).relu()
    else:
        half = x.shape[1] // 2
        left, right = x[:, :half], step(step(step(x[:, half:], 1).relu(), 2, 1, True), 3).relu()
    return _shuffle(torch.cat([left, right], 1), 2)
