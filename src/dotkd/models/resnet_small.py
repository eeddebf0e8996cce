"""The small residual networks of He et al. (arXiv 1512.03385, section 4.2), over sequences and over images.

A 3-wide convolution, three stages of n basic blocks each, a global average pool and a linear head: 6n + 2
layers with weights. Stages have `width` x (1, 2, 4) channels and strides 1, 2, 2.

Where this departs from the paper: the shortcut of a block that changes shape is a 1x1 convolution (the
paper's option B; its CIFAR networks take option A, zero padding), whose extra layers are, as usual, not
counted in the depth; and the width, the normalisation and the number of spatial dimensions are free.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dotkd.models.arguments import check_shape, check_whole
from dotkd.models.initial import he_convolutions
from dotkd.models.norms import Norm, check_norm, make_norm

Dims = Literal[1, 2]

_EXPECTED_SHAPE = {1: "(channels, length)", 2: "(channels, height, width)"}
_FITTING_MODEL = {1: "mlp", 2: "resnet1d", 3: "resnet2d"}


def _convolution(dims: Dims, channels: int, out: int, *, kernel: int, stride: int, norm: Norm) -> nn.Module:
    layer = nn.Conv1d if dims == 1 else nn.Conv2d
    # A norm layer brings its own shift, which makes the convolution's redundant.
    return layer(channels, out, kernel, stride, kernel // 2, bias=norm == "none")


class BasicBlock(nn.Module):
    """relu(shortcut(x) + F(x)) with F = conv, norm, ReLU, conv, norm (He et al., equations 1 and 2).

    `branch_scale`, where given, is the first value of a trainable factor on F (see `ResNet`). `relu_out` is the last
    operation: what it is given is the block's value before the activation.
    """

    scale: nn.Parameter | None

    def __init__(
        self, dims: Dims, channels: int, out: int, *, stride: int, norm: Norm, branch_scale: float | None
    ) -> None:
        super().__init__()
        self.conv1 = _convolution(dims, channels, out, kernel=3, stride=stride, norm=norm)
        self.norm1 = make_norm(norm, out, dims=dims)
        self.relu1 = nn.ReLU()
        self.conv2 = _convolution(dims, out, out, kernel=3, stride=1, norm=norm)
        self.norm2 = make_norm(norm, out, dims=dims)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                _convolution(dims, channels, out, kernel=1, stride=stride, norm=norm),
                make_norm(norm, out, dims=dims),
            )
        # One element rather than none: sharding wrappers refuse parameters without a dimension to cut.
        scale = None if branch_scale is None else nn.Parameter(torch.full((1,), branch_scale))
        self.register_parameter("scale", scale)
        self.relu_out = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, channels, *size) to (N, out, *ceil(size / stride))."""
        branch = self.relu1(self.norm1(self.conv1(inputs)))
        branch = self.norm2(self.conv2(branch))
        if self.scale is not None:
            branch = branch * self.scale
        return self.relu_out(self.shortcut(inputs) + branch)


class ResNet(nn.Module):
    """The network of this file, over `dims` spatial dimensions.

    Child modules, for whoever hooks features: `stem`, `stages.0` to `stages.2` and `head`. Convolutions start
    from He's normal distribution with the variance of their fan-out, which keeps the size of the gradients on
    their way back.

    With norm "none" nothing holds the sum of shortcut and branch to one scale: its variance would grow by a
    factor with every block. Each branch is therefore multiplied by a trainable scalar (SkipInit; De and
    Smith, arXiv 2002.10444). It starts at 1 / sqrt(number of blocks), which limits that growth to a factor of
    about e at any depth. Starting at 0, the other value they propose, would give the branches' weights no
    gradient at all on the first step.
    """

    feature_points: ClassVar[tuple[str, ...]] = ("stages.0", "stages.1", "stages.2")

    def __init__(self, dims: Dims, channels: int, num_classes: int, *, depth: int, width: int, norm: Norm) -> None:
        super().__init__()
        per_stage = (depth - 2) // 6
        branch_scale = 1 / math.sqrt(3 * per_stage) if norm == "none" else None
        self.stem = nn.Sequential(
            _convolution(dims, channels, width, kernel=3, stride=1, norm=norm),
            make_norm(norm, width, dims=dims),
            nn.ReLU(),
        )
        self.stages = nn.Sequential()
        inner = width
        for factor in (1, 2, 4):
            stage = nn.Sequential()
            for index in range(per_stage):
                stride = 2 if factor > 1 and index == 0 else 1
                block = BasicBlock(dims, inner, width * factor, stride=stride, norm=norm, branch_scale=branch_scale)
                stage.append(block)
                inner = width * factor
            self.stages.append(stage)
        self.head = nn.Linear(inner, num_classes)
        he_convolutions(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of inputs (N, channels, *size)."""
        features = self.stages(self.stem(inputs))
        # A plain mean: unlike the adaptive pooling layers its gradient is deterministic on every device.
        return self.head(features.flatten(2).mean(2))


def resnet1d(
    *, num_classes: int, input_shape: tuple[int, ...], depth: int = 8, width: int = 16, norm: Norm = "batch"
) -> ResNet:
    """Return a residual network for sequences, `input_shape` = (channels, length).

    Args:
        num_classes: width of the output.
        input_shape: shape of one input without the batch dimension.
        depth: layers with weights, 6n + 2.
        width: channels of the first stage; each later stage has twice as many as the one before.
        norm: "batch", "group" or "none".

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of its range, or inputs that are not sequences.
    """
    return _resnet(1, num_classes, input_shape, depth, width, norm)


def resnet2d(
    *, num_classes: int, input_shape: tuple[int, ...], depth: int = 8, width: int = 16, norm: Norm = "batch"
) -> ResNet:
    """Return a residual network for images, `input_shape` = (channels, height, width); else as `resnet1d`."""
    return _resnet(2, num_classes, input_shape, depth, width, norm)


def _resnet(dims: Dims, num_classes: int, input_shape: tuple[int, ...], depth: int, width: int, norm: Norm) -> ResNet:
    check_norm(norm)
    return ResNet(
        dims,
        _channels(dims, input_shape),
        check_whole("num_classes", num_classes, least=1),
        depth=_check_depth(depth),
        width=check_whole("width", width, least=1),
        norm=norm,
    )


def _channels(dims: Dims, input_shape: tuple[int, ...]) -> int:
    shape = check_shape(input_shape)
    if len(shape) != dims + 1:
        fitting = _FITTING_MODEL.get(len(shape), "mlp, which flattens any input,")
        expected = _EXPECTED_SHAPE[dims]
        raise ValueError(f"resnet{dims}d expects `input_shape` = {expected}, got {shape}; {fitting} fits such inputs")
    return shape[0]


def _check_depth(depth: object) -> int:
    value = check_whole("depth", depth, least=8)
    if value % 6 != 2:
        below = value - (value - 2) % 6
        raise ValueError(f"expected `depth` = 6n + 2, got {value}; the nearest are {below} and {below + 6}")
    return value
