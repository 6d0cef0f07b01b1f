"""Settings of the chain service: environment variables that begin with CONCILIA_CHAIN_."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from concilia_kit.settings import ServiceSettings
from concilia_kit.signing import Address
from pydantic import BeforeValidator, Field
from pydantic_settings import SettingsConfigDict

OptionalAddress = Annotated[Address | None, BeforeValidator(lambda value: value or None)]
"""An address; an empty variable means none, for compose files that always set it."""


OptionalInt = Annotated[int | None, BeforeValidator(lambda value: None if value == "" else value)]


class ChainSettings(ServiceSettings):
    """What differs between deployments. The relay's key pays for gas; it can forge nothing."""

    model_config = SettingsConfigDict(env_prefix="CONCILIA_CHAIN_")

    rpc_url: str = Field(
        pattern=r"^(https?|eth-tester)://",
        description="JSON-RPC of an EVM node, or 'eth-tester://' for an EVM within this process that dies with it",
    )
    chain_id: int = Field(default=0, ge=0, description="chain id the node must have; 0 takes the node's word")
    contract_address: OptionalAddress = Field(
        default=None, description="ledger to attach to; empty: the one deployed before, else a new one"
    )
    contract_file: Path = Field(
        default=Path(__file__).with_name("ConciliaLedger.json"), description="ABI and bytecode of the ledger"
    )
    admin_address: OptionalAddress = Field(
        default=None, description="first administrator of a ledger that is deployed; needed only then"
    )
    keystore: Path = Field(description="the relay's encrypted key (keystore v3)")
    password_file: Path = Field(description="file with the password of the relay's key")
    database_url: str = Field(description="SQLAlchemy URL, SQLite or Postgres")
    redis_url: str = Field(description="Redis that carries the event stream")
    auth_url: str = Field(description="base URL of the auth service, for its published keys")
    poll_seconds: float = Field(default=0.5, gt=0, le=60, description="how often new blocks are asked for")
    receipt_seconds: float = Field(
        default=45.0, gt=0, le=3600, description="longest that a caller waits for an answer; services hang up after 60"
    )
    confirmations: OptionalInt = Field(
        default=None,
        ge=0,
        le=1000,
        description="blocks on top that make a transaction final; empty: 3, and 0 on development nodes, which make a "
        "block for a transaction only",
    )
    coalesce_seconds: float = Field(
        default=0.05,
        ge=0,
        le=60,
        description="wait for a next update of a round to share a transaction; 20 times this at most",
    )
    batch_updates: int = Field(default=100, ge=1, le=1000, description="most updates in a transaction")
    bump_seconds: float = Field(
        default=30.0, gt=0, le=3600, description="age at which a transaction in no block gets a higher fee"
    )
    max_fee_gwei: float = Field(default=500.0, gt=0, le=1e9, description="highest fee that is offered for a gas")
    lease_seconds: float = Field(
        default=10.0, ge=1, le=600, description="a process that sends and dies keeps its successor waiting so long"
    )
    start_seconds: float = Field(default=60.0, ge=0, le=3600, description="longest wait for the node at start")
