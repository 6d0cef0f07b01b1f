"""Files encrypted where they lie, under a key that lies elsewhere; readable and writable at any offset.

A sealed file is 8 bytes of magic, 8 bytes that name the key, 16 random bytes, then AES-256 in counter mode over the
content: as many bytes as the content has, byte for byte at its place. Every file has a key of its own, derived from the
store's and the random bytes. Nothing here says whether bytes are the right ones: the SHA-256 that an artifact is named
after does. A file that begins with anything else is taken as it lies: stores from before stay readable.

Sources: NIST SP 800-38A, section 6.5 (counter mode, blocks counted from 0, big-endian); RFC 5869 (HKDF, SHA-256).
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from concilia_kit.problems import Unavailable

MAGIC = b"CNCSEAL1"
"""No safetensors file begins so: as a header's length this is far more than `tensorheader.MAX_HEADER`."""
OVERHEAD = 32
"""Bytes of a sealed file before its content."""

Bytes = bytes | bytearray | memoryview

_KEY, _ID, _SALT, _BLOCK = 32, 8, 16, 16  # bytes
_MOST_TEXT = 1024
_FEWEST_VALUES = 8  # of different bytes: 32 random ones have fewer in one of 10^36
_ZEROS = memoryview(bytes(_BLOCK))


class KeyFileError(Exception):
    """A key file that cannot be used; the message says what to do."""


class SealingKeyUnknown(Unavailable):
    """A stored file is sealed under a key that is not at hand. It is what it was: with the key it opens."""

    code = "sealing_key_unknown"


class StoreKey:
    """A store's key. `id` names it in the files that it seals, and says nothing of it."""

    __slots__ = ("_secret", "id")

    def __init__(self, secret: bytes) -> None:
        """Raises `ValueError` where these are not 32 bytes."""
        if len(secret) != _KEY:
            raise ValueError(f"a store's key has {_KEY} bytes, and not {len(secret)}")
        self._secret = secret
        self.id: bytes = _derived(secret, None, b"concilia store key id v1", _ID)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The key in a file: 32 random bytes as 64 hexadecimal digits, or base64url. Raises `KeyFileError`."""
        how = "make one with 'openssl rand -hex 32'"
        try:
            with path.open("rb") as file:
                text = file.read(_MOST_TEXT + 1).strip()
        except OSError as error:
            raise KeyFileError(f"the sealing key {path} cannot be read: {error.strerror}") from error
        try:
            secret = bytes.fromhex(text.decode("ascii")) if len(text) == 2 * _KEY else _from_base64url(text)
            if len(set(secret)) < _FEWEST_VALUES:
                raise KeyFileError(f"the sealing key {path} is not random; {how}")
            return cls(secret)
        except ValueError as error:
            raise KeyFileError(f"{path} holds no sealing key, which is 32 bytes in hex or base64url; {how}") from error

    @classmethod
    def new(cls) -> Self:
        """A random key."""
        return cls(secrets.token_bytes(_KEY))

    def seal(self, salt: bytes) -> Seal:
        """The seal of the file with this salt, 16 bytes."""
        return Seal(MAGIC + self.id + salt, _derived(self._secret, salt, b"concilia artifact v1", _KEY))


class Seal:
    """What one file is encrypted and decrypted with, which are the same. `header` is what the file begins with."""

    __slots__ = ("_key", "header")

    def __init__(self, header: bytes, key: bytes) -> None:
        self.header: bytes = header
        self._key: bytes = key

    @property
    def key_id(self) -> bytes:
        """Names the store's key."""
        return self.header[len(MAGIC) : len(MAGIC) + _ID]

    def at(self, offset: int) -> Callable[[Bytes], bytes]:
        """What turns content from `offset` on into what lies in the file, and back; called again, it goes on."""
        block, within = divmod(offset, _BLOCK)
        # CTR without an AEAD's tag on purpose: see docs/decisions/0033.
        cipher = Cipher(algorithms.AES(self._key), modes.CTR(block.to_bytes(_BLOCK, "big"))).encryptor()
        if within:
            cipher.update(_ZEROS[:within])
        return cipher.update


class Keyring:
    """The key that files are sealed with from now on, if there is one, and those that others may be sealed with."""

    __slots__ = ("_known", "current")

    def __init__(self, current: StoreKey | None = None, before: Iterable[StoreKey] = ()) -> None:
        self.current = current
        self._known: dict[bytes, StoreKey] = {
            key.id: key for key in (*before, *(() if current is None else (current,)))
        }

    @classmethod
    def read(cls, file: str, before: str = "") -> Self:
        """The key in a file (none where that is empty), and older ones in files listed with commas.

        Raises `KeyFileError`.
        """
        older = [StoreKey.read(Path(each.strip())) for each in before.split(",") if each.strip()]
        return cls(StoreKey.read(Path(file)) if file else None, older)

    def seal(self) -> Seal | None:
        """A new file's seal; None where files are not sealed."""
        return None if self.current is None else self.current.seal(secrets.token_bytes(_SALT))

    def of(self, prefix: bytes) -> Seal | None:
        """The seal of a file that begins with `prefix`, at least `OVERHEAD` bytes of it or all; None where it lies as
        it is. A header that is cut short is none. Raises `SealingKeyUnknown`."""
        if not is_sealed(prefix):
            return None
        key = self._known.get(prefix[len(MAGIC) : len(MAGIC) + _ID])
        if key is None:
            named = prefix[len(MAGIC) : len(MAGIC) + _ID].hex()
            raise SealingKeyUnknown(
                f"a stored file is sealed under key {named}, which is not at hand", extra={"key": named}
            )
        return key.seal(prefix[len(MAGIC) + _ID : OVERHEAD])

    def is_current(self, seal: Seal | None) -> bool:
        """Whether a file with this seal is as a new one would be; anything is where files are not sealed."""
        return self.current is None or (seal is not None and seal.key_id == self.current.id)


NO_KEYS = Keyring()
"""Files are not sealed; one that is cannot be read."""


def is_sealed(prefix: bytes) -> bool:
    """Whether a file that begins so, with at least `OVERHEAD` bytes of it or all, is sealed."""
    return len(prefix) >= OVERHEAD and prefix.startswith(MAGIC)


def _derived(secret: bytes, salt: bytes | None, info: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt, info).derive(secret)


def _from_base64url(text: bytes) -> bytes:
    digits = text.rstrip(b"=")
    return base64.b64decode(digits + b"=" * (-len(digits) % 4), altchars=b"-_", validate=True)
