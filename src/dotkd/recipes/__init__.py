"""Configurations by name, each a short typed definition: `dotkd train NAME`, or `recipe: NAME` in a YAML file.

A cell of the DOT paper's tables is a name: the pair, the method and, where it is DOT, the trainer. So each has a number
of the paper's beside it; `trainer=` and `--trainers` change it as they change any recipe.
"""

from __future__ import annotations

from dotkd.recipes import cifar100, imagenet, small, tiny_imagenet
from dotkd.recipes.row import Recipe

__all__ = ["RECIPES", "Recipe"]

RECIPES: dict[str, Recipe] = {
    "mnist1d": Recipe(small.MNIST1D, "a narrow 1-D ResNet learns MNIST-1D from a wide one; what `dotkd demo` trains"),
    "digits": Recipe(small.DIGITS, "a small perceptron learns scikit-learn's 8x8 digits from a larger one; seconds"),
    "imagefolder": Recipe(
        small.IMAGEFOLDER, "a narrow 2-D ResNet on your own small pictures: add data=imagefolder:PATH"
    ),
    **cifar100.RECIPES,
    **tiny_imagenet.RECIPES,
    **imagenet.RECIPES,
}
