"""Distillation methods by name: the objectives on logits of `dotkd.losses`, and those that look at features.

A feature method is an `nn.Module`, one file each. It is built as `Method(student_anatomy, teacher_anatomy, **options)`
and called as `method(student_activations, teacher_activations)`; constructor and call are also given whatever their
signatures name of

    targets (M,) int64: the labels of the training split (constructor)
    target (B,) int64: labels of the batch        index (B,) int64: its positions in the training split
    progress: share of the training that is done, in [0, 1)

What it needs of a model besides the logits, its `card` says, or in a class of your own the attribute `needs`.
It returns one loss, or several by name, of which `card.streams` tells the stream. Its parameters are trained by the
optimizer that trains the student.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from dotkd.methods.card import Card
from dotkd.methods.logits import LOGIT_CARDS

__all__ = ["GIVEN", "METHODS", "Card", "card_of", "find"]

# What a method is given by the run, where its signature names it; its other keywords are options.
GIVEN = ("target", "targets", "student_strong", "teacher_strong", "index", "progress", "mask", "temperature")

# Name -> where it is. Imported when asked for.
METHODS: dict[str, str] = {name: f"dotkd.losses:{name}" for name in LOGIT_CARDS} | {
    "fitnet": "dotkd.methods.fitnet:FitNet",
    "at": "dotkd.methods.attention:AT",
    "nst": "dotkd.methods.nst:NST",
    "pkt": "dotkd.methods.pkt:PKT",
    "kdsvd": "dotkd.methods.kdsvd:KDSVD",
    "ofd": "dotkd.methods.ofd:OFD",
    "rkd": "dotkd.methods.rkd:RKD",
    "vid": "dotkd.methods.vid:VID",
    "sp": "dotkd.methods.sp:SP",
    "crd": "dotkd.methods.crd:CRD",
    "reviewkd": "dotkd.methods.reviewkd:ReviewKD",
    "ickd": "dotkd.methods.ickd:ICKD",
    "srrl": "dotkd.methods.srrl:SRRL",
    "corsd": "dotkd.methods.corsd:CORSD",
}


def find(name: str) -> Callable[..., Any]:
    """The function or class that a name of `METHODS` stands for."""
    module, _, attribute = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def card_of(name: str) -> Card:
    """The card of a name of `METHODS`."""
    return LOGIT_CARDS[name] if name in LOGIT_CARDS else find(name).card  # pyright: ignore[reportFunctionMemberAccess]
