"""The relay's account on its node: dry runs, gas, fees, signatures, broadcasts, receipts. Decides nothing.

The account pays for gas, and can forge nothing. `gateway.py` is the only one that sends from it.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from eth_account.signers.local import LocalAccount
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import ContractLogicError, TransactionNotFound, Web3Exception, Web3RPCError

from concilia_chain import fees
from concilia_chain.calls import Call
from concilia_chain.errors import ChainUnavailable, Refused
from concilia_chain.fees import Offer
from concilia_chain.ledger import answered
from concilia_chain.refusals import RefusalReader

_GAS_MARGIN = 1.2  # state may change between estimate and block: a new storage word, a new hospital
_BLOCK_SHARE = 0.9  # a transaction that fills a block waits for an empty one
_MOST_GAS = 2**24 - 1
"""No transaction may have more gas (EIP-7825)."""


class Signed(NamedTuple):
    """A signed transaction: its hash (0x and 64 characters), its bytes in hexadecimal, what it offers."""

    transaction: str
    raw: str
    offer: Offer


class Head(NamedTuple):
    """The newest block: its number, base fee (wei a gas; None where the chain has none), gas limit and Unix time."""

    number: int
    base: int | None
    gas_limit: int
    time: int


class Mined(NamedTuple):
    """A transaction in a block; `created` is a contract's address."""

    transaction: str
    block: int
    block_hash: str
    gas: int
    good: bool
    created: str | None


class Answer(Enum):
    """What a node says to a broadcast: it has it (now, or had it before), or it does not take it."""

    TAKEN = "taken"
    NONCE_SPENT = "nonce spent"
    REFUSED = "refused"


_HAS_IT = ("already known", "known transaction", "already imported", "already in the", "already exists")


class Relay:
    """One account on one chain. Every method asks the node; all raise `ChainUnavailable` where it does not answer."""

    def __init__(
        self, client: Web3, account: LocalAccount, chain_id: int, refusals: RefusalReader, most_fee: int
    ) -> None:
        self.address = str(account.address)
        self._client = client
        self._account = account
        self._chain_id = chain_id
        self._refusals = refusals
        self._most_fee = most_fee

    # before sending

    def dry_run(self, call: Call, block: int | None = None) -> None:
        """Run a call without a transaction, as in the next block or on a given one. Raises `Refused`."""
        try:
            with answered():
                self._client.eth.call(self._request(call), "pending" if block is None else block)  # type: ignore[arg-type]
        except ContractLogicError as error:
            raise Refused(self._refusals.read_error(error.data)) from error

    def gas(self, call: Call) -> int:
        """Gas that suffices for a call, with a margin. Raises `Refused`."""
        try:
            with answered():
                return int(self._client.eth.estimate_gas(self._request(call)) * _GAS_MARGIN)  # type: ignore[arg-type]
        except ContractLogicError as error:
            raise Refused(self._refusals.read_error(error.data)) from error

    @staticmethod
    def most_gas(head: Head) -> int:
        """The most gas that one transaction should ask for."""
        return min(int(head.gas_limit * _BLOCK_SHARE), _MOST_GAS)

    def offer(self, head: Head) -> Offer:
        """Fees at a newest block."""
        with answered():
            if head.base is None:
                return fees.offer(None, 0, int(self._client.eth.gas_price), self._most_fee)
            return fees.offer(head.base, int(self._client.eth.max_priority_fee), 0, self._most_fee)

    def better(self, old: Offer, head: Head) -> Offer | None:
        """Fees that may replace an offer; None where the cap leaves no room."""
        return fees.better(old, self.offer(head), self._most_fee)

    def count(self, depth: int = 0) -> int:
        """How many of the account's transactions the chain has, up to `depth` blocks below the newest."""
        with answered():
            block = "latest" if depth == 0 else max(0, int(self._client.eth.block_number) - depth)
            return int(self._client.eth.get_transaction_count(self._account.address, block))  # type: ignore[arg-type]

    # sending

    def sign(self, call: Call, gas: int, nonce: int, offer: Offer) -> Signed:
        """Sign; asks nobody."""
        fields: dict[str, Any] = {
            "data": call.data,
            "value": 0,
            "gas": gas,
            "chainId": self._chain_id,
            "nonce": nonce,
        }
        if call.to is not None:
            fields["to"] = call.to
        if offer.tip is None:
            fields["gasPrice"] = offer.most
        else:
            fields |= {"type": 2, "maxFeePerGas": offer.most, "maxPriorityFeePerGas": offer.tip}
        signed = self._account.sign_transaction(fields)
        return Signed("0x" + bytes(signed.hash).hex(), bytes(signed.raw_transaction).hex(), offer)

    def broadcast(self, raw: str) -> tuple[Answer, str]:
        """Hand a signed transaction to the node; what it says to it, and in which words."""
        try:
            # Not `answered`: a node's refusal is an answer here.
            self._client.eth.send_raw_transaction(HexBytes(raw))
        except Web3RPCError as error:
            said = str(error).lower()
            if any(words in said for words in _HAS_IT):
                return Answer.TAKEN, ""
            if "nonce" in said:
                return Answer.NONCE_SPENT, str(error)
            return Answer.REFUSED, str(error)
        except Web3Exception as error:
            raise ChainUnavailable(f"the node's answer makes no sense ({type(error).__name__})") from error
        return Answer.TAKEN, ""

    def knows(self, transaction: str) -> bool:
        """Whether the node has a transaction, in a block or waiting for one."""
        try:
            with answered():
                self._client.eth.get_transaction(HexBytes(transaction))
        except TransactionNotFound:
            return False
        return True

    def mined(self, transaction: str) -> Mined | None:
        """A transaction's receipt; None while it is in no block."""
        try:
            with answered():
                receipt = self._client.eth.get_transaction_receipt(HexBytes(transaction))
        except TransactionNotFound:
            return None
        if receipt.get("blockNumber") is None:  # some nodes have receipts of what waits
            return None
        return Mined(
            transaction=transaction,
            block=int(receipt["blockNumber"]),
            block_hash="0x" + bytes(receipt["blockHash"]).hex(),
            gas=int(receipt["gasUsed"]),
            good=receipt["status"] == 1,
            created=receipt["contractAddress"],
        )

    def head(self) -> Head:
        """The newest block."""
        with answered():
            found = self._client.eth.get_block("latest")
        base = found.get("baseFeePerGas")
        return Head(
            int(found["number"]), None if base is None else int(base), int(found["gasLimit"]), int(found["timestamp"])
        )

    def time_of(self, block: int) -> int:
        """A block's time, Unix seconds."""
        with answered():
            return int(self._client.eth.get_block(block)["timestamp"])

    def _request(self, call: Call) -> dict[str, Any]:
        request = {"from": self.address, "data": call.data}
        return request if call.to is None else {**request, "to": call.to}
