"""Settings of the aggregator's API and of its worker, both from `CONCILIA_AGGREGATOR_*`."""

from __future__ import annotations

from pathlib import Path

from concilia_kit.settings import ServiceSettings
from pydantic import Field
from pydantic_settings import SettingsConfigDict


class AggregatorSettings(ServiceSettings):
    """One set for API and worker, so that they cannot disagree."""

    model_config = SettingsConfigDict(env_prefix="CONCILIA_AGGREGATOR_", extra="ignore", frozen=True)

    database_url: str = Field(description="SQLAlchemy URL of the aggregator's own database")
    redis_url: str = Field(description="Redis with the Celery broker and the ledger's event stream")
    auth_url: str = Field(description="auth service")
    model_url: str = Field(description="model service, which owns the artifacts")
    chain_url: str = Field(description="chain service")
    artifacts_url: str = Field(
        default="", description="file:///… where the artifact store is mounted read-only; empty: over the model service"
    )
    sealing_key_file: str = Field(
        default="",
        description="file with the key that the artifact store's files are sealed with, and this service's own; empty: "
        "what it writes lies as it is",
    )
    sealing_keys_before: str = Field(
        default="", description="files with older keys that files may be sealed with, separated by commas"
    )
    keystore: Path = Field(description="keystore v3 of the aggregator's own address, a coordinator on the contract")
    password_file: Path = Field(description="file with the keystore's password")
    directory: Path = Field(description="folder for models being folded and downloads being screened")
    partials: Path | None = Field(
        default=None,
        description="folder of sums made ahead, shared with `partials` workers anywhere; without it there are none",
    )
    code_version: str = Field(
        default="", max_length=100, description="version of this code, kept with each job; empty: the package's"
    )
    node_seconds: float = Field(default=60.0, gt=0, description="a node not heard of for so long is not in a cohort")
    tick_seconds: float = Field(default=1.0, gt=0, description="how often deadlines are looked at")
    max_streams: int = Field(default=200, ge=1, description="most readers that follow jobs at a time, by process")
    max_samples: int = Field(default=1_000_000, ge=1, description="most training samples one update may claim")
    max_norm_ratio: float = Field(
        default=10.0, gt=0, description="most an update may move the model, in multiples of the base model's L2 norm"
    )
