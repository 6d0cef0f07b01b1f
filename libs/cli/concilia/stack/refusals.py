"""What the contract must refuse, tried for real on a demo that was kept: each attempt and the answer it got."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from concilia_kit import digests, keystore, signing
from concilia_kit.problems import Problem
from concilia_kit.roles import Role
from concilia_kit.signing import Update
from concilia_kit.wire.base import Wire
from concilia_kit.wire.chain import UpdateSubmission
from concilia_kit.wire.jobs import JobSpec, JobView, Phase
from concilia_kit.wire.training import UpdateMetrics
from eth_account import Account
from eth_account.signers.local import LocalAccount

from concilia.client import Client
from concilia.commands.jobs import ENDED
from concilia.connection import Connection, Endpoints, UsageError
from concilia.stack.layout import Layout

OPEN_SECONDS = 120.0
SIGNATURE_SECONDS = 600


class Attempt(Wire):
    """Something tried: what the contract was expected to say, and the problem document that came ('{}': accepted)."""

    what: str
    expected: str | None
    answer: dict[str, Any]

    @property
    def as_expected(self) -> bool:
        """The contract refused with the error expected, or accepted where none was."""
        return self.answer.get("contract_error") == self.expected


def attempt_all(directory: Path, said: Callable[[Attempt], None]) -> list[Attempt]:
    """Try everything on the demo in a folder, telling each attempt as it is made.

    Raises `UsageError` where no demo was kept there, `Problem`.
    """
    endpoints = Endpoints.read(directory / "concilia.json")
    layout = Layout(directory.resolve(), 0)
    admin = Client(Connection(endpoints))
    attempts: list[Attempt] = []
    with _guest(admin, layout, endpoints) as guest, _open_round(admin) as (job, finished):
        for what, expected, submission in _submissions(guest.account, _node_address(layout), guest, job, finished):
            try:
                guest.submit_update(submission)
                answer: dict[str, Any] = {}
            except Problem as problem:
                answer = problem.document()
            attempts.append(Attempt(what=what, expected=expected, answer=answer))
            said(attempts[-1])
    return attempts


def _submissions(
    key: LocalAccount, other: str, guest: Client, job: JobView, finished: JobView
) -> Iterator[tuple[str, str | None, UpdateSubmission]]:
    domain = guest.domain()
    metrics = UpdateMetrics(
        loss=0.0,
        accuracy=0.0,
        images=10,
        lesions=10,
        skipped_images=0,
        epochs=1,
        seconds_download=0.0,
        seconds_training=0.0,
        seconds_upload=0.0,
        bytes_download=0,
        bytes_upload=0,
    )
    good = Update(
        hospital=key.address,
        job=job.id,
        round=job.round,
        base=job.rounds[-1].base or "",
        digest=job.spec.initial,
        samples=10,
        metrics=digests.of_json(metrics.model_dump(mode="json")),
    )
    outsider: LocalAccount = Account.create()

    def signed(signer: LocalAccount, **changes: object) -> UpdateSubmission:
        update = good.model_copy(update=changes)
        return UpdateSubmission(update=update, metrics=metrics, signature=signing.sign(update, domain, signer))

    wrong = secrets.token_hex(32)
    old = finished.rounds[1]
    yield "an update signed by another key than its hospital's", "InvalidSignature", signed(key, hospital=other)
    yield "an update of somebody who is no hospital", "NotHospital", signed(outsider, hospital=outsider.address)
    yield "an update that started from another base", "BaseMismatch", signed(key, base=wrong)
    yield "an update for a closed round", "RoundNotOpen", signed(key, job=finished.id, round=1, base=old.base)
    yield "a good update", None, signed(key)
    yield "the same update again, which is there already", None, signed(key)
    yield "another update of the same hospital", "AlreadySubmitted", signed(key, digest=wrong)


@contextmanager
def _guest(admin: Client, layout: Layout, endpoints: Endpoints) -> Iterator[Client]:
    """A fifth hospital without a node, enrolled for the occasion."""
    with TemporaryDirectory(dir=layout.directory) as folder:
        path = Path(folder) / "guest.json"
        key = keystore.create(path, path.with_suffix(".password"))
        _change(admin, key.address, granted=True)
        try:
            files = {"keystore": path, "password_file": path.with_suffix(".password")}
            guest = Client(Connection(endpoints.model_copy(update=files)))
            guest.jobs()  # signs in now: the round that is opened next does not wait for it
            yield guest
        finally:
            _change(admin, key.address, granted=False)


@contextmanager
def _open_round(admin: Client) -> Iterator[tuple[JobView, JobView]]:
    """A new job whose first round is open, and the finished one before it; the new one is stopped in the end."""
    finished = next((item for item in admin.jobs() if item.phase is Phase.FINISHED), None)
    if finished is None:
        raise UsageError("there is no finished job here; run 'make demo KEEP=1' first")
    # Long enough that the hospitals do not fill the round before everything was tried.
    local = finished.spec.local.model_copy(update={"epochs": 5 * finished.spec.local.epochs})
    spec = finished.spec.model_copy(update={"name": "refusals", "local": local})
    job = admin.create_job(JobSpec.model_validate(spec.model_dump()))
    try:
        deadline = time.monotonic() + OPEN_SECONDS
        while job.phase is not Phase.TRAINING:
            if time.monotonic() > deadline or job.phase in ENDED:
                raise UsageError(f"the round did not open in time: {job.phase.value} {job.detail}")
            time.sleep(0.1)
            job = admin.job(job.id)
        yield job, finished
    finally:
        admin.stop_job(job.id)


def _node_address(layout: Layout) -> str:
    path = layout.keystore("node-0")
    return keystore.load(path, path.with_suffix(".password")).address


def _change(admin: Client, address: str, *, granted: bool) -> None:
    admin.change_role(Role.HOSPITAL, address, granted=granted, deadline=int(time.time()) + SIGNATURE_SECONDS)
