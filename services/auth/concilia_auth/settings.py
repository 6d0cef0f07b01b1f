"""What the auth service reads from its environment (`CONCILIA_AUTH_…`)."""

from __future__ import annotations

from pathlib import Path

from concilia_kit.settings import ServiceSettings
from pydantic import Field
from pydantic_settings import SettingsConfigDict


class AuthSettings(ServiceSettings):
    """Addresses, the site people sign in to, and how long things live."""

    model_config = SettingsConfigDict(env_prefix="CONCILIA_AUTH_")

    redis_url: str = Field(
        pattern=r"^(rediss?|unix)://", description="Redis that keeps nonces and sessions, 'redis://host:port/0'"
    )
    broker_url: str = Field(
        default="",
        pattern=r"^((rediss?|unix)://.*)?$",
        description="Redis of the hospitals' task queues, with a login that may make users there; empty: `redis_url`",
    )
    chain_url: str = Field(pattern=r"^https?://", description="address of the chain service, 'http://host:port'")
    domain: str = Field(
        min_length=1,
        max_length=253,
        description="authority (host, and port unless it is the scheme's own) of the page people sign in on",
    )
    uri: str = Field(
        pattern=r"^https?://", max_length=256, description="address of that page as sign-in messages name it"
    )
    statement: str = Field(
        default="Sign in to Concilia. This sends no transaction and costs nothing.",
        min_length=1,
        max_length=256,
        description="one line of ASCII that a wallet shows above a sign-in request",
    )
    chain_id: int = Field(default=0, ge=0, description="EIP-155 chain id of sign-in messages; 0 asks the chain service")
    key_directory: Path = Field(
        description="directory of signing keys, '<key id>.pem'; the last by name signs, all are published, and a first "
        "one is made where there is none"
    )
    nonce_seconds: int = Field(default=300, ge=10, le=3600, description="life of a sign-in challenge, seconds")
    session_seconds: int = Field(default=12 * 3600, ge=60, description="longest life of a session, seconds")
    idle_seconds: int = Field(default=3600, ge=60, description="a session unused for so many seconds ends")
    address_rate: int = Field(
        default=60,
        ge=0,
        description="challenges, sign-ins and applications, of each so many a minute, by address; five times as many "
        "tokens; 0: no limit",
    )
    source_rate: int = Field(
        default=6000, ge=0, description="the same by source, which may be the door of a whole hospital; 0: no limit"
    )
    token_seconds: int = Field(default=300, ge=30, le=3600, description="life of an access token, seconds")
