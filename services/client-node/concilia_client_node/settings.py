"""Settings of one hospital's node, from `CONCILIA_NODE_*`."""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import parse_qs, urlsplit

from concilia_kit.settings import ServiceSettings
from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from concilia_client_node.split import SiteChoice

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Precision(StrEnum):
    """Of what training multiplies; weights are float32 whatever it is."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class NodeSettings(ServiceSettings):
    """Addresses of the consortium, the hospital's own folder and key, and how much of the machine to use."""

    model_config = SettingsConfigDict(env_prefix="CONCILIA_NODE_", extra="ignore", frozen=True)

    broker_url: str = Field(
        default="",
        description="Redis of the task queue, 'rediss://host:port/0', without a password: the node asks for a user of "
        "its own; empty: tasks are asked for over HTTPS, without a broker",
    )
    auth_url: str = Field(description="auth service")
    model_url: str = Field(description="model service, which keeps the weights")
    chain_url: str = Field(description="chain service")
    aggregator_url: str = Field(description="aggregator")
    keystore: Path = Field(description="keystore v3 with the hospital's key")
    password_file: Path = Field(description="file with the keystore's password")
    data: Path = Field(description="folder in the layout that is declared, HAM10000's if none is; only read")
    classification: Path | None = Field(
        default=None, description="file that declares what the pictures are told apart as, and their layout"
    )
    site: str = Field(default="all", description="which lesions: all, collection:NAME, iid:0/4, dirichlet:0.3:0/4")
    site_name: str = Field(default="", max_length=64, description="name shown to the others; empty: the site itself")
    directory: Path = Field(description="folder of the node's own: base models, updates made, decoded pictures")
    threads: int = Field(default=1, ge=1, le=1024, description="processor threads for decoding and training")
    precision: Precision = Field(
        default=Precision.AUTO,
        description="of training's multiplications: 'float32', 'bfloat16' (quicker on processors that have it), or "
        "'auto': bfloat16 on a graphics card that has it, float32 elsewhere",
    )
    min_batch_size: int = Field(
        default=1, ge=1, le=1_000_000, description="fewest pictures in a batch that this hospital trains on"
    )
    min_lesions: int = Field(
        default=1, ge=1, le=1_000_000_000, description="fewest lesions that an update of this hospital may come from"
    )
    min_steps: int = Field(
        default=1, ge=1, le=1_000_000_000, description="fewest steps that an update of this hospital may come from"
    )
    secure_only: bool = Field(
        default=False, description="send updates with secure aggregation only, and take part in no other job"
    )
    unreadable_share: Share = Field(default=0.02, description="share of pictures that may be missing or broken")
    split_seed: int = Field(default=0, ge=0, lt=2**32, description="seed of sites and of the held-out lesions")
    split_anew: bool = Field(
        default=False,
        description="divide the lesions as if for the first time, though some change sides; for one start only",
    )
    epsilon_per_job: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="most that a job may cost every lesion of the hospital's, in ε at CONCILIA_NODE_DELTA; a job "
        "without differential privacy is then refused; empty: as much as is asked for",
    )
    epsilon_total: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="most that all jobs together may cost, likewise"
    )
    delta: float = Field(default=1e-5, gt=0, lt=0.01, description="δ of the two")
    central_noise: bool = Field(
        default=False,
        description="count noise that the aggregator adds towards the two, which protects from others and not from the "
        "aggregator; without it a job of that kind is refused where one of the two is set",
    )
    plaintext: bool = Field(
        default=False, description="speak to other machines without TLS, on a closed network; otherwise refused"
    )

    @field_validator("classification", "epsilon_per_job", "epsilon_total", mode="before")
    @classmethod
    def _named_or_not(cls, text: object) -> object:
        return text or None

    @field_validator("site")
    @classmethod
    def _site_exists(cls, text: str) -> str:
        SiteChoice.parse(text)
        return text

    @model_validator(mode="after")
    def _others_are_spoken_to_over_tls(self) -> Self:
        for url in (self.broker_url, self.auth_url, self.model_url, self.chain_url, self.aggregator_url):
            parts = urlsplit(url)
            if parts.scheme in {"http", "redis"} and not (self.plaintext or _is_this_machine(parts.hostname or "")):
                raise ValueError(
                    f"{parts.scheme}://{parts.hostname} is another machine: use {parts.scheme}s://, or set "
                    "CONCILIA_NODE_PLAINTEXT=1 where nobody else is on the line"
                )
            if parse_qs(parts.query).get("ssl_cert_reqs", ["required"]) != ["required"]:
                raise ValueError("who the broker is, is always verified: leave ssl_cert_reqs out of its address")
        return self

    @property
    def choice(self) -> SiteChoice:
        """The site, parsed."""
        return SiteChoice.parse(self.site)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
