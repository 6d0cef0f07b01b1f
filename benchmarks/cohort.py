"""A deployed ledger with enrolled hospitals, and the three ways in which a round's updates can reach it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import concilia_chain
from concilia_chain import contract_file
from concilia_kit import digests, merkle, signing
from concilia_kit.roles import Role
from concilia_kit.wire.training import UpdateMetrics
from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3 import Web3

from benchmarks.nodes import CHAIN_ID, Node

BATCH = 100
"""Updates in a transaction, at most; what the chain service takes."""
_FEE = 100 * 10**9  # wei; far above what either node's blocks ask for
_DAY = 86_400  # Anvil's clock runs ahead by a second a block
_PLENTY = 500 * 10**18  # wei

Result = TypeVar("Result")

_CONTRACT = Path(concilia_chain.__file__).with_name("ConciliaLedger.json")


METRICS = UpdateMetrics(
    loss=0.5,
    accuracy=0.5,
    images=100,
    lesions=80,
    skipped_images=0,
    epochs=1,
    seconds_download=0.1,
    seconds_training=2.5,
    seconds_upload=0.2,
    bytes_download=1000,
    bytes_upload=1000,
)


class Signed(NamedTuple):
    """A hospital's update and its signature."""

    update: signing.Update
    signature: str

    def argument(self) -> tuple[str, bytes, int, bytes, bytes]:
        """As the contract takes it."""
        update = self.update
        digests = bytes.fromhex(update.digest), bytes.fromhex(update.metrics)
        return update.hospital, digests[0], update.samples, digests[1], bytes.fromhex(self.signature[2:])


@dataclass(frozen=True)
class Sample:
    """What one round's updates cost: gas of their transactions, seconds, and what is not the chain's."""

    transactions: int
    gas: int
    """All of the transactions' together."""
    seconds: float
    """From the first transaction's sending until all receipts are there."""
    signing_seconds: float
    """Hospitals' signatures, one after another."""
    opening_gas: int
    dispute_gas: int | None = None
    """`proveUpdate` of one update; in a Merkle round only."""


