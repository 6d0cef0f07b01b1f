"""A whole consortium in memory, behind real HTTP: the endpoints a node uses, with the rules that matter to it."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
import uvicorn
from concilia_auth.broker import BrokerUsers
from concilia_kit import digests, merkle, signing, web
from concilia_kit.problems import Conflict, Forbidden, NotFound, Problem, Unauthorized, Unprocessable
from concilia_kit.roles import Role
from concilia_kit.signing import Domain, TaskOrder
from concilia_kit.wire.auth import (
    AccessToken,
    Application,
    Audience,
    BrokerCredential,
    Challenge,
    ChallengeRequest,
    FiledApplication,
    Session,
    SignIn,
    TokenRequest,
)
from concilia_kit.wire.chain import (
    AccountRoles,
    Acknowledgement,
    ContractInfo,
    Holders,
    LedgerRound,
    LedgerUpdate,
    Receipt,
    RoundStatus,
    UpdateSubmission,
)
from concilia_kit.wire.nodes import NodeRegistration
from concilia_kit.wire.progress import Progress
from concilia_kit.wire.training import EvaluationReport, Task, order_of
from eth_account import Account
from eth_account.messages import encode_defunct
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from tests.unit.client_node import room_double

DOMAIN = Domain(chain_id=1337, contract="0x" + 39 * "0" + "7")
SOON = timedelta(minutes=5)
COORDINATOR = Account.from_key("0x" + 32 * "c0")


@dataclass
class ConsortiumDouble:
    """What the services know, and what they were asked. `failures` are raised once each, before an endpoint acts;
    None lets a call pass."""

    url: str = ""
    artifacts: dict[str, bytes] = field(default_factory=dict)
    rounds: dict[tuple[str, int], LedgerRound] = field(default_factory=dict)
    collected: dict[tuple[str, int], dict[str, UpdateSubmission]] = field(default_factory=dict)
    submissions: list[bytes] = field(default_factory=list)
    evaluations: list[EvaluationReport] = field(default_factory=list)
    registrations: list[tuple[str, NodeRegistration]] = field(default_factory=list)
    applications: list[tuple[str, Application]] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    enrolled: bool = True
    coordinates: bool = True
    broker_url: str = ""
    calls: list[str] = field(default_factory=list)
    failures: defaultdict[str, list[Problem | None]] = field(default_factory=lambda: defaultdict(list))
    lose_receipts: int = 0
    upload_lengths: list[int] = field(default_factory=list)
    parts: dict[str, bytearray] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    writing: set[str] = field(default_factory=set)
    assigned: list[object] = field(default_factory=list)
    put_aside: set[str] = field(default_factory=set)
    rooms: dict[tuple[str, int], Any] = field(default_factory=dict)
    holders: frozenset[str] = frozenset()

    def sign(self, task: Task) -> str:
        """A coordinator's signature of a task."""
        return signing.sign(order_of(task), DOMAIN, COORDINATOR)

    def ask(self, hospital: Any, task: Task) -> None:
        """Have a hospital's node work at a task as if its message had come."""
        hospital.work(task, self.sign(task))

    def message(self, name: str, task: Any) -> dict[str, Any]:
        """What the aggregator puts into a queue; `task` in its JSON form, be it a task or not."""
        order = TaskOrder(name=name, digest=digests.of_json(task))
        return {"task": task, "signature": signing.sign(order, DOMAIN, COORDINATOR)}

    def open_round(self, job: str, number: int, base: str, seconds: float = 600, *, merkle: bool = False) -> None:
        self.rounds[job, number] = LedgerRound(
            job=job,
            round=number,
            status=RoundStatus.OPEN,
            base=base,
            deadline=int(time.time() + seconds),
            quorum=1,
            submitted=0,
            rejected=0,
            global_digest=None,
            contributions=None,
            updates=(),
            merkle=merkle,
        )

    def keep(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.artifacts[digest] = content
        return digest

    def take(self, submission: UpdateSubmission) -> Receipt | Acknowledgement:
        """The contract's rules, in its order, and the gateway's: what comes again is what came before."""
        update = submission.update
        found = self.rounds.get((update.job, update.round))
        if found is None or found.status is not RoundStatus.OPEN:
            raise Conflict("the round is not open", code="round_not_open")
        if time.time() > found.deadline:
            raise Conflict("the deadline has passed", code="deadline_passed")
        if update.base != found.base:
            raise Unprocessable("another base", code="base_mismatch")
        if signing.signer(update, DOMAIN, submission.signature) != update.hospital:
            raise Unprocessable("not signed by the hospital", code="invalid_signature")
        if digests.of_json(submission.metrics.model_dump(mode="json")) != update.metrics:
            raise Unprocessable("other metrics", code="metrics_mismatch")
        return self._collect(found, submission) if found.merkle else self._record(found, submission)

    def _record(self, found: LedgerRound, submission: UpdateSubmission) -> Receipt:
        if any(item.update.hospital == submission.update.hospital for item in found.updates):
            raise Conflict("the hospital has already submitted", code="already_submitted")
        self._set(found, updates=(*found.updates, _ledger_update(submission)))
        now = datetime.now(UTC)
        return Receipt(transaction="0x1", block=1, gas=1, received_at=now, sent_at=now, confirmed_at=now)

    def _collect(self, found: LedgerRound, submission: UpdateSubmission) -> Acknowledgement:
        if found.root is not None:
            raise Conflict("the round's updates are committed", code="already_committed")
        update, here = submission.update, self.collected.setdefault((found.job, found.round), {})
        if here.setdefault(update.hospital, submission) != submission:
            raise Conflict("the hospital has already submitted", code="already_submitted")
        self._set(found, collected=tuple(here))
        return Acknowledgement(
            job=update.job,
            round=update.round,
            hospital=update.hospital,
            leaf=_leaf(submission).hex(),
            received_at=datetime.now(UTC),
        )

    def commit(self, job: str, number: int) -> None:
        here = self.collected[job, number]
        ordered = [here[hospital] for hospital in sorted(here, key=lambda address: int(address, 16))]
        updates = tuple(_ledger_update(item, index) for index, item in enumerate(ordered))
        root = merkle.root(map(_leaf, ordered)).hex()
        self._set(self.rounds[job, number], updates=updates, collected=(), submitted=len(updates), root=root)

    def _set(self, found: LedgerRound, **changes: Any) -> None:
        self.rounds[found.job, found.round] = found.model_copy(update=changes)

    def app(self) -> FastAPI:
        app = web.application("consortium double", ready={}, streamed=("/v1/artifacts", "/v1/uploads"))

        def enter(name: str, request: Request, audience: Audience | None = None) -> None:
            self.calls.append(name)
            if self.failures[name] and (failure := self.failures[name].pop(0)) is not None:
                raise failure
            if audience and not request.headers.get("authorization", "").startswith(f"Bearer {audience.value}:"):
                raise Unauthorized("no token for this service")

        def bearer(request: Request) -> str:
            return request.headers["authorization"].removeprefix("Bearer ").partition(":")[2]

        @app.post("/v1/challenges")
        def challenge(body: ChallengeRequest) -> Challenge:
            return Challenge(message=f"sign in as {body.address}", nonce="n", expires_at=datetime.now(UTC) + SOON)

        @app.post("/v1/sessions")
        def session(body: SignIn) -> Session:
            address = Account.recover_message(encode_defunct(text=body.message), signature=body.signature)
            assert body.message == f"sign in as {address}"
            return Session(token=f"session:{address}", address=address, roles=(), expires_at=datetime.now(UTC) + SOON)

        @app.post("/v1/tokens")
        def token(body: TokenRequest, request: Request) -> AccessToken:
            text = f"{body.audience.value}:{bearer(request)}"
            return AccessToken(
                token=text, audience=body.audience, roles=(Role.HOSPITAL,), expires_at=datetime.now(UTC) + SOON
            )

        def absent(digest: str) -> NotFound:
            code = "artifact_quarantined" if digest in self.put_aside else "artifact_not_found"
            return NotFound("no such artifact", code=code)

        @app.get("/v1/artifacts/{digest}/info")
        def has_artifact(digest: str, request: Request) -> dict[str, str]:
            enter("info", request, Audience.MODEL)
            if digest not in self.artifacts:
                raise absent(digest)
            return {"digest": digest}

        @app.post("/v1/artifacts/{digest}/check")
        def check_artifact(digest: str, request: Request) -> dict[str, object]:
            enter("check", request, Audience.MODEL)
            if digest not in self.artifacts:
                raise absent(digest)
            is_intact = hashlib.sha256(self.artifacts[digest]).hexdigest() == digest
            if not is_intact:
                del self.artifacts[digest]
                self.put_aside.add(digest)
            return {"digest": digest, "intact": is_intact}

        @app.get("/v1/artifacts/{digest}")
        def get_artifact(digest: str, request: Request) -> Response:
            enter("get", request, Audience.MODEL)
            if digest not in self.artifacts:
                raise absent(digest)
            content = self.artifacts[digest]

            async def body() -> AsyncIterator[bytes]:
                for start in range(0, len(content), 2**20):
                    yield content[start : start + 2**20]

            return StreamingResponse(body(), media_type="application/octet-stream")

        @app.post("/v1/uploads", status_code=201)
        def begin_upload(request: Request) -> Response:
            enter("upload", request, Audience.MODEL)
            _, _, value = request.headers["upload-metadata"].partition("digest ")
            digest, length = base64.b64decode(value).decode(), int(request.headers["upload-length"])
            self.upload_lengths.append(length)
            self.lengths[digest] = length
            offset = length if digest in self.artifacts else len(self.parts.setdefault(digest, bytearray()))
            return Response(status_code=201, headers={"Location": f"uploads/{digest}", "Upload-Offset": str(offset)})

        @app.head("/v1/uploads/{digest}")
        def upload_standing(digest: str, request: Request) -> Response:
            enter("where", request, Audience.MODEL)
            held = self.artifacts.get(digest, self.parts.get(digest, b""))
            return Response(headers={"Upload-Offset": str(len(held))})

        @app.patch("/v1/uploads/{digest}", status_code=204)
        async def append(digest: str, request: Request) -> Response:
            enter("append", request, Audience.MODEL)
            part = self.parts.get(digest, self.artifacts.get(digest, b""))
            if digest in self.writing:  # two processes of a hospital may bring the same bytes
                raise Problem("another request writes to this upload", status=423, code="upload_locked")
            if int(request.headers["upload-offset"]) != len(part):
                raise Conflict(f"the upload stands at {len(part)}", code="offset_mismatch")
            if isinstance(part, bytearray):
                self.writing.add(digest)
                try:
                    async for chunk in request.stream():
                        part += chunk
                finally:
                    self.writing.remove(digest)
                if hashlib.sha256(part).hexdigest() == digest:
                    self.artifacts[digest] = bytes(self.parts.pop(digest))
                elif len(part) >= self.lengths[digest]:
                    del self.parts[digest]
                    raise Unprocessable("other bytes", code="digest_mismatch")
            return Response(status_code=204, headers={"Upload-Offset": str(len(part))})

        @app.get("/v1/contract")
        def contract(request: Request) -> ContractInfo:
            enter("contract", request)
            return ContractInfo(chain_id=DOMAIN.chain_id, address=DOMAIN.contract, deployment_block=1)

        @app.get("/v1/members/{address}/roles")
        def roles(address: str, request: Request) -> AccountRoles:
            enter("roles", request)
            held = (Role.COORDINATOR,) if address == COORDINATOR.address and self.coordinates else (Role.HOSPITAL,)
            return AccountRoles(address=address, roles=held, block=1)

        @app.get("/v1/holders/{role}")
        def holders(role: Role, request: Request) -> Holders:
            enter("holders", request, Audience.CHAIN)
            return Holders(role=role, addresses=tuple(sorted(self.holders)), block=1)

        @app.post("/v1/broker-credentials", status_code=201)
        def broker_credential(request: Request) -> BrokerCredential:
            enter("broker", request, Audience.AUTH)
            if not self.enrolled:
                raise Forbidden("this needs one of the roles: hospital", code="role_missing")
            address = bearer(request).removeprefix("session:")
            with redis.Redis.from_url(self.broker_url, decode_responses=True) as client:
                users = BrokerUsers(client, lambda _: frozenset({Role.HOSPITAL}), lambda: datetime.now(UTC))
                return users.issue(address)

        @app.get("/v1/jobs/{job}/rounds/{number}")
        def ledger_round(job: str, number: int, request: Request, hospital: str | None = None) -> LedgerRound:
            enter("round", request)
            if (found := self.rounds.get((job, number))) is None:
                raise NotFound("no such round", code="round_unknown")
            shown = tuple(each for each in found.updates if hospital in (None, each.update.hospital))
            return found.model_copy(update={"updates": shown})

        @app.post("/v1/updates")
        async def submit(request: Request, response: Response) -> Receipt | Acknowledgement:
            enter("submit", request, Audience.CHAIN)
            content = await request.body()
            self.submissions.append(content)
            answer = self.take(UpdateSubmission.model_validate_json(content))
            if self.lose_receipts:
                self.lose_receipts -= 1
                raise Problem("the answer got lost", status=503, code="receipt_timeout")
            response.status_code = 202 if isinstance(answer, Acknowledgement) else 201
            return answer

        @app.put("/v1/nodes/{address}", status_code=204)
        def register(address: str, body: NodeRegistration, request: Request) -> None:
            enter("register", request, Audience.AGGREGATOR)
            if not self.enrolled:
                raise Forbidden("this needs one of the roles: hospital", code="role_missing")
            self.registrations.append((address, body))

        @app.get("/v1/nodes/{address}/tasks")
        def tasks(address: str, wait: int, request: Request) -> Response:
            enter("tasks", request, Audience.AGGREGATOR)
            until = time.monotonic() + wait
            while True:
                told = list(self.assigned)
                tag = f'"{digests.of_json(told)}"'  # type: ignore[arg-type]
                if request.headers.get("if-none-match") != tag:
                    return JSONResponse(told, headers={"ETag": tag})
                if time.monotonic() >= until:
                    return Response(status_code=304, headers={"ETag": tag})
                time.sleep(0.05)

        @app.post("/v1/applications", status_code=201)
        def apply(body: Application, request: Request) -> FiledApplication:
            enter("apply", request, Audience.AUTH)
            address = bearer(request).removeprefix("session:")
            self.applications.append((address, body))
            return FiledApplication(**dict(body), address=address, filed_at=datetime.now(UTC))

        @app.post("/v1/jobs/{job}/rounds/{number}/progress", status_code=204)
        def progress(job: str, number: int, body: Progress, request: Request) -> None:
            enter("progress", request, Audience.AGGREGATOR)
            self.progress.append(body)

        @app.put("/v1/jobs/{job}/rounds/{number}/evaluations/{address}", status_code=204)
        def evaluation(job: str, number: int, address: str, body: EvaluationReport, request: Request) -> None:
            enter("evaluation", request, Audience.AGGREGATOR)
            assert (body.job, body.round) == (job, number)
            self.evaluations.append(body)

        def enter_room(name: str, request: Request) -> str:
            enter(name, request, Audience.AGGREGATOR)
            return bearer(request).removeprefix("session:")

        room_double.mount(app, self, enter_room)
        return app


def _leaf(submission: UpdateSubmission) -> bytes:
    return merkle.leaf(merkle.update_data(submission.update, DOMAIN, submission.signature))


def _ledger_update(submission: UpdateSubmission, index: int | None = None) -> LedgerUpdate:
    return LedgerUpdate(
        update=submission.update,
        signature=submission.signature,
        metrics=submission.metrics,
        reason=None,
        transaction="0x1",
        block=1,
        index=index,
    )


@contextmanager
def serve(double: ConsortiumDouble) -> Iterator[ConsortiumDouble]:
    """The double on a real port, for as long as the context lasts."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        double.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(double.app(), log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield double
        finally:
            server.should_exit = True
            thread.join()
