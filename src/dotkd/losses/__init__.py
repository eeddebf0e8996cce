"""Distillation objectives: pure functions of student and teacher logits, one objective a file.

Each is called as `loss(student_logits, teacher_logits, [target], *, temperature, ...)` and returns a scalar
tensor: the mean over the samples times temperature squared. `LOSSES` names them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dotkd.losses.dkd import dkd
from dotkd.losses.jsd import jsd
from dotkd.losses.kd import kd

LOSSES: dict[str, Callable[..., Tensor]] = {"kd": kd, "dkd": dkd, "jsd": jsd}

__all__ = ["LOSSES", "dkd", "jsd", "kd"]
