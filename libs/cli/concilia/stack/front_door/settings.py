"""What the front door reads from its environment (`CONCILIA_FRONT_…`)."""

from __future__ import annotations

from pathlib import Path

from concilia_kit.settings import ServiceSettings
from pydantic import DirectoryPath, Field, FilePath, TypeAdapter, ValidationError, field_validator
from pydantic_settings import SettingsConfigDict

_HEADERS = TypeAdapter(dict[str, str])


class FrontSettings(ServiceSettings):
    """The pages, and where the services listen."""

    model_config = SettingsConfigDict(env_prefix="CONCILIA_FRONT_")

    pages: DirectoryPath = Field(description="folder of the built pages")
    headers: FilePath = Field(description="JSON file: an object of the headers that every page is answered with")
    auth_url: str = Field(pattern=r"^https?://", description="auth service")
    model_url: str = Field(pattern=r"^https?://", description="model service")
    aggregator_url: str = Field(pattern=r"^https?://", description="aggregator service")
    chain_url: str = Field(pattern=r"^https?://", description="chain service")

    @field_validator("headers")
    @classmethod
    def _must_be_headers(cls, path: Path) -> Path:
        page_headers(path)
        return path


def page_headers(path: Path) -> dict[str, str]:
    """The headers in a file. Raises `ValueError`."""
    try:
        return _HEADERS.validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is no JSON object of headers") from error
