"""What each caller gets done, from enrolment to a published model."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from typing import Any

import redis
from concilia_kit.digests import Contribution, of_contributions
from concilia_kit.roles import Role
from concilia_kit.wire.chain import (
    STREAM,
    LedgerEvent,
    LedgerJob,
    LedgerRound,
    Member,
    Reason,
    Receipt,
    RoundStatus,
    Transaction,
)
from eth_account import Account


def on_stream(url: str) -> list[LedgerEvent]:
    with redis.Redis.from_url(url) as client:
        entries: Any = client.xrange(STREAM)
    return [LedgerEvent.model_validate_json(fields[b"event"]) for _, fields in entries]


async def until_on_stream(url: str, count: int) -> list[LedgerEvent]:
    for _ in range(200):
        if len(found := on_stream(url)) >= count:
            return found
        await asyncio.sleep(0.02)
    return on_stream(url)


async def test_a_job_from_enrolment_to_publication(consortium: Any, redis_url: str) -> None:
    first, second = await consortium.hospital(), await consortium.hospital()
    opening = await consortium.open(quorum=1)
    submissions = [consortium.submission(each, opening, samples=n) for each, n in ((first, 10), (second, 20))]
    for submission in submissions:
        answer = await consortium.submit(submission)
        assert answer.status_code == 201, answer.text
        assert Receipt.model_validate(answer.json()).latency > 0

    path = f"/v1/rounds/{opening.job}/1"
    rejection = {"hospital": second.address, "reason": Reason.NON_FINITE}
    assert (await consortium.post(f"{path}/rejections", rejection)).status_code == 201

    accepted = [Contribution(first.address, submissions[0].update.digest, 10)]
    closure = {"global_digest": secrets.token_hex(32), "contributions": of_contributions(accepted), "count": 1}
    assert (await consortium.post(f"{path}/closure", closure)).status_code == 201

    told = LedgerRound.model_validate((await consortium.get(f"/v1/jobs/{opening.job}/rounds/1")).json())
    assert (told.status, told.submitted, told.rejected, told.quorum) == (RoundStatus.CLOSED, 2, 1, 1)
    assert (told.base, told.deadline) == (opening.base, opening.deadline)
    assert (told.global_digest, told.contributions) == (closure["global_digest"], closure["contributions"])
    assert [each.update for each in told.updates] == [each.update for each in submissions]
    assert [each.signature for each in told.updates] == [each.signature for each in submissions]
    assert [each.metrics for each in told.updates] == [each.metrics for each in submissions]
    assert [each.reason for each in told.updates] == [None, Reason.NON_FINITE]

    # The second round is opened on the first one's result, and given up.
    await consortium.open(job=opening.job, round=2, base=closure["global_digest"])
    assert (await consortium.post(f"/v1/rounds/{opening.job}/2/abort", None)).status_code == 201
    publication = {"job": opening.job, "digest": closure["global_digest"]}
    assert (await consortium.post("/v1/publications", publication)).status_code == 201

    job = LedgerJob.model_validate((await consortium.get(f"/v1/jobs/{opening.job}")).json())
    assert (job.head, job.published) == (closure["global_digest"], True)
    assert [each.status for each in job.rounds] == [RoundStatus.CLOSED, RoundStatus.ABORTED]
    assert job.rounds[0] == told

    events = [
        LedgerEvent.model_validate(each) for each in (await consortium.get(f"/v1/jobs/{opening.job}/events")).json()
    ]
    assert [each.name for each in events] == [
        *("RoundOpened", "UpdateRecorded", "UpdateRecorded", "UpdateRejected", "RoundClosed"),
        *("RoundOpened", "RoundAborted", "ModelPublished"),
    ]
    assert events[1].arguments == {
        "job": opening.job,
        "round": 1,
        "hospital": first.address,
        "digest": submissions[0].update.digest,
        "samples": 10,
        "metrics": submissions[0].update.metrics,
    }
    assert await until_on_stream(redis_url, len(events)) == events

    rows = (await consortium.get("/v1/transactions", job=opening.job)).json()
    transactions = [Transaction.model_validate(row) for row in rows]
    assert [each.function for each in reversed(transactions)] == [
        *("openRound", "submitUpdates", "submitUpdates", "rejectUpdate", "closeRound"),
        *("openRound", "abortRound", "publishModel"),
    ]
    assert all(each.received_at <= each.sent_at <= each.confirmed_at for each in transactions)
    assert [each.hospital for each in transactions if each.function == "submitUpdates"] == [
        second.address,
        first.address,
    ]
    assert {each.transaction for each in transactions} == {each.transaction for each in events}
    assert len((await consortium.get("/v1/transactions", limit=3)).json()) == 3


async def test_members_are_what_the_contract_says(consortium: Any) -> None:
    hospital = await consortium.hospital()
    other = await consortium.hospital()
    told = Member.model_validate((await consortium.http.get(f"/v1/members/{hospital.address.lower()}")).json())
    assert told == Member(address=hospital.address, roles=(Role.HOSPITAL,), hospital_number=1, nonce=0)

    admin = Member.model_validate((await consortium.http.get(f"/v1/members/{consortium.admin.address}")).json())
    assert (admin.roles, admin.nonce) == ((Role.ADMIN,), 2)

    assert (await consortium.change(Role.HOSPITAL, hospital.address, granted=False)).status_code == 201
    left = Member.model_validate((await consortium.http.get(f"/v1/members/{hospital.address}")).json())
    assert (left.roles, left.hospital_number) == ((), 1)
    listed = [each["address"] for each in (await consortium.get("/v1/members", role="hospital")).json()]
    assert listed == [other.address]
    coordinators = (await consortium.get("/v1/members", role="coordinator")).json()
    assert [each["roles"] for each in coordinators] == [["coordinator"]]


async def test_a_stranger_is_a_member_of_nothing(consortium: Any) -> None:
    stranger = Account.create()
    told = Member.model_validate((await consortium.http.get(f"/v1/members/{stranger.address}")).json())
    assert told == Member(address=stranger.address, roles=(), hospital_number=0, nonce=0)


async def test_coordinators_may_repeat_each_call(consortium: Any) -> None:
    hospital = await consortium.hospital()
    spoiled = await consortium.hospital()
    opening = consortium.opening()
    path = f"/v1/rounds/{opening.job}/1"
    submissions = [consortium.submission(each, opening) for each in (hospital, spoiled)]
    rejection = {"hospital": spoiled.address, "reason": Reason.NORM_TOO_LARGE}
    closure = {"global_digest": secrets.token_hex(32), "contributions": secrets.token_hex(32), "count": 1}
    publication = {"job": opening.job, "digest": closure["global_digest"]}

    async def twice(where: str, body: Any) -> None:
        once, again = await consortium.post(where, body), await consortium.post(where, body)
        assert (once.status_code, again.status_code) == (201, 200), (once.text, again.text)
        assert once.json() == again.json()

    await twice("/v1/rounds", opening)
    for submission in submissions:
        assert (await consortium.submit(submission)).status_code == 201
    await twice(f"{path}/rejections", rejection)
    await twice(f"{path}/closure", closure)
    # Still the first receipt after the job went on, and refused where anything differs.
    assert (await consortium.post(f"{path}/rejections", rejection)).status_code == 200
    other = await consortium.post(f"{path}/closure", {**closure, "global_digest": secrets.token_hex(32)})
    assert (other.status_code, other.json()["code"]) == (409, "round_not_open")
    other = await consortium.post(f"{path}/rejections", {**rejection, "reason": Reason.NON_FINITE})
    assert (other.status_code, other.json()["code"]) == (409, "round_not_open")
    await consortium.open(job=opening.job, round=2, base=closure["global_digest"])
    await twice(f"/v1/rounds/{opening.job}/2/abort", None)
    await twice("/v1/publications", publication)
    assert len((await consortium.get(f"/v1/jobs/{opening.job}/events")).json()) == 8


async def test_an_update_relayed_past_the_service_is_seen_whole(consortium: Any) -> None:
    hospitals = [await consortium.hospital() for _ in range(3)]
    opening = await consortium.open()
    submissions = [consortium.submission(each, opening) for each in hospitals]
    batch = [
        (
            each.update.hospital,
            bytes.fromhex(each.update.digest),
            each.update.samples,
            bytes.fromhex(each.update.metrics),
            bytes.fromhex(each.signature[2:]),
        )
        for each in submissions
    ]
    job, base = bytes.fromhex(opening.job), bytes.fromhex(opening.base)
    consortium.send(consortium.admin, "submitUpdates", job, 1, base, batch)
    told = LedgerRound.model_validate((await consortium.get(f"/v1/jobs/{opening.job}/rounds/1")).json())
    assert [each.update for each in told.updates] == [each.update for each in submissions]
    assert [each.signature for each in told.updates] == [each.signature for each in submissions]
    assert [each.metrics for each in told.updates] == [None, None, None]


async def test_updates_that_arrive_together_share_a_transaction(consortium: Any, redis_url: str) -> None:
    hospitals = [await consortium.hospital() for _ in range(12)]
    opening = await consortium.open()
    before = time.time()
    answers = await asyncio.gather(*(consortium.submit(consortium.submission(each, opening)) for each in hospitals))
    assert [each.status_code for each in answers] == [201] * 12
    carried: dict[str, int] = Counter(each.json()["transaction"] for each in answers)
    assert len(carried) < 12
    assert {each.json()["orders"] for each in answers} == set(carried.values())
    rows = (await consortium.get("/v1/transactions", job=opening.job)).json()
    assert {each["hospital"] for each in rows} == {None, *(each.address for each in hospitals)}
    told = LedgerRound.model_validate((await consortium.get(f"/v1/jobs/{opening.job}/rounds/1")).json())
    assert told.submitted == 12
    assert {each.update.hospital for each in told.updates} == {each.address for each in hospitals}
    # However fast blocks come, the chain's clock stays that of the wall.
    newest = consortium.client.eth.get_block("latest")["timestamp"]
    assert int(before) <= newest <= time.time()
    assert len(await until_on_stream(redis_url, 13)) == 13


async def test_it_says_when_it_is_ready(consortium: Any) -> None:
    answer = await consortium.http.get("/readyz")
    assert answer.json() == {"rpc": "ok", "database": "ok", "redis": "ok", "follower": "ok", "gateway": "ok"}
