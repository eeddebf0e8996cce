"""Two views of the same samples, weakly and strongly augmented: what the objectives on them share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dotkd.losses._divergence import prepare


class Views(NamedTuple):
    """Logits of one batch of N samples in two views, (N, C) each, in one dtype of at least float32."""

    student_weak: Tensor
    teacher_weak: Tensor
    student_strong: Tensor
    teacher_strong: Tensor


def prepare_views(
    student_weak: Tensor, teacher_weak: Tensor, student_strong: Tensor, teacher_strong: Tensor, temperature: float
) -> Views:
    """`prepare` for two views; leading axes are flattened into N samples. Raises as it does, and

    Raises:
        TypeError: logits of the strong view that are not floating point.
        ValueError: logits of the strong view of another shape than the weak view's.
    """
    weak = prepare(student_weak, teacher_weak, temperature)
    shape = tuple(student_weak.shape)
    for name, logits in (("student_strong", student_strong), ("teacher_strong", teacher_strong)):
        if not logits.is_floating_point():
            raise TypeError(f"expected floating-point `{name}`, got {logits.dtype}")
        if tuple(logits.shape) != shape:
            raise ValueError(f"expected `{name}` of the weak view's shape {shape}, got {tuple(logits.shape)}")
    strong = prepare(student_strong, teacher_strong, temperature)
    dtype = torch.promote_types(weak[0].dtype, strong[0].dtype)
    return Views(*(z.to(dtype).reshape(-1, shape[-1]) for z in (*weak, *strong)))
