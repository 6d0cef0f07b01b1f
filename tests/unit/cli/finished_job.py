"""A finished job on a real EVM with the real contract: its node as JSON-RPC, its files in a store's layout."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import safetensors.numpy
from concilia.verification.leaves import Leaf, Leaves
from concilia.verification.node import Node
from concilia_aggregator.folding import Recipe, fold
from concilia_kit import digests, signing
from concilia_kit.digests import Contribution, in_order, of_contributions
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.strategy import Strategy
from concilia_kit.wire.training import Architecture, UpdateMetrics
from eth_account.signers.local import LocalAccount
from web3.exceptions import Web3Exception


def _harness() -> Any:
    """The contract's own tests know how to deploy it and to speak to it."""
    name = "cli_ledger_harness"
    if name not in sys.modules:
        path = Path(__file__).parents[3] / "contracts" / "tests" / "ledger_harness.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


harness = _harness()
JOB = hashlib.sha256(b"a job").hexdigest()
HOSPITALS: list[LocalAccount] = sorted((harness.account(n) for n in range(3)), key=lambda each: int(each.address, 16))
METRICS = UpdateMetrics(
    loss=1.5,
    accuracy=0.5,
    images=10,
    lesions=8,
    skipped_images=0,
    epochs=1,
    seconds_download=0.1,
    seconds_training=2.0,
    seconds_upload=0.2,
    bytes_download=100,
    bytes_upload=100,
)
METRICS_DIGEST = digests.of_json(METRICS.model_dump(mode="json"))


