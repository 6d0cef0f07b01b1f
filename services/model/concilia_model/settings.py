"""Settings of the model service, all from `CONCILIA_MODEL_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from concilia_kit.settings import ServiceSettings
from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

_FOR_EVER = ("keep_updates_days", "keep_orphans_days")


class ModelSettings(ServiceSettings):
    """Addresses, folders and limits."""

    model_config = SettingsConfigDict(env_prefix="CONCILIA_MODEL_", extra="ignore", frozen=True)

    directory: Path = Field(description="folder of the artifact store")
    sealing_key_file: str = Field(
        default="", description="file with the key that stored files are sealed with; empty: they lie as they are"
    )
    sealing_keys_before: str = Field(
        default="", description="files with older keys that stored files may be sealed with, separated by commas"
    )
    database_url: str = Field(description="SQLAlchemy URL of the model service's own database")
    auth_url: str = Field(description="auth service")
    chain_url: str = Field(description="chain service")
    keystore: Path = Field(description="keystore v3 of the model service's own address, an auditor on the contract")
    password_file: Path = Field(description="file with the keystore's password")
    max_artifact_bytes: int = Field(default=2 * 2**30, ge=1, description="largest artifact accepted, bytes")
    reserve_bytes: int = Field(default=256 * 2**20, ge=0, description="bytes on the store's disk that stay free")
    uploads_at_once: int = Field(default=8, ge=1, description="unfinished uploads one caller may have")
    upload_keep_seconds: float = Field(
        default=24 * 3600, gt=0, description="seconds an upload is kept after its last request"
    )
    upload_sweep_seconds: float = Field(default=600, gt=0, description="seconds between looks for expired uploads")
    keep_updates_days: float | None = Field(
        default=None,
        gt=0,
        description="days after the ledger's last word on its job that an update is kept; 0 or empty: for ever",
    )
    keep_orphans_days: float | None = Field(
        default=7, gt=0, description="days that a hospital's upload is kept which no record names; 0 or empty: for ever"
    )
    storage_sweep_seconds: float = Field(
        default=3600, gt=0, description="seconds between looks for files that the policy deletes"
    )
    scrub_megabytes_per_second: float = Field(
        default=10, ge=0, description="MB of stored files hashed a second to find changed bytes; 0: none"
    )
    max_image_bytes: int = Field(default=10 * 10**6, ge=1, description="largest picture accepted, bytes as sent")
    max_image_pixels: int = Field(default=40 * 10**6, ge=1, description="largest picture accepted, pixels")
    threads: int = Field(default=2, ge=1, le=256, description="torch threads of one prediction")
    predictions_at_once: int = Field(default=2, ge=1, description="pictures decoded and classified at one time")
    models_in_memory: int = Field(default=4, ge=1, description="models kept loaded")
    networks_idle_seconds: float = Field(
        default=900,
        gt=0,
        description="seconds without a prediction after which the memory of models and torch is freed",
    )

    @field_validator(*_FOR_EVER, mode="before")
    @classmethod
    def _nothing_is_for_ever(cls, value: Any) -> Any:
        return None if value in ("", "0", 0) else value
