"""Optimizers in which each named loss keeps a momentum of its own. This package imports torch alone."""

from dotkd.optim.dot import DOT
from dotkd.optim.dot_adamw import DOTAdamW, StreamAdamW
from dotkd.optim.stream_sgd import StreamSGD
from dotkd.optim.streams import StreamOptimizer

__all__ = ["DOT", "DOTAdamW", "StreamAdamW", "StreamOptimizer", "StreamSGD"]
