"""What published checkpoints hold, written down a second time from the tables of the papers.

`layout(name, classes)` lists every entry with its shape, under the names of the public code; `draw` fills it with
random values. Nothing here imports dotkd.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

State = dict[str, Tensor]

CIFAR_DEPTHS = {f"resnet{depth}": depth for depth in (8, 14, 20, 32, 44, 56, 110)} | {"resnet8x4": 8, "resnet32x4": 32}
WRN = {"wrn_16_1": (16, 1), "wrn_16_2": (16, 2), "wrn_40_1": (40, 1), "wrn_40_2": (40, 2)}
VGG = {
    "vgg8": ([64], [128], [256], [512], [512]),
    "vgg11": ([64], [128], [256] * 2, [512] * 2, [512] * 2),
    "vgg13": ([64] * 2, [128] * 2, [256] * 2, [512] * 2, [512] * 2),
    "vgg16": ([64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3),
    "vgg19": ([64] * 2, [128] * 2, [256] * 4, [512] * 4, [512] * 4),
}
# Blocks of each stage, and whether they are bottlenecks.
WIDE = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet18_small": ((2, 2, 2, 2), False),
    "resnet50_small": ((3, 4, 6, 3), True),
}
# Output channels and blocks of each group of MobileNetV2, and its strides in the two forms.
GROUPS = ((16, 1), (24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1))
STRIDES = {"mobilenet_v2_cifar": (1, 1, 2, 2, 1, 2, 1), "mobilenet_v2_tiny": (1, 2, 2, 2, 1, 1, 1)}
SEPARABLE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
NAMES = [*CIFAR_DEPTHS, *WRN, *VGG, *WIDE, *STRIDES, "mobilenet_v1", "shufflenet_v1", "shufflenet_v2"]


class Layout(dict[str, tuple[int, ...]]):
    """Names and shapes; each method adds one layer's."""

    def conv(self, name: str, kernel: int, inner: int, out: int, *, groups: int = 1, bias: bool = False) -> None:
        self[f"{name}.weight"] = (out, inner // groups, kernel, kernel)
        if bias:
            self[f"{name}.bias"] = (out,)

    def norm(self, name: str, width: int) -> None:
        for entry in ("weight", "bias", "running_mean", "running_var"):
            self[f"{name}.{entry}"] = (width,)
        self[f"{name}.num_batches_tracked"] = ()

    def linear(self, name: str, inner: int, out: int) -> None:
        self[f"{name}.weight"], self[f"{name}.bias"] = (out, inner), (out,)

    def residual(self, block: str, inner: int, width: int, *, deep: bool, stride: int, shortcut: str) -> int:
        out = 4 * width if deep else width
        shapes = [(1, inner, width), (3, width, width), (1, width, out)] if deep else [(3, inner, out), (3, out, out)]
        for index, (kernel, before, after) in enumerate(shapes, 1):
            self.conv(f"{block}.conv{index}", kernel, before, after)
            self.norm(f"{block}.bn{index}", after)
        if stride > 1 or inner != out:
            self.conv(f"{block}.{shortcut}.0", 1, inner, out)
            self.norm(f"{block}.{shortcut}.1", out)
        return out

    def inverted(self, block: str, inner: int, wide: int, out: int, *, bias: bool) -> None:
        for index, (kernel, before, after, groups) in enumerate(
            ((1, inner, wide, 1), (3, wide, wide, wide), (1, wide, out, 1))
        ):
            self.conv(f"{block}.{3 * index}", kernel, before, after, groups=groups, bias=bias)
            self.norm(f"{block}.{3 * index + 1}", after)


def parameters(shapes: Layout) -> int:
    """Count what is trained: everything but the statistics of the norms."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(buffers))


def layout(name: str, classes: int) -> Layout:
    shapes = Layout()
    if name in CIFAR_DEPTHS:
        inner = 32 if name.endswith("x4") else 16
        shapes.conv("conv1", 3, 3, inner)
        shapes.norm("bn1", inner)
        for stage, width in enumerate((64, 128, 256) if name.endswith("x4") else (16, 32, 64), 1):
            for index in range((CIFAR_DEPTHS[name] - 2) // 6):
                stride = 2 if stage > 1 and index == 0 else 1
                block = f"layer{stage}.{index}"
                inner = shapes.residual(block, inner, width, deep=False, stride=stride, shortcut="downsample")
        shapes.linear("fc", inner, classes)
    elif name in WIDE:
        blocks, deep = WIDE[name]
        small = name.endswith("_small")
        shapes.conv("conv1", 3 if small else 7, 3, 64)
        shapes.norm("bn1", 64)
        inner = 64
        for stage, count in enumerate(blocks, 1):
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                shortcut = "shortcut" if small else "downsample"
                block, width = f"layer{stage}.{index}", 32 * 2**stage
                inner = shapes.residual(block, inner, width, deep=deep, stride=stride, shortcut=shortcut)
        shapes.linear("linear" if small else "fc", inner, classes)
    elif name in WRN:
        depth, factor = WRN[name]
        shapes.conv("conv1", 3, 3, 16)
        inner = 16
        for stage, width in enumerate((16 * factor, 32 * factor, 64 * factor), 1):
            for index in range((depth - 4) // 6):
                block = f"block{stage}.layer.{index}"
                shapes.norm(f"{block}.bn1", inner)
                shapes.conv(f"{block}.conv1", 3, inner, width)
                shapes.norm(f"{block}.bn2", width)
                shapes.conv(f"{block}.conv2", 3, width, width)
                if inner != width:
                    shapes.conv(f"{block}.convShortcut", 1, inner, width)
                inner = width
        shapes.norm("bn1", inner)
        shapes.linear("fc", inner, classes)
    elif name in VGG:
        inner = 3
        for number, widths in enumerate(VGG[name]):
            for index, width in enumerate(widths):
                shapes.conv(f"block{number}.{3 * index}", 3, inner, width, bias=True)
                shapes.norm(f"block{number}.{3 * index + 1}", width)
                inner = width
        shapes.linear("classifier", 512, classes)
    elif name == "mobilenet_v2_cifar":
        shapes.conv("conv1.0", 3, 3, 16)
        shapes.norm("conv1.1", 16)
        inner = 16
        for number, (full, count) in enumerate(GROUPS):
            for index in range(count):
                wide = inner if number == 0 else 6 * inner
                shapes.inverted(f"blocks.{number}.{index}.conv", inner, wide, full // 2, bias=False)
                inner = full // 2
        shapes.conv("conv2.0", 1, 160, 1280)
        shapes.norm("conv2.1", 1280)
        shapes.linear("classifier.0", 1280, classes)
    elif name == "mobilenet_v2_tiny":
        shapes.conv("pre.0", 1, 3, 32, bias=True)
        shapes.norm("pre.1", 32)
        inner = 32
        for number, (out, count) in enumerate(GROUPS, 1):
            for index in range(count):
                block = f"stage{number}.residual" if count == 1 else f"stage{number}.{index}.residual"
                shapes.inverted(block, inner, inner if number == 1 else 6 * inner, out, bias=True)
                inner = out
        shapes.conv("conv1.0", 1, 320, 1280, bias=True)
        shapes.norm("conv1.1", 1280)
        # Published as a 1x1 convolution, (classes, 1280, 1, 1): see `published`.
        shapes.linear("conv2", 1280, classes)
    elif name == "mobilenet_v1":
        shapes.conv("model.0.0", 3, 3, 32)
        shapes.norm("model.0.1", 32)
        inner = 32
        for number, (out, _) in enumerate(SEPARABLE, 1):
            shapes.conv(f"model.{number}.0", 3, inner, inner, groups=inner)
            shapes.norm(f"model.{number}.1", inner)
            shapes.conv(f"model.{number}.3", 1, inner, out)
            shapes.norm(f"model.{number}.4", out)
            inner = out
        shapes.linear("fc", 1024, classes)
    elif name == "shufflenet_v1":
        shapes.conv("conv1", 1, 3, 24)
        shapes.norm("bn1", 24)
        inner = 24
        for stage, (out, count) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
            for index in range(count):
                made = out - inner if index == 0 else out
                sizes = ((1, inner, made // 4, 1 if inner == 24 else 3), (3, made // 4, made // 4, made // 4))
                for step, (kernel, before, after, groups) in enumerate((*sizes, (1, made // 4, made, 3)), 1):
                    shapes.conv(f"layer{stage}.{index}.conv{step}", kernel, before, after, groups=groups)
                    shapes.norm(f"layer{stage}.{index}.bn{step}", after)
                inner = out
        shapes.linear("linear", 960, classes)
    else:
        shapes.conv("conv1", 1, 3, 24)
        shapes.norm("bn1", 24)
        inner = 24
        for stage, (out, count) in enumerate(((116, 4), (232, 8), (464, 4)), 1):
            half = out // 2
            for index in range(count):
                if index == 0:
                    sizes = [(3, inner, inner, inner), (1, inner, half, 1), (1, inner, half, 1)]
                    sizes += [(3, half, half, half), (1, half, half, 1)]
                else:
                    sizes = [(1, half, half, 1), (3, half, half, half), (1, half, half, 1)]
                for step, (kernel, before, after, groups) in enumerate(sizes, 1):
                    shapes.conv(f"layer{stage}.{index}.conv{step}", kernel, before, after, groups=groups)
                    shapes.norm(f"layer{stage}.{index}.bn{step}", after)
            inner = out
        shapes.conv("conv2", 1, 464, 1024)
        shapes.norm("bn2", 1024)
        shapes.linear("linear", 1024, classes)
    return shapes


def published(state: State) -> State:
    """The entries of mobilenet_v2_tiny's layout in their published shapes: its classifier is a 1x1 convolution."""
    return {**state, "conv2.weight": state["conv2.weight"][:, :, None, None]}


def draw(shapes: Layout, seed: int) -> State:
    """Return random values for every entry, such that activations keep their scale from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var") or (name.endswith(".weight") and len(shape) == 1):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        elif len(shape) > 1:
            state[name] = torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
        else:
            state[name] = torch.randn(shape, generator=generator) * 0.2
    return state
