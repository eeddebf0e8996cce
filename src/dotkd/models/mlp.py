"""A plain multi-layer perceptron, for inputs of any shape."""

from __future__ import annotations

import math

from torch import Tensor, nn

from dotkd.models.arguments import check_shape, check_whole
from dotkd.models.norms import Norm, check_norm, make_norm


class MLP(nn.Module):
    """Flatten, then `depth` times (linear, norm, ReLU), then a linear head.

    Child modules, for whoever hooks features: `hidden.0` ... `hidden.{depth-1}`, each (N, width), and `head`.
    """

    feature_points: tuple[str, ...]

    def __init__(self, features: int, num_classes: int, *, width: int, depth: int, norm: Norm) -> None:
        super().__init__()
        self.feature_points = tuple(f"hidden.{index}" for index in range(depth))
        self.hidden = nn.Sequential()
        for _ in range(depth):
            # A norm layer brings its own shift, which makes the linear layer's redundant.
            linear = nn.Linear(features, width, bias=norm == "none")
            # He et al. (arXiv 1502.01852, equation 10): the variance that keeps ReLU activations at one
            # scale.
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            self.hidden.append(nn.Sequential(linear, make_norm(norm, width, dims=0), nn.ReLU()))
            features = width
        self.head = nn.Linear(features, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of inputs (N, ...)."""
        return self.head(self.hidden(inputs.flatten(1)))


def mlp(
    *, num_classes: int, input_shape: tuple[int, ...], width: int = 64, depth: int = 2, norm: Norm = "batch"
) -> MLP:
    """Return a perceptron for inputs of any shape.

    Args:
        num_classes: width of the output.
        input_shape: shape of one input without the batch dimension; it is flattened.
        width: units in each hidden layer.
        depth: number of hidden layers; 0 gives a linear classifier.
        norm: "batch", "group" or "none".

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of its range.
    """
    check_norm(norm)
    return MLP(
        math.prod(check_shape(input_shape)),
        check_whole("num_classes", num_classes, least=1),
        width=check_whole("width", width, least=1),
        depth=check_whole("depth", depth, least=0),
        norm=norm,
    )
