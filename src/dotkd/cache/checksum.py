"""A checksum of many records at once.

With the bytes of a record taken as 32-bit words w_1 ... w_n, its place p and fixed odd 64-bit numbers a_0 ... a_n,

    h = a_0 (p + 1) + a_1 w_1 + ... + a_n w_n    modulo 2^64,

the multilinear hash of Lemire and Kaser (arXiv 1202.4961, section 2), all 64 bits of it. Odd numbers have an inverse
modulo 2^64, so a change within one word always changes h, and any other one is missed once in 2^32 or less often.
Zeros, which a hole in a file reads as, have h = a_0 (p + 1), never 0; a record in another's place does not pass either.
One product of a matrix and a vector: zlib.crc32 would be a call for each record.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SEED = 20230708436  # of the numbers a; part of the format


class Checksum:
    """Checksums of records of `size` bytes, a multiple of 4."""

    def __init__(self, size: int) -> None:
        # SeedSequence gives the same words everywhere.
        words = np.random.SeedSequence(_SEED).generate_state(size // 4 + 1, np.uint64)
        self._factors = words | np.uint64(1)

    def __call__(self, payload: npt.NDArray[np.uint8], places: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """(B,) for payload (B, size) and places (B,), the numbers of the records."""
        words = np.ascontiguousarray(payload).view("<u4").astype(np.uint64)
        return words @ self._factors[1:] + (places.astype(np.uint64) + np.uint64(1)) * self._factors[0]
