"""Transactions of the relay: dry run, signature by its own key, broadcast, receipt.

One `Sender` owns an account's nonces: no second process may send from the same key.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import Any

from concilia_kit import logs
from concilia_kit.problems import Conflict
from eth_account.signers.local import LocalAccount
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import ContractLogicError, TransactionNotFound, Web3RPCError

from concilia_chain.errors import ChainUnavailable, ReceiptTimeout, Refused
from concilia_chain.ledger import Call, answered
from concilia_chain.refusals import RefusalReader

_GAS_MARGIN = 1.2  # state may change between estimate and block: a new storage word, a new hospital
_POLL = 0.05  # seconds between questions for a receipt
_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A transaction that is on the chain; times in Unix seconds, `created` a contract's address."""

    transaction: str
    block: int
    gas: int
    sent_at: float
    confirmed_at: float
    created: str | None


class Sender:
    """Sends calls from one account, from any number of threads."""

    def __init__(
        self, client: Web3, account: LocalAccount, chain_id: int, refusals: RefusalReader, receipt_seconds: float
    ) -> None:
        self.address = str(account.address)
        self._client = client
        self._account = account
        self._chain_id = chain_id
        self._refusals = refusals
        self._receipt_seconds = receipt_seconds
        self._lock = threading.Lock()
        self._nonce: int | None = None

    def dry_run(self, call: Call, block: int | None = None) -> None:
        """Run a call without a transaction, as in the next block or on a given one. Raises `Refused`."""
        try:
            with answered():
                self._client.eth.call(self._request(call), "pending" if block is None else block)  # type: ignore[arg-type]
        except ContractLogicError as error:
            raise Refused(self._refusals.read_error(error.data)) from error

    def send(self, call: Call) -> Confirmed:
        """Send a call that passed its dry run, and wait for its block.

        Raises `Refused` where the contract refuses after all, `ReceiptTimeout` where no block came in time.
        """
        # Estimated by one at a time as well: Ganache leaves an estimate unanswered when a block is mined meanwhile.
        with self._lock:
            transaction, sent_at = self._broadcast(self._fields(call))
        receipt = self._receipt(transaction)
        if receipt["status"] != 1:
            self.dry_run(call, receipt["blockNumber"])
            raise Conflict(
                "the transaction was mined and reverted",
                code="transaction_reverted",
                extra={"transaction": transaction},
            )
        return Confirmed(
            transaction=transaction,
            block=int(receipt["blockNumber"]),
            gas=int(receipt["gasUsed"]),
            sent_at=sent_at,
            confirmed_at=time.time(),
            created=receipt["contractAddress"],
        )

    def receipt_of(self, transaction: str) -> tuple[int, int, int]:
        """Block, gas used and block time (Unix seconds) of a transaction on the chain."""
        with answered():
            receipt = self._client.eth.get_transaction_receipt(HexBytes(transaction))
            block = self._client.eth.get_block(receipt["blockNumber"])
        return int(receipt["blockNumber"]), int(receipt["gasUsed"]), int(block["timestamp"])

    def _request(self, call: Call) -> dict[str, Any]:
        request = {"from": self.address, "data": call.data}
        return request if call.to is None else {**request, "to": call.to}

    def _fields(self, call: Call) -> dict[str, Any]:
        """A transaction's fields, except its nonce."""
        try:
            with answered():
                gas = int(self._client.eth.estimate_gas(self._request(call)) * _GAS_MARGIN)  # type: ignore[arg-type]
        except ContractLogicError as error:
            raise Refused(self._refusals.read_error(error.data)) from error
        fields = {"data": call.data, "value": 0, "gas": gas, "chainId": self._chain_id, **self._fees()}
        return fields if call.to is None else {**fields, "to": call.to}

    def _fees(self) -> dict[str, int]:
        """EIP-1559 fees with room for six full blocks; a plain gas price on chains without a base fee."""
        with answered():
            base = self._client.eth.get_block("latest").get("baseFeePerGas")
            if base is None:
                return {"gasPrice": int(self._client.eth.gas_price)}
            tip = int(self._client.eth.max_priority_fee)
        return {"type": 2, "maxFeePerGas": 2 * int(base) + tip, "maxPriorityFeePerGas": tip}

    def _broadcast(self, fields: dict[str, Any]) -> tuple[str, float]:
        """Take a nonce, sign, broadcast; under the lock, for a nonce taken and not used would block all that follow.

        A node that refuses is asked once more with the nonce that it counts itself.
        """
        try:
            return self._broadcast_once(fields)
        except Web3RPCError as error:
            _log.warning("not broadcast, counting nonces anew", error=str(error))
        try:
            return self._broadcast_once(fields)
        except Web3RPCError as error:
            raise ChainUnavailable(f"the node does not take the transaction: {error}") from error

    def _broadcast_once(self, fields: dict[str, Any]) -> tuple[str, float]:
        if self._nonce is None:
            with answered():
                self._nonce = int(self._client.eth.get_transaction_count(self._account.address, "pending"))
        signed = self._account.sign_transaction({**fields, "nonce": self._nonce})
        transaction = "0x" + bytes(signed.hash).hex()
        sent_at = time.time()
        try:
            self._client.eth.send_raw_transaction(signed.raw_transaction)
        except (ChainUnavailable, Web3RPCError):
            self._nonce = None
            # The answer may have been lost after the node took it; then it is as good as sent.
            if not self._known(transaction):
                raise
        else:
            self._nonce += 1
        return transaction, sent_at

    def _known(self, transaction: str) -> bool:
        try:
            with answered():
                self._client.eth.get_transaction(HexBytes(transaction))
        except (TransactionNotFound, ChainUnavailable):
            return False
        return True

    def _receipt(self, transaction: str) -> Any:
        deadline = time.monotonic() + self._receipt_seconds
        while True:
            # A node that is away for a moment does not undo a broadcast: ask on until the time is up.
            with contextlib.suppress(ChainUnavailable, TransactionNotFound), answered():
                return self._client.eth.get_transaction_receipt(HexBytes(transaction))
            if time.monotonic() > deadline:
                self._resynchronise()
                raise ReceiptTimeout(
                    f"the transaction is in no block after {self._receipt_seconds:g} s",
                    extra={"transaction": transaction},
                )
            time.sleep(_POLL)

    def _resynchronise(self) -> None:
        with self._lock:
            self._nonce = None
