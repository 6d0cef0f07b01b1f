"""What the gateway keeps account of: orders, the transactions that carry them, their signed forms. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from concilia_kit.wire.chain import UpdateSubmission

from concilia_chain.calls import Call
from concilia_chain.fees import Offer


class State(StrEnum):
    """Where a sending stands.

    `pending`: signed, perhaps broadcast. `mined`, `final`: in a block, so deep that it stays. `reverted`: in a block,
    and without effect. `void`: never to be mined, for its nonce went to something else.
    """

    PENDING = "pending"
    MINED = "mined"
    FINAL = "final"
    REVERTED = "reverted"
    VOID = "void"


IN_A_BLOCK = (State.MINED.value, State.FINAL.value)


class Order(NamedTuple):
    """Something to be done once. An update has its `submission`, anything else its call; `reverts` counts in vain."""

    id: int
    call: Call
    submission: UpdateSubmission | None
    received_at: float
    reverts: int


class Sending(NamedTuple):
    """A transaction of the relay; what it did once it is in a block."""

    id: int
    nonce: int
    call: Call
    gas: int
    state: State
    sent_at: float
    block: int | None
    block_hash: str | None
    transaction: str | None


class Attempt(NamedTuple):
    """A signed form of a sending."""

    transaction: str
    raw: str
    offer: Offer
    sent_at: float


@dataclass(frozen=True, slots=True)
class Standing:
    """How an order stands: its sending's state, and its receipt's parts as far as there are any."""

    id: int
    function: str
    received_at: float
    state: State | None = None
    transaction: str | None = None
    block: int = 0
    gas: int = 0
    sent_at: float = 0.0
    mined_at: float = 0.0
    orders: int = 1
