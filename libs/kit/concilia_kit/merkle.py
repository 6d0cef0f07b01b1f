"""The Merkle tree in which a round's signed updates are committed: root, inclusion proofs, verification.

Source: RFC 9162 (Certificate Transparency 2.0), section 2.1, with SHA-256; the same trees as RFC 6962's. A leaf is
`SHA-256(0x00 || data)`, a node `SHA-256(0x01 || left || right)`, so that neither can be taken for the other. The
contract (`contracts/src/InclusionProof.sol`) verifies the same proofs.

A root does not say how many leaves are under it; that count is part of the commitment and must come from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

from concilia_kit.signing import Domain, Update, signed_hash

HASH_SIZE = 32
MOST_LEAVES = 2**32 - 1
"""The contract counts leaves in 32 bits."""


def leaf(data: bytes) -> bytes:
    """The hash of a leaf with these data; 32 bytes. Source: RFC 9162, 2.1.1."""
    return sha256(b"\x00" + data).digest()


def node(left: bytes, right: bytes) -> bytes:
    """The hash of a node over two hashes; 32 bytes. Source: RFC 9162, 2.1.1."""
    return sha256(b"\x01" + left + right).digest()


def update_data(update: Update, domain: Domain, signature: str) -> bytes:
    """A signed update as the data of its leaf: its EIP-712 digest (32 bytes), then the signature's bytes.

    Leaves stand in ascending order of hospital address, as `digests.in_order` orders contributions.
    Raises `ValueError` where the signature is no hexadecimal.
    """
    return signed_hash(update, domain) + bytes.fromhex(signature.removeprefix("0x"))


def root(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes, read once and never held: memory grows with the logarithm of their number.

    Source: RFC 9162, 2.1.1 (the hash of nothing is SHA-256 of the empty string) and 2.1.2.
    """
    perfect: list[bytes] = []  # roots of perfect subtrees, largest first: one for each bit of the number read so far
    for number, each in enumerate(leaves):
        last = each
        while number & 1:  # a subtree of the same size stands to the left
            last = node(perfect.pop(), last)
            number >>= 1
        perfect.append(last)
    if not perfect:
        return sha256(b"").digest()
    over = perfect.pop()
    while perfect:
        over = node(perfect.pop(), over)
    return over


class Tree:
    """All hashes of a tree, for many proofs: 64 bytes a leaf, a proof in logarithmic time.

    Built from below: a node over each pair, and a hash without a partner goes up as it is. That is the RFC's tree,
    which splits n leaves at the largest power of two below n.
    """

    def __init__(self, leaves: Iterable[bytes]) -> None:
        self._levels = [list(leaves)]
        while len(below := self._levels[-1]) > 1:
            above = [node(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)]
            self._levels.append(above + below[len(above) * 2 :])

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def root(self) -> bytes:
        """The root; SHA-256 of the empty string for a tree without leaves."""
        return self._levels[-1][0] if len(self) else sha256(b"").digest()

    def proof(self, index: int) -> list[bytes]:
        """The inclusion proof of a leaf, from its sibling upwards; RFC 9162, 2.1.3.1. Raises `IndexError`."""
        if not 0 <= index < len(self):
            raise IndexError(f"no leaf {index} among {len(self)}")
        path = []
        for level in self._levels[:-1]:
            if (sibling := index ^ 1) < len(level):
                path.append(level[sibling])
            index >>= 1
        return path


def verify(leaf_hash: bytes, index: int, count: int, proof: Sequence[bytes], root_hash: bytes) -> bool:
    """Whether the leaf stands at `index` of the `count` leaves under the root; RFC 9162, 2.1.3.2, step by step.

    `count` must be the one that was committed with the root: the algorithm accepts every count under which the leaf's
    way to the root is the same. False, never an exception, for whatever bytes and numbers are given.
    """
    if not 0 <= index < count or any(len(each) != HASH_SIZE for each in (leaf_hash, root_hash, *proof)):
        return False
    fn, sn, r = index, count - 1, leaf_hash
    for p in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = node(p, r)
            while not fn & 1 and fn != 0:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node(r, p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root_hash