class Ledger:
    """The contract on a node: the node's first account is its administrator, a key of ours coordinates and relays."""

    def __init__(self, node: Node, hospitals: int) -> None:
        self.node = node
        self._admin = Web3.to_checksum_address(node.ask("eth_accounts")[0])
        self._relay: LocalAccount = Account.create()
        self._nonce = 0
        self._jobs = itertools.count(1)
        built = contract_file.read(_CONTRACT)
        client = Web3()
        made = client.eth.contract(abi=built.abi, bytecode=built.bytecode).constructor(self._admin, self._relay.address)
        receipt = self._by_node({"data": str(made.data_in_transaction)})
        self.address = str(Web3.to_checksum_address(receipt["contractAddress"]))
        self._contract = client.eth.contract(address=Web3.to_checksum_address(self.address), abi=built.abi)
        self.domain = signing.Domain(chain_id=CHAIN_ID, contract=self.address)
        self._by_node({"to": self._relay.address, "value": hex(_PLENTY)})
        self._hospitals: list[LocalAccount] = sorted(
            (Account.create() for _ in range(hospitals)), key=lambda account: int(account.address, 16)
        )
        self._enrol(account.address for account in self._hospitals)

    def _enrol(self, addresses: Iterable[str]) -> None:
        grants = [self._data("grantRole", Role.HOSPITAL.identifier, address) for address in addresses]
        call = {"from": self._admin, "to": self.address, "gas": hex(200_000)}
        # One after another: Anvil answers the questions of one request side by side, and loses its place in nonces.
        self.node.receipts([self.node.ask("eth_sendTransaction", {**call, "data": data}) for data in grants])

    def admit(self, address: str, role: Role) -> None:
        """Grant a role to somebody else, and give them ether."""
        self._by_node({"to": address, "value": hex(_PLENTY // 10)})
        self._by_node({"to": self.address, "data": self._data("grantRole", role.identifier, address)})

    def open_round(self, function: str) -> tuple[bytes, int]:
        """A job of its own whose first round is open, and the gas of opening it."""
        job = sha256(f"job {next(self._jobs)}".encode()).digest()
        now = int(self.node.ask("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
        (receipt,) = self._sent(self._transaction(function, job, 1, _base(job), now + _DAY, 1))
        return job, gas_of(receipt)

    def sign(self, job: bytes, count: int) -> tuple[list[Signed], float]:
        """Updates of the first hospitals in ascending order of address, and the seconds that signing them took."""
        updates = [
            signing.Update(
                hospital=account.address,
                job=job.hex(),
                round=1,
                base=_base(job).hex(),
                digest=sha256(job + account.address.encode()).hexdigest(),
                samples=100,
                metrics=digests.of_json(METRICS.model_dump(mode="json")),
            )
            for account in self._hospitals[:count]
        ]
        pairs = list(zip(updates, self._hospitals[:count], strict=True))
        signatures, seconds = timed(lambda: [signing.sign(each, self.domain, key) for each, key in pairs])
        return [Signed(*each) for each in zip(updates, signatures, strict=True)], seconds

    # ------------------------------------------------------------------------------------------------- three ways

    def alone(self, count: int) -> Sample:
        """One transaction an update: `submitUpdates` with one each. The baseline."""
        return self._submitted(count, 1)

    def batched(self, count: int) -> Sample:
        """`submitUpdates` with as many as a transaction takes."""
        return self._submitted(count, BATCH)

    def committed(self, count: int) -> Sample:
        """`commitUpdates` with the root over all of them."""
        job, opening = self.open_round("openMerkleRound")
        updates, signing_seconds = self.sign(job, count)
        leaves = [merkle.leaf(merkle.update_data(each.update, self.domain, each.signature)) for each in updates]
        tree = merkle.Tree(leaves)
        raw = self._transaction("commitUpdates", job, 1, _base(job), tree.root, count)
        (receipt,), seconds = timed(lambda: self._sent(raw))
        at = count // 2
        proving = self._transaction("proveUpdate", job, 1, updates[at].argument(), at, tree.proof(at))
        (proven,) = self._sent(proving)
        return Sample(1, gas_of(receipt), seconds, signing_seconds, opening, gas_of(proven))

    def _submitted(self, count: int, size: int) -> Sample:
        job, opening = self.open_round("openRound")
        updates, signing_seconds = self.sign(job, count)
        batches = [updates[at : at + size] for at in range(0, count, size)]
        raw = [self._submission(job, batch) for batch in batches]
        receipts, seconds = timed(lambda: self._sent(*raw))
        recorded = sum(len(each["logs"]) for each in receipts)
        if recorded != count:
            raise RuntimeError(f"{recorded} of {count} updates were recorded")
        return Sample(len(raw), sum(map(gas_of, receipts)), seconds, signing_seconds, opening)

    # --------------------------------------------------------------------------------------------------- internal

    def _submission(self, job: bytes, updates: Sequence[Signed]) -> str:
        arguments = job, 1, _base(job), [each.argument() for each in updates]
        return self._transaction("submitUpdates", *arguments, gas=150_000 + 90_000 * len(updates))

    def _transaction(self, function: str, *arguments: Any, gas: int = 1_000_000) -> str:
        """A transaction signed by the relay, ready to be sent."""
        fields: dict[str, Any] = {
            "chainId": CHAIN_ID,
            "nonce": self._nonce,
            "to": self.address,
            "data": self._data(function, *arguments),
            "gas": gas,
            "maxFeePerGas": _FEE,
            "maxPriorityFeePerGas": 0,
        }
        self._nonce += 1
        return "0x" + self._relay.sign_transaction(fields).raw_transaction.hex().removeprefix("0x")

    def _by_node(self, call: dict[str, str]) -> dict[str, Any]:
        """A transaction by the administrator, whose key the node holds; its receipt."""
        sent = self.node.ask("eth_sendTransaction", {"from": self._admin, "gas": hex(6_000_000), **call})
        (receipt,) = self.node.receipts([sent])
        return receipt

    def _sent(self, *transactions: str) -> list[dict[str, Any]]:
        """Transactions sent one after another; their receipts."""
        return self.node.receipts([self.node.ask("eth_sendRawTransaction", each) for each in transactions])

    def _data(self, function: str, *arguments: Any) -> str:
        return str(self._contract.encode_abi(function, list(arguments)))


def _base(job: bytes) -> bytes:
    return sha256(b"base" + job).digest()


def gas_of(receipt: dict[str, Any]) -> int:
    """Gas that a transaction used."""
    return int(receipt["gasUsed"], 16)


def timed(run: Callable[[], Result]) -> tuple[Result, float]:
    """What something returned, and the seconds that it took."""
    began = time.perf_counter()
    result = run()
    return result, time.perf_counter() - began
