"""Gaussian random numbers from random words, the same on every machine to the last bit.

A number is half the sum of four by Box and Muller (1958), so that the places which float64 has for a single one do not
tell what it was added to (Holohan and Braghin, "Secure Random Sampling in Differential Privacy", ESORICS 2021). Its
logarithm, cosine and sine are made here of additions, multiplications, divisions and square roots, each of which IEEE
754 rounds in one way: those of C libraries and of NumPy differ in the last place from one machine to the next, and who
makes noise again must get its very bytes.

How far the numbers are from what they stand for, in distribution, is about 2^-53 each: of words of 64 bits 53 count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

WORDS = 4
"""Words of 64 bits that a number takes."""
KEY_BYTES = 32

_BLOCKS = 8 * WORDS // 16  # of AES, a number
_PIECE = 1 << 14  # numbers at a time: with what goes into them they stay in the processor's second cache
_LN2 = 0.6931471805599453  # written out, for the reason above
_ROOT_HALF = math.sqrt(0.5)
_LOG = [1 / (2 * k + 1) for k in range(11)]
"""Of `atanh(s) / s` by powers of `s**2`, which is 0.0295 at most: what is left out is below 2^-60."""
_SINE = [(-1) ** k / math.factorial(2 * k + 1) for k in range(9)]
_COSINE = [(-1) ** k / math.factorial(2 * k) for k in range(10)]
"""By powers of a square that is 0.617 at most: likewise."""

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]


def uniforms(words: npt.NDArray[Any]) -> Floats:
    """Of each word a number in [0, 1), a multiple of 2^-53."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def gaussians(words: npt.NDArray[Any]) -> Floats:
    """Independent numbers of mean 0 and variance 1, each of `WORDS` words one after another."""
    rows = words.reshape(-1, WORDS)
    found = np.empty(len(rows))
    for start in range(0, len(rows), _PIECE):
        part = rows[start : start + _PIECE]
        first, second = (_of_two(uniforms(part[:, at]), uniforms(part[:, at + 1])) for at in (0, 2))
        np.multiply(first + second, 0.5, out=found[start : start + _PIECE])
    return found


def keyed(key: bytes, start: int, count: int) -> Floats:
    """Numbers `start` to `start + count` of those that a key stands for: of the keystream of AES-256 in counter mode,
    counted from 0 without a nonce, two blocks a number, words little-endian (NIST SP 800-38A, section 6.5). A key is
    for one use only. Safe to call from several threads."""
    counter = (_BLOCKS * start).to_bytes(16, "big")
    # CTR without an AEAD's tag on purpose: nothing is encrypted, the keystream is the random numbers.
    stream = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
    found = np.empty(count)
    for at in range(0, count, _PIECE):
        part = found[at : at + _PIECE]
        part[:] = gaussians(np.frombuffer(stream.update(bytes(8 * WORDS * part.size)), "<u8"))
    return found


def _of_two(chance: Floats, turn: Floats) -> Floats:
    """Sums of two that are independent: one pair's. `turn` is the angle, in whole turns."""
    radius = np.sqrt(-2.0 * _log(1.0 - chance))  # what is subtracted from 1 leaves no rest
    quarter = np.floor(4.0 * turn + 0.5)
    angle = (4.0 * turn - quarter) * (math.pi / 2)  # an eighth of a turn at most, to either side of a quarter
    square = angle * angle
    sine, cosine = angle * _series(square, _SINE), _series(square, _COSINE)
    which = quarter.astype(np.int64)
    # A quarter on, cosine and sine are -sine and cosine: their sum is cosine - sine; half a turn on, it is less itself.
    total = cosine + np.where(which & 1, -sine, sine)
    return np.asarray(radius * np.where(which & 2, -total, total))


def _log(values: Floats) -> Floats:
    """Natural logarithms of numbers above 0."""
    fraction, exponent = np.frexp(values)
    small = fraction < _ROOT_HALF
    fraction = np.where(small, 2.0 * fraction, fraction)
    s = (fraction - 1.0) / (fraction + 1.0)
    return np.asarray((exponent - small) * _LN2 + 2.0 * s * _series(s * s, _LOG))


def _series(x: Floats, coefficients: Sequence[float]) -> Floats:
    """A polynomial, by Horner's rule, the coefficient of the lowest power first."""
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total *= x
        total += coefficient
    return total
