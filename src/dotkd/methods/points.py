"""Where the feature maps of a model are, and how each is laid out."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

from torch import Tensor, nn

from dotkd.models.feature_points import is_channels_last, library_feature_points, tokens_before_patches


def default_points(model: nn.Module, role: str) -> tuple[str, ...]:
    """The points of the model's family; raises ValueError where it has none that is known."""
    prefix, inner = _inner(model)
    own = getattr(inner, "feature_points", None) or library_feature_points(inner)
    if own is None:
        children = [name for name, _ in inner.named_children()]
        raise ValueError(
            f"where the feature maps of the {role} ({type(inner).__name__}) are is not known: name the modules in "
            f"{role}_features, shallow to deep; its parts are {', '.join(children)}"
        )
    return tuple(f"{prefix}{point}" for point in own)


def declared_activations(model: nn.Module) -> tuple[str, ...]:
    """The modules that activate the family's points, one each, where these are not the ends of the points."""
    prefix, inner = _inner(model)
    return tuple(f"{prefix}{path}" for path in getattr(inner, "activation_points", ()))


def refuse_unknown(model: nn.Module, points: Sequence[str], role: str) -> None:
    """Raise ValueError, naming the nearest path, for a point that the model does not have."""
    paths = [path for path, _ in model.named_modules() if path]
    for point in points:
        if point not in paths:
            near = difflib.get_close_matches(point, paths, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; its parts are {', '.join(paths[:8])}, ..."
            raise ValueError(f"the {role} has no module `{point}`{hint}")


def as_map(model: nn.Module, point: str, output: Tensor) -> Tensor:
    """A point's output as (N, C, H, W): maps as they are, vectors, signals and tokens brought to that form.

    Tokens (N, L, C) lose those in front of the patches and are laid out as a square, or in one row where their number
    is no square.
    """
    _, inner = _inner(model)
    if output.dim() == 4:
        return output.permute(0, 3, 1, 2) if is_channels_last(inner) else output
    if output.dim() == 2:
        return output[:, :, None, None]
    if output.dim() != 3:
        raise ValueError(f"expected `{point}` to give a feature map, got shape {tuple(output.shape)}")
    before = tokens_before_patches(inner)
    if before is None:  # no transformer: a signal (N, C, L)
        return output[:, :, None, :]
    patches = output[:, before:].transpose(1, 2)
    side = math.isqrt(patches.shape[2])
    return patches.unflatten(2, (side, side) if side * side == patches.shape[2] else (1, -1))


def _inner(model: nn.Module) -> tuple[str, nn.Module]:
    """The model that a teacher's adapter holds (dotkd.teachers) and the path to it, else the model itself."""
    held = getattr(model, "adapted", None)
    return ("adapted.", held) if isinstance(held, nn.Module) else ("", model)
