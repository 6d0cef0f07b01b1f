"""Hospitals without a process of their own: real keys, real signatures, the requests of a node, nothing trained.

Each takes its tasks off its own Celery queue in Redis. What a node of `client-node` asks and tells in a round is asked
and told here, in the same order, with bodies of the same form; only what it does in between is left out.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import numpy as np
import redis.asyncio
import safetensors.numpy
from concilia_auth import tokens
from concilia_auth.keys import SigningKey
from concilia_kit import digests, signing
from concilia_kit.roles import Role
from concilia_kit.signing import Domain
from concilia_kit.wire.auth import Audience
from concilia_kit.wire.chain import LedgerRound, UpdateSubmission
from concilia_kit.wire.nodes import NodeRegistration
from concilia_kit.wire.progress import Progress, Stage
from concilia_kit.wire.queues import queue_of
from concilia_kit.wire.training import (
    EVALUATE_TASK,
    SCORE_BINS,
    TRAIN_TASK,
    EvaluateTask,
    EvaluationReport,
    TrainTask,
    UpdateMetrics,
)
from eth_account import Account
from eth_account.signers.local import LocalAccount

IMAGES = 100
_TOKEN_SECONDS = 3500
_ANSWER_SECONDS = 300.0
_CLASSES = 7

Trace = Callable[[str, str], None]
"""Told of each step: a hospital's address and the step's name."""


def model(seed: int, elements: int) -> bytes:
    """A small model's safetensors file: two float32 tensors and a counter."""
    drawn = np.random.default_rng(seed)
    return safetensors.numpy.save(
        {
            "layer.weight": drawn.normal(size=(elements // 8, 8)).astype(np.float32) * 0.01,
            "layer.bias": drawn.normal(size=8).astype(np.float32) * 0.01,
            "norm.num_batches_tracked": np.array(1, np.int64),
        }
    )


@dataclass
class Hospital:
    """One hospital: its key, and how many it is in the cohort."""

    account: LocalAccount
    number: int
    tokens: dict[Audience, str] = field(default_factory=dict)
    models: set[str] = field(default_factory=set)

    @property
    def address(self) -> str:
        """Its EIP-55 address."""
        return str(self.account.address)


@dataclass
class Cohort:
    """All hospitals, at most `clients` of them at work at a time."""

    hospitals: Sequence[Hospital]
    urls: dict[str, str]
    redis_url: str
    elements: int
    clients: int
    trace: Trace = lambda _who, _what: None
    told: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Cohort:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        self._http = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def register(self) -> None:
        """Say of each hospital that its node is there."""
        registration = NodeRegistration(
            site="a hospital",
            source="drawn numbers",
            training_images=(IMAGES,) * _CLASSES,
            held_out_images=(IMAGES,) * _CLASSES,
            training_lesions=IMAGES,
            held_out_lesions=IMAGES,
            overlapping_lesions=0,
            skipped_images=0,
        ).model_dump_json()

        async def one(hospital: Hospital) -> None:
            await self._ask(hospital, "PUT", "aggregator", f"/v1/nodes/{hospital.address}", body=registration)

        await self._each(one)

    async def work(self, tasks: int) -> None:
        """Carry out so many tasks a hospital."""
        clients = min(self.clients, len(self.hospitals))
        shares = [self.hospitals[at::clients] for at in range(clients)]
        await asyncio.gather(*(self._share(share, tasks) for share in shares))
        await asyncio.gather(*self.told)
        self.told.clear()

    async def _each(self, what: Callable[[Hospital], Any]) -> None:
        clients = min(self.clients, len(self.hospitals))

        async def share(hospitals: Sequence[Hospital]) -> None:
            for hospital in hospitals:
                await what(hospital)

        await asyncio.gather(*(share(self.hospitals[at::clients]) for at in range(clients)))

    async def _share(self, hospitals: Sequence[Hospital], tasks: int) -> None:
        """One client's hospitals, one after another: each waits for its task at its own queue, as a node does."""
        async with redis.asyncio.from_url(self.redis_url, single_connection_client=True, socket_timeout=None) as broker:
            for _ in range(tasks):
                for hospital in hospitals:
                    taken = await broker.brpop([queue_of(hospital.address)], timeout=0)
                    assert taken is not None, "it waits for as long as it takes"
                    await self._carry_out(hospital, json.loads(taken[1]))

    async def _carry_out(self, hospital: Hospital, message: dict[str, Any]) -> None:
        _positional, named, _options = json.loads(base64.b64decode(message["body"]))
        name = message["headers"]["task"]
        self.trace(hospital.address, f"{name} taken")
        if name == TRAIN_TASK:
            await self._train(hospital, TrainTask.model_validate(named["task"]))
        elif name == EVALUATE_TASK:
            await self._evaluate(hospital, EvaluateTask.model_validate(named["task"]))
        self.trace(hospital.address, f"{name} done")

    # ----------------------------------------------------------------------------------------------- what a node does

    async def _train(self, hospital: Hospital, task: TrainTask) -> None:
        who = hospital.address
        shown = await self._ask(
            hospital, "GET", "chain", f"/v1/jobs/{task.job}/rounds/{task.round}", params={"hospital": who}
        )
        found = LedgerRound.model_validate_json(shown)
        if found.base != task.base:
            raise RuntimeError("the ledger has another base model for this round")
        self.trace(who, "round seen")
        await self._fetch(hospital, task.job, task.round, task.base)
        self._tell(hospital, task.job, task.round, Stage.TRAINING)
        data = model(task.round * 1_000_003 + hospital.number, self.elements)
        digest = hashlib.sha256(data).hexdigest()
        self._tell(hospital, task.job, task.round, Stage.UPLOADING)
        await self._ask(hospital, "HEAD", "model", f"/v1/artifacts/{digest}", expected=(200, 404))
        await self._ask(hospital, "PUT", "model", f"/v1/artifacts/{digest}", body=data)
        self.trace(who, "uploaded")
        self._tell(hospital, task.job, task.round, Stage.SUBMITTING)
        info = json.loads(await self._ask(hospital, "GET", "chain", "/v1/contract"))
        domain = Domain(chain_id=info["chain_id"], contract=info["address"])
        metrics = _metrics(len(data))
        update = signing.Update(
            hospital=who,
            job=task.job,
            round=task.round,
            base=task.base,
            digest=digest,
            samples=IMAGES,
            metrics=digests.of_json(metrics.model_dump(mode="json")),
        )
        signature = signing.sign(update, domain, hospital.account)
        body = UpdateSubmission(update=update, metrics=metrics, signature=signature).model_dump_json()
        self.trace(who, "signed")
        await self._ask(hospital, "POST", "chain", "/v1/updates", body=body)
        self.trace(who, "submitted")
        self._tell(hospital, task.job, task.round, Stage.SUBMITTED)

    async def _evaluate(self, hospital: Hospital, task: EvaluateTask) -> None:
        await self._fetch(hospital, task.job, task.round, task.model)
        self._tell(hospital, task.job, task.round, Stage.EVALUATING)
        report = _report(task)
        path = f"/v1/jobs/{task.job}/rounds/{task.round}/evaluations/{hospital.address}"
        await self._ask(hospital, "PUT", "aggregator", path, body=report.model_dump_json())
        self._tell(hospital, task.job, task.round, Stage.EVALUATED)

    async def _fetch(self, hospital: Hospital, job: str, number: int, digest: str) -> None:
        if digest in hospital.models:  # a node keeps what it evaluated
            return
        self._tell(hospital, job, number, Stage.DOWNLOADING)
        data = await self._ask(hospital, "GET", "model", f"/v1/artifacts/{digest}")
        if hashlib.sha256(data).hexdigest() != digest:
            raise RuntimeError("the base model's bytes do not hash to its digest")
        hospital.models = {digest}
        self.trace(hospital.address, "fetched")

    def _tell(self, hospital: Hospital, job: str, number: int, stage: Stage) -> None:
        """Progress, as a node sends it: beside its work."""
        progress = Progress(stage=stage, fraction=0.0).model_dump_json()
        path = f"/v1/jobs/{job}/rounds/{number}/progress"
        self.told.append(asyncio.create_task(self._ask_quietly(hospital, path, progress)))

    async def _ask_quietly(self, hospital: Hospital, path: str, body: str) -> None:
        await self._ask(hospital, "POST", "aggregator", path, body=body)

    async def _ask(
        self,
        hospital: Hospital,
        method: str,
        service: str,
        path: str,
        *,
        body: str | bytes | None = None,
        params: dict[str, str] | None = None,
        expected: tuple[int, ...] = (200, 201, 202, 204),
    ) -> bytes:
        """One request; asked again where the connection broke or the service was busy, as nodes do."""
        headers = {"Authorization": f"Bearer {hospital.tokens[Audience(service)]}"}
        if body is not None:
            headers["Content-Type"] = "application/json" if isinstance(body, str) else "application/octet-stream"
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                url = self.urls[service] + path
                async with self._http.request(method, url, data=body, headers=headers, params=params) as answer:
                    content = await answer.read()
                    if answer.status in expected:
                        return content
                    if answer.status not in (429, 502, 503, 504):
                        raise RuntimeError(f"{method} {service} {path}: {answer.status} {content[:300]!r}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{method} {service} {path}: no answer within {_ANSWER_SECONDS:.0f} s")
            await asyncio.sleep(0.2)


def make(count: int, signing_key: SigningKey) -> list[Hospital]:
    """So many hospitals with keys of their own, and an access token for each service that a node talks to.

    The tokens are signed with auth's key, beforehand: a sign-in is good for hours, and is measured by itself.
    """
    made = [Hospital(Account.create(), number) for number in range(count)]
    now = datetime.now(UTC).replace(microsecond=0)
    for hospital in made:
        for audience in (Audience.MODEL, Audience.CHAIN, Audience.AGGREGATOR):
            hospital.tokens[audience] = tokens.mint(
                signing_key,
                token_id=secrets.token_urlsafe(16),
                address=hospital.address,
                roles=[Role.HOSPITAL],
                audience=audience,
                issued_at=now,
                expires_at=now + timedelta(seconds=_TOKEN_SECONDS),
            )
    return made


def _metrics(size: int) -> UpdateMetrics:
    return UpdateMetrics(
        loss=0.5,
        accuracy=0.5,
        images=IMAGES,
        lesions=IMAGES,
        skipped_images=0,
        epochs=1,
        seconds_download=0.0,
        seconds_training=0.0,
        seconds_upload=0.0,
        bytes_download=size,
        bytes_upload=size,
    )


def _report(task: EvaluateTask) -> EvaluationReport:
    """Counts of a classifier that is right about every image."""
    confusion = tuple(tuple(IMAGES if row == column else 0 for column in range(_CLASSES)) for row in range(_CLASSES))
    edge = (IMAGES, *(0,) * (SCORE_BINS - 1))
    others = (IMAGES * (_CLASSES - 1), *(0,) * (SCORE_BINS - 1))
    return EvaluationReport(
        job=task.job,
        round=task.round,
        model=task.model,
        confusion=confusion,
        positives=(edge[::-1],) * _CLASSES,
        negatives=(others,) * _CLASSES,
        loss_sum=0.0,
        images=IMAGES * _CLASSES,
        lesions=IMAGES,
        overlapping_lesions=0,
        skipped_images=0,
        seconds=0.0,
    )
