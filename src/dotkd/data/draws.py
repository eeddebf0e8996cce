"""Random numbers as a function of (seed, purpose, epoch, batch) alone.

A generator is made anew for every draw, so that nothing has to be remembered between batches and a run that starts
late draws what it would have drawn. Streams of equal (seed, epoch, batch) but another purpose stay independent.
"""

from __future__ import annotations

import numpy as np
import torch

# What a generator is for. The numbers are part of every published result: none may change.
ORDER, VIEWS, STRONG_VIEWS, OPERATIONS, MIX = range(5)


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
