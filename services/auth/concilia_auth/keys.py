"""The keys that sign access tokens: a directory of Ed25519 keys in PEM (PKCS8), shared by all replicas.

`<key id>.pem` is a key. The last private key by name signs; all are published. So to rotate, add a key whose name
sorts last (`openssl genpkey -algorithm ed25519 -out "$(date -u +%Y%m%dT%H%M%SZ).pem"`, mode 0600, moved in whole), and
remove the old one (or leave only its public half) once its last tokens have expired. Nothing needs a restart.

A new key signs some seconds after it was published, unless there is no other. Services fetch the keys for a token whose
key they do not know, and not more often than every five seconds, whatever they are sent: by the time that a key signs,
each of them may ask again, and nobody's request fails for it.

Source: RFC 8037 (Ed25519 as JWK), RFC 7517 (JSON Web Key Set).
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from jwt.algorithms import OKPAlgorithm

from concilia_auth.errors import KeyFileError

_NAME = re.compile(r"^([A-Za-z0-9][A-Za-z0-9_-]{0,63})\.pem$")
_MAX_FILE = 4096  # bytes; a key takes 119

SETTLE_SECONDS = 10.0
"""Twice the time in which a service asks for keys once (`TokenVerifier.refetch_seconds`)."""

_Fingerprint = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key and the id that tokens name it by (`kid`)."""

    id: str
    private: Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class KeySet:
    """What a directory held: the key that signs, and the JSON Web Key Set of all; and until when (Unix seconds) it is
    that key."""

    signing: SigningKey
    published: dict[str, Any]
    until: float = float("inf")


class KeyRing:
    """The keys of a directory, read again whenever the directory changed. A key signs once it lies there for
    `settle_seconds`, unless there is no other."""

    def __init__(self, directory: Path, settle_seconds: float = 0.0, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._settle_seconds = settle_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: _Fingerprint = ()
        self._keys: KeySet | None = None

    def current(self) -> KeySet:
        """The keys as they are now. Raises `KeyFileError` where the directory has no usable key."""
        with self._lock:
            try:
                seen = _fingerprint(self._directory)
                now = self._clock()
                if self._keys is None or seen != self._seen or now >= self._keys.until:
                    self._keys, self._seen = read(self._directory, now, self._settle_seconds), seen
            except KeyFileError:
                # A key being copied in, or one that is broken, must not stop the service that runs with the others.
                if self._keys is None:
                    raise
            return self._keys


def ensure(directory: Path, now: datetime) -> None:
    """Make a first key where the directory has none. Of replicas that start together, one makes it.

    Raises `KeyFileError` where the directory cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _fingerprint(directory):
            return
        with (directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel, however this process ends
            if not _fingerprint(directory):
                create(directory, f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}")
    except OSError as error:
        raise KeyFileError(f"{directory} cannot hold signing keys: {error.strerror}") from error


def create(directory: Path, key_id: str) -> None:
    """Write a new private key, readable by its owner only, whole or not at all. Raises `OSError`."""
    text = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor, name = tempfile.mkstemp(dir=directory, prefix=".new-")  # mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(directory / f"{key_id}.pem")
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(directory: Path, now: float = float("inf"), settle_seconds: float = 0.0) -> KeySet:
    """The keys of a directory as they are to be used at a moment (Unix seconds), by default some time from now.

    Raises `KeyFileError` for an unreadable key, and where none can sign.
    """
    private: list[tuple[float, SigningKey]] = []
    published = []
    for name, _, _, came in _fingerprint(directory):
        key_id = name.removesuffix(".pem")
        key = _load(directory / name)
        if isinstance(key, Ed25519PrivateKey):
            private.append((came / 1e9 + settle_seconds, SigningKey(key_id, key)))
        public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
        entry: dict[str, Any] = OKPAlgorithm.to_jwk(public, as_dict=True)
        published.append({**entry, "kid": key_id, "use": "sig", "alg": "EdDSA"})
    if not private:
        raise KeyFileError(f"{directory} has no private key '<key id>.pem'")
    settled = [key for at, key in private if at <= now]
    signing = settled[-1] if settled else min(private, key=lambda each: each[0])[1]  # names ascend
    return KeySet(signing, {"keys": published}, min((at for at, _ in private if at > now), default=float("inf")))


def _fingerprint(directory: Path) -> _Fingerprint:
    """Name, inode, and times of its last change and of when it came here (ns) of every key file, by name."""
    try:
        files = [(path.name, path.stat()) for path in directory.iterdir() if _NAME.match(path.name)]
    except OSError as error:
        raise KeyFileError(f"{directory} cannot be read: {error.strerror}") from error
    # The time of a file's last change of state is also that of its being moved in; no tool sets it back.
    return tuple(sorted((name, status.st_ino, status.st_mtime_ns, status.st_ctime_ns) for name, status in files))


def _load(path: Path) -> Ed25519PrivateKey | Ed25519PublicKey:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE)
        key = load_pem_public_key(text) if b"PUBLIC KEY" in text else load_pem_private_key(text, password=None)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} is no unencrypted Ed25519 key in PEM") from error
    if not isinstance(key, (Ed25519PrivateKey, Ed25519PublicKey)):
        raise KeyFileError(f"{path} is no Ed25519 key")
    return key
