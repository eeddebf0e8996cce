"""Distillation objectives: pure functions of student and teacher logits, one objective a file.

Each is called as `loss(student_logits, teacher_logits, [target], *, temperature, ...)` and returns a scalar
tensor, or a dictionary of them where its parts belong to gradient streams of their own. `LOSSES` names them.

What else an objective needs it takes by these names: `target` (class indices), `student_strong` and
`teacher_strong` (logits of a second, strongly augmented view of the same samples), `mask` (which tokens count)
and `progress` (the share of training that is done).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dotkd.losses.adakd import TokenFocus, adakd
from dotkd.losses.crld import crld
from dotkd.losses.deepkd import deepkd
from dotkd.losses.dist import dist
from dotkd.losses.dkd import dkd
from dotkd.losses.jsd import jsd
from dotkd.losses.kd import kd
from dotkd.losses.logit_standardisation import ls_kd, standardise
from dotkd.losses.mlkd import mlkd
from dotkd.losses.nkd import nkd

LOSSES: dict[str, Callable[..., Tensor | dict[str, Tensor]]] = {
    "kd": kd,
    "dkd": dkd,
    "jsd": jsd,
    "dist": dist,
    "ls_kd": ls_kd,
    "nkd": nkd,
    "mlkd": mlkd,
    "crld": crld,
    "deepkd": deepkd,
    "adakd": adakd,
}

__all__ = [
    "LOSSES",
    "TokenFocus",
    "adakd",
    "crld",
    "deepkd",
    "dist",
    "dkd",
    "jsd",
    "kd",
    "ls_kd",
    "mlkd",
    "nkd",
    "standardise",
]
