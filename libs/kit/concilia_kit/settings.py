"""Settings as every service reads them: environment variables with one prefix a service, nothing at import.

Only addresses and limits differ between one machine and many; no setting asks which it is. A secret never stands in the
environment: `{file:/run/secrets/name}` inside a value is replaced by that file's content, percent-encoded for a URL.
"""

from __future__ import annotations

import re
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MAX_REQUESTS = 400
"""Ten for each of a process' threads: what takes 30 ms of them has the last one wait for 12 s, and nobody waits for an
answer much longer. Who waits for something else (`admission.only_waits`) does not count."""
MAX_TRANSFERS = 256
"""Each takes up to a MB of what is on its way."""

_SECRET = re.compile(r"\{file:([^}]+)\}")


def _read_secret(match: re.Match[str]) -> str:
    try:
        return quote(Path(match[1]).read_text().strip(), safe="")
    except OSError as error:
        raise ValueError(f"the secret {match[1]} cannot be read: {error.strerror}") from error


class ServiceSettings(BaseSettings):
    """What every HTTP service needs. A service derives from it and sets its own `env_prefix`."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(ge=1, le=65535, description="port to listen on")
    root_path: str = Field(
        default="", pattern=r"^(/[^/]+)*$", description="path below which a proxy shows the service and which it strips"
    )
    max_requests: int = Field(
        default=MAX_REQUESTS, ge=1, description="most requests answered at one time, by process; others get 429"
    )
    max_transfers: int = Field(
        default=MAX_TRANSFERS,
        ge=1,
        description="most uploads, downloads and pictures at one time, by process; as above",
    )
    trusted_proxies: str = Field(
        default="127.0.0.1",
        description="addresses and networks, separated by commas, whose X-Forwarded-For says who asks; of others it is "
        "not read",
    )
    log_format: Literal["json", "text"] = Field(default="json", description="'json' for machines, 'text' for people")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="least severity logged")

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: str) -> str:
        for each in networks(value):
            ip_network(each)  # a mask that leaves bits of the address over is a mistake
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _fill_in_secrets(cls, value: Any) -> Any:
        return _SECRET.sub(_read_secret, value) if isinstance(value, str) else value


def networks(listed: str) -> list[str]:
    """Addresses and networks as they are listed, separated by commas."""
    return [each.strip() for each in listed.split(",") if each.strip()]


Settings = TypeVar("Settings", bound=BaseSettings)


def read(kind: type[Settings], **given: Any) -> Settings:
    """Settings from the environment, but for those `given`; where they do not fit, one line a fault on standard error
    and exit code 2."""
    try:
        return kind(**given)
    except ValidationError as error:
        prefix = str(kind.model_config.get("env_prefix", ""))
        for fault in error.errors():
            name = prefix + "_".join(map(str, fault["loc"])).upper()
            print(f"{name}: {fault['msg']}", file=sys.stderr)  # noqa: T201 - there is no log before settings
        sys.exit(2)