def tensors(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return safetensors.numpy.save({"w": rng.normal(size=20).astype(np.float32), "n": np.array(seed, np.int64)})


@dataclass
class FinishedJob:
    """Two rounds by three hospitals: the second hospital's update is rejected in round 1; it is expelled afterwards.

    Of `merkle` rounds the chain has roots only; what is under them is in `leaves`.
    """

    store: Path
    ledger: Any = field(default_factory=lambda: harness.Ledger(harness.Chain()))
    published: str = ""
    job: str = JOB
    merkle: frozenset[int] = frozenset()
    leaves: list[Leaf] = field(default_factory=list)

    def run(self, rounds: int = 2) -> FinishedJob:
        """Carry the job out."""
        self.ledger.enrol(*(each.address for each in HOSPITALS))
        base = self.put(tensors(0))
        for number in range(1, rounds + 1):
            who = HOSPITALS if number == 1 else [HOSPITALS[0], HOSPITALS[2]]
            base = self.round(number, base, who, HOSPITALS[1] if number == 1 else None)
            if number == 1:
                role = [harness.HOSPITAL_ROLE, HOSPITALS[1].address]
                self.ledger.send("revokeRole", *role, sender=self.ledger.admin)
        self.ledger.send("publishModel", bytes.fromhex(JOB), bytes.fromhex(base))
        self.published = base
        # another job on the same contract, of which nothing may come into the verdict
        self.ledger.open(harness.digest("another job"), harness.digest("another base"))
        return self

    def round(self, number: int, base: str, who: list[LocalAccount], rejected: LocalAccount | None) -> str:
        """One round, closed; its global model."""
        job = bytes.fromhex(JOB)
        self.ledger.open(job, bytes.fromhex(base), number, merkle_only=number in self.merkle)
        updates, contributions = [], []
        for index, key in enumerate(who):
            digest = self.put(tensors(10 * number + index))
            fields = {"round": number, "digest": bytes.fromhex(digest), "samples": 10 + index}
            fields["metrics"] = bytes.fromhex(METRICS_DIGEST)
            updates.append(self.ledger.update(key, job, bytes.fromhex(base), **fields))
            if key is not rejected:
                contributions.append(Contribution(key.address, digest, 10 + index))
        if number in self.merkle:
            self.commit(updates, rejected)
        else:
            self.ledger.submit(*updates)
        if rejected is not None and number not in self.merkle:
            self.ledger.send("rejectUpdate", job, number, rejected.address, 7)
        return self.close(number, contributions)

    def commit(self, updates: list[Any], rejected: LocalAccount | None = None) -> Any:
        """Commit a round's updates, and reject one's leaf."""
        made = self.ledger.commit(*updates)
        for index, each in enumerate(made.updates):
            fields = {name: getattr(each, name) for name in ("hospital", "round", "samples")}
            words = {name: getattr(each, name).hex() for name in ("job", "base", "digest", "metrics")}
            signature = "0x" + each.signature.hex()
            self.leaves.append(Leaf(index=index, update=signing.Update(**fields, **words), signature=signature))
            if rejected is not None and each.hospital == rejected.address:
                job, number, *shown = made.shown(index)
                self.ledger.send("rejectCommitted", job, number, *shown, 7)
        return made

    def document(self) -> Leaves:
        """The leaves as a document."""
        domain = signing.Domain(chain_id=self.ledger.chain.web3.eth.chain_id, contract=self.ledger.contract.address)
        return Leaves(domain=domain, job=self.job, leaves=tuple(self.leaves))

    def close(self, number: int, contributions: list[Contribution]) -> str:
        """Fold and close a round; its global model."""
        ordered = in_order(contributions)
        fold(
            [TensorFile.open(self.path(item.digest)) for item in ordered],
            [item.samples for item in ordered],
            Recipe(Architecture.RESNET18, number, Strategy()),
            self.store / "folded",
        )
        made = self.put((self.store / "folded").read_bytes())
        words = (bytes.fromhex(made), bytes.fromhex(of_contributions(contributions)), len(contributions))
        self.ledger.send("closeRound", bytes.fromhex(JOB), number, *words)
        return made

    def put(self, data: bytes) -> str:
        """Store a file."""
        digest = hashlib.sha256(data).hexdigest()
        self.path(digest).parent.mkdir(exist_ok=True)
        self.path(digest).write_bytes(data)
        return digest

    def path(self, digest: str) -> Path:
        """Where a file lies."""
        return self.store / digest[:2] / digest

    def node(self) -> Node:
        """A client for the chain's node."""
        return Node("http://node/", httpx.MockTransport(NodeDouble(self.ledger.chain.web3).answer))


def rezip(bundle: Path, target: Path, changes: dict[str, bytes | None], *, reseal: bool = False) -> Path:
    """A bundle with other members (None: without it), whole as a zip; with `reseal` its manifest says so too."""
    with zipfile.ZipFile(bundle) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    members = {name: data for name, data in (members | changes).items() if data is not None}
    if reseal:
        manifest = json.loads(members["manifest.json"])
        manifest["members"] = {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in members.items()
            if name != "manifest.json"
        }
        members["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


class NodeDouble:
    """JSON-RPC over HTTP as nodes speak it, in front of the EVM within the process. Refuses ranges of over 4 blocks."""

    def __init__(self, web3: Any, tells_logs: bool = True) -> None:
        self._eth = web3.eth
        self._tells_logs = tells_logs
        self.asked: list[str] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        """One call."""
        call = json.loads(request.content)
        self.asked.append(call["method"])
        try:
            told = {"result": _json(self._result(call["method"], call["params"]))}
        except (Web3Exception, ValueError) as error:
            told = {"error": {"code": -32000, "message": str(error)}}
        return httpx.Response(200, json={"jsonrpc": "2.0", "id": call["id"], **told})

    def _result(self, method: str, params: list[Any]) -> Any:
        eth = self._eth
        if method == "eth_getLogs":
            wanted = params[0] | {key: int(params[0][key], 16) for key in ("fromBlock", "toBlock")}
            if not self._tells_logs:
                raise ValueError("the method does not exist")
            if wanted["toBlock"] - wanted["fromBlock"] >= 4:
                raise ValueError("query exceeds max block range 4")
            return eth.get_logs(wanted)
        at = params[-1] if params and params[-1] == "latest" else None
        reads = {
            "eth_chainId": lambda: eth.chain_id,
            "eth_blockNumber": lambda: eth.block_number,
            "eth_getBlockByNumber": lambda: eth.get_block(int(params[0], 16)),
            "eth_getCode": lambda: eth.get_code(params[0], at or int(params[1], 16)),
            "eth_call": lambda: eth.call(params[0], int(params[1], 16)),
            "eth_getTransactionByHash": lambda: eth.get_transaction(params[0]),
            "eth_getTransactionReceipt": lambda: eth.get_transaction_receipt(params[0]),
        }
        return reads[method]()


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value)
    if hasattr(value, "items"):
        return {key: _json(each) for key, each in value.items()}
    return [_json(each) for each in value] if isinstance(value, (list, tuple)) else value
