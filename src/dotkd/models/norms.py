"""The normalisation layers between a model's weights and its activations."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from dotkd.models.arguments import check_choice

Norm = Literal["batch", "group", "none"]


def check_norm(norm: object) -> None:
    """Refuse anything but a name of `Norm`."""
    check_choice("norm", norm, get_args(Norm))


def group_count(channels: int) -> int:
    """Return the number of groups that `GroupNorm` splits `channels` into.

    The largest divisor of `channels` that leaves at least four channels in a group, and at most 32, the
    number that Wu and He use by default (Group Normalization, arXiv 1803.08494, section 3). In networks as
    narrow as these 32 would leave one channel a group, which is instance normalisation: it removes each
    channel's mean over an image, and that mean is just what the global average pool in front of the head
    reads.
    """
    most = max(1, min(32, channels // 4))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def make_norm(norm: Norm, channels: int, *, dims: int) -> nn.Module:
    """Return the layer that normalises (N, channels, ...) tensors with `dims` spatial dimensions, 0 to 2."""
    if norm == "group":
        return nn.GroupNorm(group_count(channels), channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels) if dims == 2 else nn.BatchNorm1d(channels)
    return nn.Identity()
