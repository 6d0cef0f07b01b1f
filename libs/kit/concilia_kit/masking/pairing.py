"""A member's secrets of one round, and the keys that come of them.

X25519 (RFC 7748), HKDF with SHA-256 (RFC 5869) and ChaCha20-Poly1305 (RFC 8439), all of the `cryptography` library.
Every key is bound to what it is for by a name, and to the round by the roster's digest.
"""

from __future__ import annotations

import hashlib
import secrets as system
from collections.abc import Callable
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from concilia_kit.masking.errors import MaskingError
from concilia_kit.masking.shares import BYTES
from concilia_kit.wire.base import Wire
from concilia_kit.wire.masking import Key, MaskingKeys, Seed

_KEY, _NONCE = 32, 12
_MASKING, _SEALING = b"concilia masking key v1", b"concilia masking sealing key v1"
_PAIR, _SELF = b"concilia masking pair v1", b"concilia masking self v1"
_PARCEL, _SHARING = b"concilia masking parcel v1", b"concilia masking sharing v1"
_PROBE = X25519PrivateKey.from_private_bytes(hashlib.sha256(b"concilia masking probe v1").digest())


class Secrets(Wire):
    """What a hospital's node keeps of one round (on its own disk only, mode 0600), made anew for it.

    `mask`: seed of the self-mask. `key`: seed of the masking key. Shares of these two are handed out. `sealing`: seed
    of the sealing key. `sharing`: what the shares' polynomials and parcels' nonces are drawn from, so that a node that
    was killed hands out the same parcels again, byte for byte.
    """

    mask: Seed
    key: Seed
    sealing: Key
    sharing: Key

    @classmethod
    def new(cls) -> Self:
        """Fresh ones of the system's randomness."""
        return cls(
            mask=system.token_hex(16),
            key=system.token_hex(16),
            sealing=system.token_hex(32),
            sharing=system.token_hex(32),
        )

    def __repr__(self) -> str:
        return "Secrets(…)"  # for no log

    __str__ = __repr__

    def sealing_key(self) -> X25519PrivateKey:
        """What parcels for this node are sealed to."""
        return private_key(bytes.fromhex(self.sealing), _SEALING)

    def masking_key(self) -> X25519PrivateKey:
        """What pairwise masks come from."""
        return masking_key(self.key)

    def random(self, roster: str) -> Callable[[int], bytes]:
        """Random bytes for one roster's shares and parcels: always the same ones in the same order."""
        key = _derived(bytes.fromhex(self.sharing), roster, _SHARING)
        drawn = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        return lambda count: drawn.update(bytes(count))


def private_key(seed: bytes, name: bytes) -> X25519PrivateKey:
    """A private key that follows from a seed."""
    return X25519PrivateKey.from_private_bytes(HKDF(SHA256(), _KEY, None, name).derive(seed))


def masking_key(seed: Seed) -> X25519PrivateKey:
    """The private masking key of a seed."""
    return private_key(bytes.fromhex(seed), _MASKING)


def public(key: X25519PrivateKey) -> Key:
    """The public key of a private one."""
    return key.public_key().public_bytes_raw().hex()


def commitment(seed: Seed) -> Key:
    """What a member says of its self-mask's seed beforehand: SHA-256 of its 16 bytes."""
    return hashlib.sha256(bytes.fromhex(seed)).hexdigest()


def self_key(seed: Seed, roster: str) -> bytes:
    """The keystream's key of a self-mask; `roster` is the roster's digest, here and below."""
    return _derived(bytes.fromhex(seed), roster, _SELF)


def pair_key(own: X25519PrivateKey, theirs: Key, roster: str) -> bytes:
    """The keystream's key of a pair, the same from either side. Raises `MaskingError` for a point of low order."""
    ends = sorted((own.public_key().public_bytes_raw(), bytes.fromhex(theirs)))
    return _derived(_exchanged(own, theirs), roster, _PAIR + b"".join(ends))


def seal(own: X25519PrivateKey, theirs: Key, roster: str, nonce: bytes, content: bytes) -> str:
    """Two shares sealed from the owner of one sealing key to the other's, as `wire.masking.Sealed`.

    The key is of this direction and this roster alone, and seals once.
    """
    sender, recipient = own.public_key().public_bytes_raw(), bytes.fromhex(theirs)
    key = _derived(_exchanged(own, theirs), roster, _PARCEL + sender + recipient)
    return (nonce + ChaCha20Poly1305(key).encrypt(nonce, content, bytes.fromhex(roster))).hex()


def open_parcel(own: X25519PrivateKey, theirs: Key, roster: str, sealed: str) -> tuple[bytes, bytes]:
    """The two shares that somebody sealed to the owner of `own`. Raises `MaskingError` where they were changed, are
    somebody else's or of another roster."""
    sender, recipient = bytes.fromhex(theirs), own.public_key().public_bytes_raw()
    key = _derived(_exchanged(own, theirs), roster, _PARCEL + sender + recipient)
    raw = bytes.fromhex(sealed)
    try:
        content = ChaCha20Poly1305(key).decrypt(raw[:_NONCE], raw[_NONCE:], bytes.fromhex(roster))
    except InvalidTag as error:
        raise MaskingError("a parcel does not open") from error
    if len(content) != 2 * BYTES:
        raise MaskingError("a parcel does not hold two shares")
    return content[:BYTES], content[BYTES:]


def nonce(random: Callable[[int], bytes]) -> bytes:
    """12 bytes."""
    return random(_NONCE)


def check_points(keys: MaskingKeys) -> None:
    """Raises `MaskingError` where a public key is of low order: all secrets with it would be known to everybody."""
    for each in (keys.sealing, keys.masking):
        _exchanged(_PROBE, each)


def _exchanged(own: X25519PrivateKey, theirs: Key) -> bytes:
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(theirs)))
    except ValueError as error:  # the shared secret is all zeros (RFC 7748, section 6.1)
        raise MaskingError("a public key is of low order") from error


def _derived(secret: bytes, roster: str, name: bytes) -> bytes:
    return HKDF(SHA256(), _KEY, bytes.fromhex(roster), name).derive(secret)
