"""Where a consortium is and as whom to speak: one small JSON file, and the clients made from it."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path
from typing import Self

import httpx
from concilia_kit import http, keystore
from concilia_kit.wire.auth import Audience
from eth_account.signers.local import LocalAccount
from pydantic import BaseModel, ConfigDict, ValidationError


class UsageError(Exception):
    """Something the caller can put right; the message says how. Exit code 2."""


class Endpoints(BaseModel):
    """The services' addresses and the caller's key, as `concilia.json` holds them.

    Relative paths are relative to the file's folder. `ca_file` holds the authorities that vouch for the addresses, in
    PEM; without it the public ones do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    auth_url: str
    model_url: str
    chain_url: str
    aggregator_url: str
    keystore: Path
    password_file: Path
    ca_file: Path | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises `UsageError`."""
        try:
            found = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise UsageError(
                f"{path} is missing: name a connection file with --config or CONCILIA_CONFIG "
                "('make demo KEEP=1' writes var/demo/concilia.json)"
            ) from error
        except (OSError, ValidationError) as error:
            raise UsageError(f"{path} is no connection file: {str(error).splitlines()[0]}") from error
        folder = path.resolve().parent
        return found.model_copy(
            update={
                "keystore": folder / found.keystore,
                "password_file": folder / found.password_file,
                "ca_file": None if found.ca_file is None else folder / found.ca_file,
            }
        )


class Connection:
    """Clients for the four services, signed in as one key. Opens nothing until the first call."""

    def __init__(self, endpoints: Endpoints) -> None:
        """Raises `UsageError` for a file of authorities that cannot be read."""
        self.endpoints = endpoints
        self._authorities = None if endpoints.ca_file is None else _authorities(endpoints.ca_file)
        self._auth = http.client(endpoints.auth_url, authorities=self._authorities)
        self._opened: list[httpx.Client] = []

    def close(self) -> None:
        """Close what was opened."""
        for opened in (self._auth, *self._opened):
            opened.close()

    @functools.cached_property
    def account(self) -> LocalAccount:
        """The caller's key. Raises `UsageError`."""
        try:
            return keystore.load(self.endpoints.keystore, self.endpoints.password_file)
        except keystore.KeystoreError as error:
            raise UsageError(str(error)) from error

    @functools.cached_property
    def model(self) -> httpx.Client:
        """The model service."""
        return self._client(self.endpoints.model_url, Audience.MODEL)

    @functools.cached_property
    def chain(self) -> httpx.Client:
        """The chain service."""
        return self._client(self.endpoints.chain_url, Audience.CHAIN)

    @functools.cached_property
    def aggregator(self) -> httpx.Client:
        """The aggregator."""
        return self._client(self.endpoints.aggregator_url, Audience.AGGREGATOR)

    def _client(self, url: str, audience: Audience) -> httpx.Client:
        signing_in = http.WalletAuth(self._auth, self.account, audience)
        made = http.client(url, signing_in, authorities=self._authorities)
        self._opened.append(made)
        return made


def _authorities(file: Path) -> ssl.SSLContext:
    try:
        return http.authorities(file)
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(f"{file} has no certificates that could be read: {error.strerror or error}") from error
