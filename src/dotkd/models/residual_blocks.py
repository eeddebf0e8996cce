"""The two residual blocks of He et al. (arXiv 1512.03385, section 3 and figure 5), with batch normalisation.

Both give relu(shortcut(x) + F(x)) (equations 1 and 2). The shortcut is the identity where the shape stays and a 1x1
convolution with batch normalisation where it changes (option B). `relu_out` is the last operation of a block, so what
it is given is the block's value before the activation.

Where this departs from the paper: the bottleneck has its stride in the 3x3 convolution, not in the first 1x1, as all
published weights do (torchvision calls it version 1.5).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

# Published weights name the shortcut's parameters in two ways.
ShortcutName = Literal["downsample", "shortcut"]


class BasicBlock(nn.Module):
    """F = conv 3x3, norm, ReLU, conv 3x3, norm: two layers of `width` channels."""

    expansion: ClassVar[int] = 1

    def __init__(self, channels: int, width: int, *, stride: int, shortcut: ShortcutName) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut_name = shortcut
        self.add_module(shortcut, _shortcut(channels, width, stride))
        self.relu_out = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, width, ceil(H / stride), ceil(W / stride))."""
        branch = self.relu1(self.bn1(self.conv1(inputs)))
        branch = self.bn2(self.conv2(branch))
        return self.relu_out(branch + self.get_submodule(self.shortcut_name)(inputs))


class Bottleneck(nn.Module):
    """F = conv 1x1, norm, ReLU, conv 3x3, norm, ReLU, conv 1x1, norm: `width`, `width`, 4 `width` channels."""

    expansion: ClassVar[int] = 4

    def __init__(self, channels: int, width: int, *, stride: int, shortcut: ShortcutName) -> None:
        super().__init__()
        out = self.expansion * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.shortcut_name = shortcut
        self.add_module(shortcut, _shortcut(channels, out, stride))
        self.relu_out = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, 4 width, ceil(H / stride), ceil(W / stride))."""
        branch = self.relu1(self.bn1(self.conv1(inputs)))
        branch = self.relu2(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        return self.relu_out(branch + self.get_submodule(self.shortcut_name)(inputs))


Block = type[BasicBlock] | type[Bottleneck]


def residual_stage(
    block: Block, channels: int, width: int, *, blocks: int, stride: int, shortcut: ShortcutName
) -> nn.Sequential:
    """Return `blocks` blocks one after the other; the first takes `channels` channels and has the stride."""
    stage = nn.Sequential(block(channels, width, stride=stride, shortcut=shortcut))
    for _ in range(blocks - 1):
        stage.append(block(block.expansion * width, width, stride=1, shortcut=shortcut))
    return stage


def _shortcut(channels: int, out: int, stride: int) -> nn.Module:
    if stride == 1 and channels == out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
