"""The checked-in bytecode on an in-process EVM at the Shanghai fork, and the little that the tests say to it."""

import json
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from concilia_kit import merkle
from eth.vm.forks.shanghai import ShanghaiVM
from eth_abi.abi import decode as decode_abi
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_account.signers.local import LocalAccount
from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed
from web3 import EthereumTesterProvider, Web3
from web3.contract import Contract
from web3.contract.contract import ContractFunction
from web3.types import TxReceipt

ROOT = Path(__file__).parents[1]
GAS = 25_000_000
# What time travel lands on; far enough ahead of the wall clock that no test run catches up with it.
FIRST_TIMESTAMP = 4_000_000_000

ADMIN_ROLE = bytes(32)
COORDINATOR_ROLE, HOSPITAL_ROLE, CLINICIAN_ROLE, AUDITOR_ROLE = (
    bytes(Web3.keccak(text=name)) for name in ("COORDINATOR", "HOSPITAL", "CLINICIAN", "AUDITOR")
)
ROLES = (ADMIN_ROLE, COORDINATOR_ROLE, HOSPITAL_ROLE, CLINICIAN_ROLE, AUDITOR_ROLE)

UPDATE_TYPE = [
    {"name": "hospital", "type": "address"},
    {"name": "job", "type": "bytes32"},
    {"name": "round", "type": "uint32"},
    {"name": "base", "type": "bytes32"},
    {"name": "digest", "type": "bytes32"},
    {"name": "samples", "type": "uint64"},
    {"name": "metrics", "type": "bytes32"},
]
ROLE_CHANGE_TYPE = [
    {"name": "role", "type": "bytes32"},
    {"name": "account", "type": "address"},
    {"name": "granted", "type": "bool"},
    {"name": "nonce", "type": "uint256"},
    {"name": "deadline", "type": "uint256"},
]


def digest(text: str) -> bytes:
    return sha256(text.encode()).digest()


def account(number: int) -> LocalAccount:
    """A key that is the same in every run; none of eth-tester's own."""
    made: LocalAccount = Account.from_key(sha256(f"concilia test key {number}".encode()).digest())
    return made


def artifact(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "build" / f"{name}.json").read_text())
    return loaded


def _type_of(parameter: Mapping[str, Any]) -> str:
    if not parameter["type"].startswith("tuple"):
        return str(parameter["type"])
    inner = ",".join(_type_of(component) for component in parameter["components"])
    return f"({inner}){parameter['type'].removeprefix('tuple')}"


def signature_of(entry: Mapping[str, Any]) -> str:
    return f"{entry['name']}({','.join(_type_of(parameter) for parameter in entry['inputs'])})"


