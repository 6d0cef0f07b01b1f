"""Where a consortium is and as whom to speak: one small JSON file, and the clients made from it."""

from __future__ import annotations

import functools
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

    Relative key paths are relative to the file's folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    auth_url: str
    model_url: str
    chain_url: str
    aggregator_url: str
    keystore: Path
    password_file: Path

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
            update={"keystore": folder / found.keystore, "password_file": folder / found.password_file}
        )


class Connection:
    """Clients for the four services, signed in as one key. Opens nothing until the first call."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self._auth = http.client(endpoints.auth_url)
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
        made = http.client(url, http.WalletAuth(self._auth, self.account, audience))
        self._opened.append(made)
        return made
