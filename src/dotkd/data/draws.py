"""Random numbers as a function of (seed, purpose, epoch, batch) alone.

A generator is made anew for every draw, so that nothing has to be remembered between batches and a run that starts
late draws what it would have drawn. Streams of equal (seed, epoch, batch) but another purpose stay independent.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# What a generator is for. The numbers are part of every published result: none may change.
ORDER, VIEWS, STRONG_VIEWS, OPERATIONS, MIX, CHOICE = range(6)


def generator(seed: int, purpose: int, *key: int) -> torch.Generator:
    """A generator on the CPU whose draws depend on these numbers only; each is at least 0."""
    # SeedSequence is specified to give the same words everywhere and mixes neighbouring seeds well.
    word = np.random.SeedSequence(seed, spawn_key=(purpose, *key)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word))


def legacy_generator(seed: int, purpose: int, *key: int) -> np.random.RandomState:
    """The same for distributions that torch does not draw from a generator of its own, such as Beta.

    Its streams are the only ones that numpy promises never to change.
    """
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed, spawn_key=(purpose, *key))))


def numbers_of_views(index: Tensor, view: Tensor, count: int) -> Tensor:
    """(B, count) float64, uniform in [0, 1): what view `view` (B,) of sample `index` (B,) is made of, in every run.

    The numbers are hashes rather than drawn, so that those of one view need no generator of its own: the finalizer of
    SplitMix64 (Steele, Lea and Flood 2014, figure 15) of sample, view and position, one after the other.
    """
    words = _mixed(index.numpy().astype(np.uint64))
    words = _mixed(words + view.numpy().astype(np.uint64))[:, None]
    words = _mixed(words + np.arange(count, dtype=np.uint64))
    return torch.from_numpy((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
