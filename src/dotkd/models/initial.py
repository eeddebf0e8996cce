"""The first weights of convolutional networks after He et al. (arXiv 1502.01852)."""

from __future__ import annotations

from torch import nn


def he_convolutions(model: nn.Module) -> None:
    """Draw every convolution of `model` from N(0, 2 / (k^d out)), its bias from 0 (He et al., equation 14).

    k is the kernel's width, d the number of dimensions (1 or 2) and `out` the number of filters: the variance that
    keeps the size of the gradients on their way back. A depthwise convolution counts all filters, as the published
    code of these networks does, though only one of them meets each channel. Normalisation layers start, as torch's
    own do, from 1 and 0.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_linear(layer: nn.Linear) -> None:
    """Draw a classifier's weights from N(0, 0.01^2), its bias from 0: all classes start about equally likely."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
