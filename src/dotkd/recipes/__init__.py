"""Configurations by name, each a short typed definition: `dotkd train NAME`, or `recipe: NAME` in a YAML file."""

from __future__ import annotations

from typing import NamedTuple

from dotkd.config import Config
from dotkd.recipes import small


class Recipe(NamedTuple):
    """A configuration, and one line about it."""

    config: Config
    summary: str


RECIPES: dict[str, Recipe] = {
    "mnist1d": Recipe(small.MNIST1D, "a narrow 1-D ResNet learns MNIST-1D from a wide one; what `dotkd demo` trains"),
    "digits": Recipe(small.DIGITS, "a small perceptron learns scikit-learn's 8x8 digits from a larger one; seconds"),
    "imagefolder": Recipe(
        small.IMAGEFOLDER, "a narrow 2-D ResNet on your own small pictures: add data=imagefolder:PATH"
    ),
}
