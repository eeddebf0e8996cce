"""How far a model's confidence is from its accuracy: the expected calibration error.

The confidence of sample n is the probability of the class that the model predicts for it, p_n = max_c softmax(z_n)_c
with logits z_n, and h_n is 1 where that class is right, else 0. The confidences are sorted into M bins of equal width,
B_m = ((m - 1) / M, m / M]. With N samples

    ECE = sum_m |B_m| / N |accuracy(B_m) - confidence(B_m)| = 1 / N sum_m | sum_{n in B_m} (h_n - p_n) |

(Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, equation 3; M = 15 as there). It is 0 where
every confidence is kept, and at most 1. It is an estimate that few samples a bin push upwards: compare equal N.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 15


def calibration_error(logits: Tensor, targets: Tensor) -> Tensor:
    """The expected calibration error of logits (N, C) for classes (N,), on their device; shape (), in [0, 1]."""
    wide = logits.float() if logits.device.type == "mps" else logits.double()
    confidence, predicted = wide.softmax(1).max(1)
    inner = torch.arange(1, BINS, dtype=wide.dtype, device=wide.device) / BINS
    bins = torch.bucketize(confidence, inner)  # a confidence on an edge belongs to the bin below it
    # A product rather than index_add, which adds in an order of its own on a GPU.
    member = bins[:, None] == torch.arange(BINS, device=wide.device)
    return ((predicted == targets).to(wide.dtype) - confidence).matmul(member.to(wide.dtype)).abs().sum() / len(targets)