def errors_by_selector(abi: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {f"0x{Web3.keccak(text=signature_of(entry))[:4].hex()}": entry for entry in abi if entry["type"] == "error"}


class Refusal(NamedTuple):
    """A revert: the custom error's name and its decoded arguments; no name where there was no error data."""

    error: str
    arguments: tuple[Any, ...] = ()


def refusal(error: str, *arguments: Any) -> Refusal:
    return Refusal(error, arguments)


@dataclass(frozen=True)
class Update:
    """What a hospital signs, and a signature that can be replaced to spoil it."""

    hospital: str
    job: bytes
    round: int
    base: bytes
    digest: bytes
    samples: int
    metrics: bytes
    signature: bytes = b""

    def message(self) -> dict[str, Any]:
        return {
            "hospital": self.hospital,
            "job": self.job,
            "round": self.round,
            "base": self.base,
            "digest": self.digest,
            "samples": self.samples,
            "metrics": self.metrics,
        }

    def argument(self) -> tuple[str, bytes, int, bytes, bytes]:
        return (self.hospital, self.digest, self.samples, self.metrics, self.signature)


@dataclass
class Committed:
    """Signed updates as leaves of a tree, in the order in which they are given."""

    updates: Sequence[Update]
    leaves: Sequence[bytes]
    tree: merkle.Tree = field(init=False)

    def __post_init__(self) -> None:
        self.tree = merkle.Tree(self.leaves)

    def commitment(self) -> tuple[Any, ...]:
        first = self.updates[0]
        return "commitUpdates", first.job, first.round, first.base, self.tree.root, len(self.updates)

    def shown(self, index: int) -> tuple[Any, ...]:
        """What every function takes that is shown a leaf: job, round, update, index, proof."""
        update = self.updates[index]
        return update.job, update.round, update.argument(), index, self.tree.proof(index)


@dataclass
class Chain:
    """An EVM of its own, with accounts of its own that pay for gas."""

    tester: EthereumTester = field(
        default_factory=lambda: EthereumTester(PyEVMBackend(vm_configuration=((0, ShanghaiVM),)))
    )
    web3: Web3 = field(init=False)

    def __post_init__(self) -> None:
        self.web3 = Web3(EthereumTesterProvider(self.tester))
        self.tester.time_travel(FIRST_TIMESTAMP)

    @property
    def now(self) -> int:
        return int(self.web3.eth.get_block("latest")["timestamp"])

    def deploy(self, name: str, *arguments: Any) -> Contract:
        built = artifact(name)
        factory = self.web3.eth.contract(abi=built["abi"], bytecode=built["bytecode"])
        sent = factory.constructor(*arguments).transact({"from": self.web3.eth.accounts[0], "gas": GAS})
        address = self.web3.eth.get_transaction_receipt(sent)["contractAddress"]
        return self.web3.eth.contract(address=Web3.to_checksum_address(str(address)), abi=built["abi"])


class Ledger:
    """A deployed ledger with an admin, a coordinator and a relay that holds no role."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        accounts = chain.web3.eth.accounts
        self.deployer, self.admin, self.coordinator, self.relay = (str(each) for each in accounts[:4])
        self.contract = chain.deploy("ConciliaLedger", self.admin, self.coordinator)
        self._errors = errors_by_selector(self.contract.abi)

    def send(self, name: str, *arguments: Any, sender: str | None = None) -> TxReceipt:
        """Send a transaction that must succeed; by the coordinator, unless told."""
        sent = self._function(name, arguments).transact({"from": self._sender(sender), "gas": GAS})
        receipt = self.chain.web3.eth.get_transaction_receipt(sent)
        assert receipt["status"] == 1, name
        return receipt

    def view(self, name: str, *arguments: Any) -> Any:
        return self._function(name, arguments).call()

    def refused(self, name: str, *arguments: Any, sender: str | None = None) -> Refusal:
        """The error with which a call ends; by the coordinator, unless told."""
        data = self.contract.encode_abi(name, arguments)
        return self._refused({"from": self._sender(sender), "to": self.contract.address, "data": data})

    def deployment_refused(self, *arguments: Any) -> Refusal:
        built = artifact("ConciliaLedger")
        factory = self.chain.web3.eth.contract(abi=built["abi"], bytecode=built["bytecode"])
        return self._refused({"from": self.deployer, "data": factory.constructor(*arguments).data_in_transaction})

    def events(self, receipt: TxReceipt) -> list[tuple[str, dict[str, Any]]]:
        """Name and arguments of every log of a receipt, in order."""
        topics = {
            bytes(Web3.keccak(text=signature_of(entry))): entry["name"]
            for entry in self.contract.abi
            if entry["type"] == "event"
        }
        found: list[tuple[str, dict[str, Any]]] = []
        for log in receipt["logs"]:
            name = topics[bytes(log["topics"][0])]
            found.append((name, dict(self.contract.events[name]().process_log(log)["args"])))
        return found

    def domain(self, **replaced: Any) -> dict[str, Any]:
        return {
            "name": "Concilia",
            "version": "1",
            "chainId": self.chain.web3.eth.chain_id,
            "verifyingContract": self.contract.address,
        } | replaced

    def sign(self, update: Update, signer: LocalAccount, **replaced: Any) -> Update:
        """The update with its signature; `replaced` spoils fields of the domain."""
        signed = signer.sign_typed_data(self.domain(**replaced), {"Update": UPDATE_TYPE}, update.message())
        return replace(update, signature=bytes(signed.signature))

    def update(self, signer: LocalAccount, job: bytes, base: bytes, **fields: Any) -> Update:
        """A signed update of round 1 that the ledger takes, unless `fields` change that."""
        values: dict[str, Any] = {
            "hospital": signer.address,
            "round": 1,
            "digest": digest(f"update of {signer.address}"),
            "samples": 100,
            "metrics": digest(f"metrics of {signer.address}"),
        } | fields
        return self.sign(Update(job=job, base=base, **values), signer)

    def submit(self, *updates: Update) -> TxReceipt:
        """Relay a batch; job, round and base are those of the first update."""
        return self.send(*self.submission(*updates), sender=self.relay)

    def submission(self, *updates: Update) -> tuple[Any, ...]:
        first = updates[0]
        return "submitUpdates", first.job, first.round, first.base, [each.argument() for each in updates]

    def enrol(self, *addresses: str) -> None:
        # By eth-tester itself: web3 doubles the time, which shows where a thousand are enrolled.
        call = {"from": self.admin, "to": self.contract.address, "gas": 200_000, "gas_price": 10**10}
        for address in addresses:
            data = self.contract.encode_abi("grantRole", [HOSPITAL_ROLE, address])
            sent = self.chain.tester.send_transaction(call | {"data": data})
            assert self.chain.tester.get_transaction_receipt(sent)["status"] == 1

    def open(
        self, job: bytes, base: bytes, number: int = 1, quorum: int = 1, seconds: int = 3600, merkle_only: bool = False
    ) -> int:
        """Open a round; its deadline."""
        deadline = self.chain.now + seconds
        self.send("openMerkleRound" if merkle_only else "openRound", job, number, base, deadline, quorum)
        return deadline

    def committed(self, *updates: Update, **replaced: Any) -> Committed:
        """The updates' tree in ascending order of hospital; `replaced` spoils fields of the domain."""
        ordered = sorted(updates, key=lambda update: int(update.hospital, 16))
        return Committed(ordered, [merkle.leaf(self.digest_of(each, **replaced) + each.signature) for each in ordered])

    def digest_of(self, update: Update, **replaced: Any) -> bytes:
        """The EIP-712 digest, by eth-account."""
        message = encode_typed_data(self.domain(**replaced), {"Update": UPDATE_TYPE}, update.message())
        return bytes(Web3.keccak(b"\x19" + message.version + message.header + message.body))

    def commit(self, *updates: Update) -> Committed:
        """Commit updates that are right."""
        made = self.committed(*updates)
        self.send(*made.commitment())
        return made

    def _function(self, name: str, arguments: tuple[Any, ...]) -> ContractFunction:
        function: ContractFunction = self.contract.get_function_by_name(name)(*arguments)
        return function

    def _sender(self, sender: str | None) -> str:
        return self.coordinator if sender is None else sender

    def _refused(self, call: dict[str, Any]) -> Refusal:
        # By eth-tester itself, which gives the error's data as the text of a bytes literal; web3's provider for it may
        # garble even that.
        try:
            self.chain.tester.call(call | {"gas": GAS})
        except TransactionFailed as failure:
            return self._decoded(literal_eval(failure.args[0]))
        raise AssertionError("the call was not refused")

    def _decoded(self, data: bytes) -> Refusal:
        if not data:
            return Refusal("")
        entry = self._errors[f"0x{data[:4].hex()}"]
        types = [_type_of(parameter) for parameter in entry["inputs"]]
        return Refusal(
            entry["name"],
            tuple(
                Web3.to_checksum_address(value) if kind == "address" else value
                for kind, value in zip(types, decode_abi(types, data[4:]), strict=True)
            ),
        )
