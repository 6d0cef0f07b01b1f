"""What the model service learns of its artifacts from a real ledger, and that it knows them for what they are."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest
import sqlalchemy as sa
from concilia_kit import database
from concilia_kit.digests import Contribution, of_contributions
from concilia_kit.http import raise_for_problem
from concilia_kit.roles import Role
from concilia_kit.wire.chain import Publication, RoundClosure
from concilia_kit.wire.models import Artifact, StoredKind
from concilia_model.ledger import HttpLedger
from concilia_model.ledgerindex import LedgerIndex
from concilia_model.references import References
from concilia_model.retention import DAY, Facts, Policy, goes
from concilia_model.store import MIGRATIONS, Store

from .test_aggregator_ledger import Bridge

ALICE = "0x" + "1" * 40


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = database.engine(f"sqlite:///{tmp_path / 'model.db'}")
    database.migrate(made, MIGRATIONS)
    yield made
    made.dispose()


@pytest.mark.parametrize("merkle", [False, True])
async def test_a_job_from_its_first_base_to_its_publication(consortium: Any, engine: sa.Engine, merkle: bool) -> None:
    ledger = HttpLedger(httpx.Client(transport=Bridge(consortium), base_url="http://chain"), retry_seconds=0)
    store, references = Store(engine), References(engine)
    index = LedgerIndex(ledger, references)
    hospitals = [await consortium.hospital() for _ in range(2)]
    opening = await consortium.open(merkle=merkle, quorum=2)
    base = opening.base
    now = float(opening.deadline)
    await anyio.to_thread.run_sync(index.catch_up, now)
    reading = references.reading(now)
    assert reading is not None
    assert reading.taking_since == reading.since
    submissions = [consortium.submission(account, opening) for account in hospitals]
    for submission in submissions:
        raise_for_problem(await consortium.submit(submission))
    path = f"/v1/rounds/{opening.job}/1"
    if merkle:
        raise_for_problem(await consortium.post(f"{path}/commitment", None, Role.COORDINATOR))
    updates = [submission.update for submission in submissions]
    result = secrets.token_hex(32)
    folded = of_contributions([Contribution(item.hospital, item.digest, item.samples) for item in updates])
    closure = RoundClosure(global_digest=result, contributions=folded, count=2)
    raise_for_problem(await consortium.post(f"{path}/closure", closure, Role.COORDINATOR))
    orphan = secrets.token_hex(32)
    for digest in (base, result, orphan, *(item.digest for item in updates)):
        artifact = Artifact(digest=digest, size=7, owner=ALICE, tensors=1)
        store.record(artifact, shared=False, now=reading.since + 1)

    async def known() -> dict[str, Facts]:
        await anyio.to_thread.run_sync(index.catch_up, now)
        return {facts.digest: facts for facts in references.facts()}

    facts = await known()
    assert {digest: each.kind for digest, each in facts.items()} == {
        base: StoredKind.INITIAL,
        result: StoredKind.GLOBAL,
        orphan: StoredKind.ORPHAN,
        **{item.digest: StoredKind.UPDATE for item in updates},
    }
    assert not facts[updates[0].digest].job_open
    raise_for_problem(
        await consortium.post("/v1/publications", Publication(job=opening.job, digest=result), Role.COORDINATOR)
    )
    facts = await known()
    last = facts[updates[0].digest].job_last_at
    assert last is not None
    reading = references.reading(last + 31 * DAY)
    gone = {d for d, each in facts.items() if goes(each, Policy(30 * DAY, 7 * DAY), reading, last + 31 * DAY)}
    assert gone == {orphan, *(item.digest for item in updates)}
    early = references.reading(last + 29 * DAY)
    assert not any(goes(facts[item.digest], Policy(30 * DAY, None), early, last + 29 * DAY) for item in updates)
