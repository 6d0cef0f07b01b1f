"""A consortium of a hundred hospitals around one gateway, one faulty node and one chain, and what is true afterwards.

What is true is read from Anvil, past gateway and proxy: the events, the relay's transactions, what waits in the pool.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import jwt
from concilia_kit import digests, signing
from concilia_kit.roles import Role
from concilia_kit.signing import Domain, Update
from concilia_kit.tokens import ALGORITHM, ISSUER
from concilia_kit.wire.auth import Audience
from concilia_kit.wire.chain import ContractInfo, LedgerRound, Receipt, RoundOpening, Transaction, UpdateSubmission
from concilia_kit.wire.training import UpdateMetrics
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eth_account.signers.local import LocalAccount
from eth_utils.abi import function_abi_to_4byte_selector
from pydantic import TypeAdapter
from web3 import HTTPProvider, Web3
from web3.contract import Contract

from .anvil_node import Anvil, Miner, until
from .gateway_process import Gateway
from .rpc_proxy import FaultyNode

PAUSE_SECONDS = 0.2  # a client's, before it repeats what got no answer
ANSWER_SECONDS = 12.0  # how long a client waits for one
CONFIRMATIONS = 3
_LATER = frozenset({401, 408, 425, 429})
_METRICS = UpdateMetrics(
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


class KeyServer:
    """Stands where the auth service does: signs access tokens and publishes its key over HTTP."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._key = Ed25519PrivateKey.generate()
        entry = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(self._key.public_key()))
        body = json.dumps({"keys": [{**entry, "kid": "one", "alg": ALGORITHM}]}).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, name="keys", daemon=True).start()

    def headers(self, address: str, role: Role) -> dict[str, str]:
        now = int(time.time())
        claims = {"sub": address, "aud": Audience.CHAIN, "iss": ISSUER, "iat": now, "exp": now + 300, "roles": [role]}
        token = jwt.encode(claims, self._key, algorithm=ALGORITHM, headers={"kid": "one"})
        return {"Authorization": f"Bearer {token}"}

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Posting:
    """Hospitals that post their updates at the same time, and repeat them until they are answered."""

    def __init__(self, world: World, submissions: Sequence[UpdateSubmission]) -> None:
        self.receipts: dict[str, Receipt] = {}
        self.refused: dict[str, str] = {}
        self.repeated: Counter[str] = Counter()
        self._world = world
        self._stopping = threading.Event()
        limits = httpx.Limits(max_connections=len(submissions), max_keepalive_connections=len(submissions))
        self._http = httpx.Client(timeout=ANSWER_SECONDS, limits=limits)
        self._pool = ThreadPoolExecutor(len(submissions), thread_name_prefix="hospital")
        self._posted = [self._pool.submit(self._post, submission) for submission in submissions]

    def done(self) -> bool:
        return all(each.done() for each in self._posted)

    def stop(self) -> None:
        self._stopping.set()
        self._pool.shutdown()
        self._http.close()
        for each in self._posted:
            each.result()

    def _post(self, submission: UpdateSubmission) -> None:
        hospital = submission.update.hospital
        body = submission.model_dump_json()
        while not self._stopping.is_set():
            headers = self._world.keys.headers(hospital, Role.HOSPITAL) | {"Content-Type": "application/json"}
            try:
                answer = self._http.post(f"{self._world.gateway.url}/v1/updates", content=body, headers=headers)
            except httpx.TransportError as error:
                self.repeated[type(error).__name__] += 1
            else:
                if answer.status_code in {200, 201}:
                    self.receipts[hospital] = Receipt.model_validate_json(answer.content)
                    return
                if answer.status_code < 500 and answer.status_code not in _LATER:
                    self.refused[hospital] = f"{answer.status_code} {answer.text[:300]}"
                    return
                self.repeated[f"{answer.status_code} {_code(answer)}"] += 1
            self._stopping.wait(PAUSE_SECONDS)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the chain has of a round. `wrong` are records with another digest than was posted."""

    records: int
    duplicates: int
    gaps: int
    wrong: int
    transactions: int
    gas: int
    reverted: int
    reverted_gas: int


class World:
    """Everything of one test; its round is open and its hospitals are enrolled once `open` returned."""

    def __init__(
        self,
        anvil: Anvil,
        miner: Miner,
        proxy: FaultyNode,
        gateway: Gateway,
        keys: KeyServer,
        relay: str,
        hospitals: Sequence[LocalAccount],
    ) -> None:
        self.anvil, self.miner, self.proxy, self.gateway, self.keys = anvil, miner, proxy, gateway, keys
        self.relay = relay
        self.hospitals = hospitals
        self.seconds = 0.0
        self.measured: Measured | None = None
        self.postings: list[Posting] = []
        self.digests: dict[str, str] = {}
        self._web3 = Web3(HTTPProvider(anvil.url))
        self._http = httpx.Client(timeout=90)
        self._began = time.monotonic()
        self.before_round: Callable[[], None]
        self.info: ContractInfo
        self.opening: RoundOpening
        self.contract: Contract

    # before

    def enrol(self, abi: Any) -> None:
        """Have the administrator, one of the node's own accounts, grant the hundred their role."""
        self.info = ContractInfo.model_validate(self._get("/v1/contract"))
        self.contract = self._web3.eth.contract(address=Web3.to_checksum_address(self.info.address), abi=abi)
        grants = [
            self.contract.encode_abi("grantRole", [Role.HOSPITAL.identifier, hospital.address])
            for hospital in self.hospitals
        ]
        admin = self._web3.eth.accounts[0]
        fields = {"from": admin, "to": self.info.address, "gas": hex(200_000), "maxFeePerGas": hex(10**12)}
        self.miner.pause()  # the node counts a nonce twice while it makes a block
        self.anvil.rpcs([("eth_sendTransaction", [{**fields, "data": grant}]) for grant in grants])
        self.miner.mine()
        assert not self.anvil.pool(admin), "the grants are in a block"
        self.miner.resume()
        until(self._all_known, 20, "the gateway knows a hundred hospitals")

    def _all_known(self) -> bool:
        known = self._get(f"/v1/members/{self.hospitals[-1].address}/roles")
        return Role.HOSPITAL in known["roles"]

    def open(self) -> None:
        """Open the round, by REST as the coordinator does."""
        self.opening = RoundOpening(
            job=secrets.token_hex(32),
            round=1,
            base=secrets.token_hex(32),
            deadline=int(time.time()) + 7 * 86400,  # the chain's clock runs ahead: a second a block at least
            quorum=1,
        )
        answer = self._http.post(
            f"{self.gateway.url}/v1/rounds",
            json=self.opening.model_dump(mode="json"),
            headers=self.keys.headers(self.relay, Role.COORDINATOR),
        )
        assert answer.status_code == 201, answer.text
        self._began = time.monotonic()

    # meanwhile

    def post(self, hospitals: Iterable[LocalAccount] | None = None) -> Posting:
        """Have hospitals, or all of them, post their updates at once; returns while they are at it."""
        submissions = [self._submission(hospital) for hospital in hospitals or self.hospitals]
        self.digests |= {each.update.hospital: each.update.digest for each in submissions}
        self.postings.append(Posting(self, submissions))
        return self.postings[-1]

    def recorded(self) -> list[Any]:
        """The round's records as the chain has them now."""
        event = self.contract.events.UpdateRecorded()
        return list(event.get_logs(from_block=0, argument_filters={"job": bytes.fromhex(self.opening.job)}))

    def pool(self) -> list[dict[str, Any]]:
        """The relay's transactions that wait for a block."""
        return self.anvil.pool(self.relay)

    def mined(self) -> list[str]:
        """The relay's transactions that are in a block, in the order of their nonces."""
        return [each["hash"] for each in self._mined()]

    def snapshot(self) -> Callable[[], None]:
        """Keep the chain's state; what is returned takes the chain back to it, and its pool is empty then."""
        kept = self.anvil.rpc("evm_snapshot")

        def go_back() -> None:
            assert self.anvil.rpc("evm_revert", kept) is True
            self.anvil.rpc("anvil_dropAllTransactions")

        return go_back

    def _submission(self, hospital: LocalAccount) -> UpdateSubmission:
        update = Update(
            hospital=hospital.address,
            job=self.opening.job,
            round=self.opening.round,
            base=self.opening.base,
            digest=secrets.token_hex(32),
            samples=100,
            metrics=digests.of_json(_METRICS.model_dump(mode="json")),
        )
        domain = Domain(chain_id=self.info.chain_id, contract=self.info.address)
        return UpdateSubmission(update=update, metrics=_METRICS, signature=signing.sign(update, domain, hospital))

    # afterwards

    def conclude(self, seconds: float = 60, reverted: int = 0) -> None:
        """Wait until nothing is left to do, then see that each update is on the chain once and all agree on it."""
        self.await_records(seconds)
        until(lambda: not self.pool(), 20, lambda: f"nothing of the relay waits: {self.told()}")
        until(self._all_final, 30, lambda: f"the gateway calls all updates final: {self.told()}")
        self.miner.mine(2 * CONFIRMATIONS)
        measured = self.measure()
        assert (measured.records, measured.duplicates, measured.gaps, measured.wrong) == (len(self.digests), 0, 0, 0)
        assert measured.reverted <= reverted, f"{measured.reverted} transactions were reverted: {measured}"
        refused = {hospital: why for posting in self.postings for hospital, why in posting.refused.items()}
        assert not refused, refused
        assert self.digests.keys() == {hospital for posting in self.postings for hospital in posting.receipts}
        self._gateway_agrees()

    def await_records(self, seconds: float) -> None:
        """Wait until every update was answered and is on the chain."""
        until(
            lambda: all(posting.done() for posting in self.postings),
            seconds,
            lambda: f"all are answered: {self.told()}",
        )
        until(lambda: len(self.recorded()) >= len(self.digests), seconds, lambda: f"all are recorded: {self.told()}")
        self.seconds = time.monotonic() - self._began

    def told(self) -> str:
        """What clients and gateway say, for whoever has to find out why."""
        repeated: Counter[str] = sum((posting.repeated for posting in self.postings), Counter())
        answered = sum(len(posting.receipts) for posting in self.postings)
        return (
            f"{len(self.recorded())} recorded, {answered} answered, repeated {dict(repeated)}, "
            f"{len(self.proxy.broadcasts)} broadcasts, pool {[each['nonce'] for each in self.pool()]}; "
            f"standard error: {self.gateway.said()[-1500:]}"
        )

    def measure(self) -> Measured:
        """Count on the chain itself."""
        logs = self.recorded()
        found = Counter(str(log["args"]["hospital"]) for log in logs)
        right = {
            str(log["args"]["hospital"])
            for log in logs
            if self.digests.get(str(log["args"]["hospital"])) == log["args"]["digest"].hex()
        }
        transactions = self._relayed()
        receipts = self.anvil.rpcs([("eth_getTransactionReceipt", [each]) for each in transactions])
        reverted = [receipt for receipt in receipts if receipt["status"] != "0x1"]
        self.measured = Measured(
            records=len(logs),
            duplicates=len(logs) - len(found),
            gaps=len(self.digests.keys() - right),
            wrong=len(found.keys() - right),
            transactions=len(transactions),
            gas=sum(int(receipt["gasUsed"], 16) for receipt in receipts),
            reverted=len(reverted),
            reverted_gas=sum(int(receipt["gasUsed"], 16) for receipt in reverted),
        )
        return self.measured

    def _relayed(self) -> list[str]:
        """The relay's `submitUpdates` on the chain, reverted ones included; its nonces have no gap."""
        own = self._mined()
        assert [int(each["nonce"], 16) for each in own] == list(range(len(own)))
        selector = "0x" + function_abi_to_4byte_selector(self.contract.get_function_by_name("submitUpdates").abi).hex()
        return [each["hash"] for each in own if each["input"].startswith(selector)]

    def _mined(self) -> list[dict[str, Any]]:
        numbers = range(self.anvil.head() + 1)
        blocks = self.anvil.rpcs([("eth_getBlockByNumber", [hex(number), True]) for number in numbers])
        return [
            each for block in blocks for each in block["transactions"] if each["from"].lower() == self.relay.lower()
        ]

    def _round(self) -> LedgerRound:
        return LedgerRound.model_validate(self._get(self._round_path()))

    def _round_path(self) -> str:
        return f"/v1/jobs/{self.opening.job}/rounds/{self.opening.round}"

    def _all_final(self) -> bool:
        try:
            answer = self._asked(self._round_path())
        except httpx.TransportError:  # it is being started again
            return False
        updates = LedgerRound.model_validate_json(answer.content).updates if answer.status_code == 200 else ()
        return len(updates) == len(self.digests) and all(each.finality == "final" for each in updates)

    def _gateway_agrees(self) -> None:
        on_chain = {
            (str(log["args"]["hospital"]), log["args"]["digest"].hex(), _hash(log["transactionHash"]))
            for log in self.recorded()
        }
        told = self._round()
        assert told.submitted == len(self.digests)
        assert {(each.update.hospital, each.update.digest, each.transaction) for each in told.updates} == on_chain
        rows = TypeAdapter(list[Transaction]).validate_python(
            self._get("/v1/transactions", job=self.opening.job, limit=1000)
        )
        ordered = Counter((row.hospital, row.transaction) for row in rows if row.hospital is not None)
        wanted = Counter((hospital, transaction) for hospital, _, transaction in on_chain)
        assert ordered == wanted, f"rows too many: {ordered - wanted}; rows missing: {wanted - ordered}"

    def _get(self, path: str, **params: Any) -> Any:
        answer = self._asked(path, **params)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def _asked(self, path: str, **params: Any) -> httpx.Response:
        headers = self.keys.headers(self.relay, Role.COORDINATOR)
        return self._http.get(self.gateway.url + path, params=params, headers=headers)

    def stop(self) -> None:
        for posting in self.postings:
            posting.stop()
        self._http.close()


def _hash(value: bytes) -> str:
    return "0x" + bytes(value).hex()


def _code(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("code", ""))
    except ValueError:
        return answer.text[:80]
