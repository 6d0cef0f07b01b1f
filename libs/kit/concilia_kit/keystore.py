"""Encrypted private keys on disk: Web3 Secret Storage, version 3 ("keystore v3").

A key lies on its owner's volume, encrypted; its password comes from a second file, never from the environment.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from pathlib import Path

from eth_account import Account
from eth_account.signers.local import LocalAccount


class KeystoreError(Exception):
    """A keystore that cannot be used; the message says what to do."""


def create(keystore: Path, password_file: Path) -> LocalAccount:
    """Make a new key under a new random password, both readable by their owner only.

    Raises `KeystoreError` where either file exists: a key is never overwritten.
    """
    for path in (keystore, password_file):
        if path.exists():
            raise KeystoreError(f"{path} exists and is not overwritten; move it away first")
    account: LocalAccount = Account.create()
    password = secrets.token_urlsafe(32)
    _write_private(password_file, password)
    _write_private(keystore, json.dumps(Account.encrypt(account.key, password)))
    return account


def load(keystore: Path, password_file: Path) -> LocalAccount:
    """Decrypt a key. Raises `KeystoreError` for a missing or malformed file and a wrong password."""
    try:
        encrypted = json.loads(keystore.read_text())
        password = password_file.read_text().rstrip("\n")
    except FileNotFoundError as error:
        raise KeystoreError(f"{error.filename} is missing; create it with 'concilia key create'") from error
    except (OSError, ValueError) as error:
        raise KeystoreError(f"{keystore} cannot be read as a keystore: {error}") from error
    try:
        account: LocalAccount = Account.from_key(Account.decrypt(encrypted, password))
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise KeystoreError(f"{keystore} does not open with the password in {password_file}") from error
    return account


def ensure(keystore: Path, password_file: Path) -> LocalAccount:
    """Load a key, or create it where there is none yet. Raises `KeystoreError`."""
    return load(keystore, password_file) if keystore.exists() else create(keystore, password_file)


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A temporary file and a rename: a crash leaves the whole key or none.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)
