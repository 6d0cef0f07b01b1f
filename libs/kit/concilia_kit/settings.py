"""Settings as every service reads them: environment variables with one prefix a service, nothing at import.

Only addresses and limits differ between one machine and many; no setting asks which it is.
"""

from __future__ import annotations

import sys
from typing import Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """What every HTTP service needs. A service derives from it and sets its own `env_prefix`."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(ge=1, le=65535, description="port to listen on")
    log_format: Literal["json", "text"] = Field(default="json", description="'json' for machines, 'text' for people")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="least severity logged")


Settings = TypeVar("Settings", bound=ServiceSettings)


def read(kind: type[Settings]) -> Settings:
    """Settings from the environment; where they do not fit, one line a fault on standard error and exit code 2."""
    try:
        return kind()
    except ValidationError as error:
        prefix = str(kind.model_config.get("env_prefix", ""))
        for fault in error.errors():
            name = prefix + "_".join(map(str, fault["loc"])).upper()
            print(f"{name}: {fault['msg']}", file=sys.stderr)  # noqa: T201 - there is no log before settings
        sys.exit(2)
