"""Masks: words of 32 bits, the keystream of AES-256 in counter mode, word k of which goes onto element k of an update,
counted over all its floating tensors in the order of their names.

A key is of one pair, or one member, and one round, and its keystream is never used for anything else: blocks are
counted from 0, without a nonce. Words are little-endian.

Source: NIST SP 800-38A, section 6.5.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_BLOCK = 16  # bytes
_WORDS = _BLOCK // 4
_PIECE = 1 << 16
"""Words of keystream at a time: with what they go onto they stay in the processor's second cache."""
_ZEROS = memoryview(bytes(4 * _PIECE))

Words = npt.NDArray[Any]


class Mask(NamedTuple):
    """A key of 32 bytes, of one pair or member and one round only, and whether its words are added (1) or subtracted
    (-1)."""

    key: bytes
    sign: int


class _Own(threading.local):
    """A thread's room for keystream, which lies in its processor's cache while it is used again."""

    def __init__(self) -> None:
        self.room = np.empty(4 * _PIECE + 2 * _BLOCK, np.uint8)


_own = _Own()


def apply(words: Words, start: int, masks: Iterable[Mask], *, off: bool = False) -> None:
    """Put masks onto `words` (int32 or uint32, one-dimensional, contiguous), the first of which is element `start`, in
    place, modulo 2**32; with `off` take them off. Safe to call from several threads."""
    Stream(masks, start, off=off).onto(words)


class Stream:
    """Several masks, from element `start` on; goes on where it was. Used by one thread."""

    def __init__(self, masks: Iterable[Mask], start: int = 0, *, off: bool = False) -> None:
        self._each = [((each.sign > 0) != off, _cipher(each.key, start)) for each in masks]
        self._room = _own.room

    def onto(self, words: Words) -> None:
        """Put the next words of all masks onto these, in place."""
        unsigned, room = words.view(np.uint32), self._room
        for at in range(0, unsigned.size, _PIECE):
            piece = unsigned[at : at + _PIECE]
            size = piece.nbytes
            zeros, into, mask = _ZEROS[:size], room.data[: size + _BLOCK - 1], room[:size].view("<u4")
            for is_added, update_into in self._each:
                update_into(zeros, into)
                (np.add if is_added else np.subtract)(piece, mask, out=piece)


def _cipher(key: bytes, start: int) -> Callable[[memoryview, memoryview], int]:
    """What writes the words from `start` on into a buffer, as many as it is given zeros for, and goes on."""
    block, within = divmod(start, _WORDS)
    # CTR without an AEAD's tag on purpose: the words are added to an update, whose digest its hospital signs.
    cipher = Cipher(algorithms.AES(key), modes.CTR(block.to_bytes(_BLOCK, "big"))).encryptor()
    if within:
        cipher.update(_ZEROS[: 4 * within].tobytes())
    return cipher.update_into
