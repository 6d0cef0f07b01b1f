"""Random numbers that nobody can know beforehand or find out afterwards, for privacy: who knew the noise could take it
off again, and who knew the sample would know who was not in it.

They are the keystream of AES-256 in counter mode under a key from the system, for each training anew. torch's own
generators are no use: of whatever seed they are given, 32 bits count, which can be tried out. Never from a task's seed.
"""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt
from concilia_kit import gaussians
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_BLOCK = 2**18
"""Random numbers made at a time: some megabytes."""
Floats = npt.NDArray[np.float64]


class SecretRandomness:
    """One training's. Not for several threads at a time."""

    def __init__(self) -> None:
        cipher = Cipher(algorithms.AES(secrets.token_bytes(gaussians.KEY_BYTES)), modes.CTR(bytes(16)))
        self._stream = cipher.encryptor()

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """So many numbers, each as likely as another."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), np.uint64)

    def uniforms(self, count: int) -> Floats:
        """In [0, 1), multiples of 2^-53."""
        return gaussians.uniforms(self.words(count))

    def seed(self) -> int:
        """A seed of 63 bits."""
        return int(self.words(1)[0] >> np.uint64(1))

    def gaussians(self, count: int) -> Floats:
        """Independent, of mean 0 and variance 1: each half the sum of four by Box and Muller (1958), so that the places
        which float64 has for a single one do not tell what it was added to (Holohan and Braghin, "Secure Random
        Sampling in Differential Privacy", ESORICS 2021)."""
        found = np.empty(count)
        for start in range(0, count, _BLOCK):
            part = found[start : start + _BLOCK]
            np.multiply(self._of_two(len(part)) + self._of_two(len(part)), 0.5, out=part)
        return found

    def _of_two(self, count: int) -> Floats:
        """Sums of two that are independent: one pair's. By NumPy's functions, which are twice as quick as those of
        `concilia_kit.gaussians`: nobody is to make these again."""
        radius = np.sqrt(-2 * np.log1p(-self.uniforms(count)))
        angle = 2 * np.pi * self.uniforms(count)
        return np.asarray(radius * (np.cos(angle) + np.sin(angle)))
