"""The follower through restarts, crashes, outages and a chain that changes its mind."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest
import redis
from concilia_chain import main, providers
from concilia_chain import store as chain_store
from concilia_chain.events import Event
from concilia_chain.follower import Follower
from concilia_chain.store import Store
from concilia_kit import database
from concilia_kit.wire.chain import STREAM, LedgerEvent, LedgerRound


def on_stream(url: str) -> list[LedgerEvent]:
    with redis.Redis.from_url(url) as client:
        entries: Any = client.xrange(STREAM)
    return [LedgerEvent.model_validate_json(fields[b"event"]) for _, fields in entries]


async def until_on_stream(url: str, count: int) -> list[LedgerEvent]:
    for _ in range(200):
        if len(on_stream(url)) >= count:
            break
        await asyncio.sleep(0.02)
    return on_stream(url)


async def events_of(consortium: Any, job: str) -> list[LedgerEvent]:
    return [LedgerEvent.model_validate(each) for each in (await consortium.get(f"/v1/jobs/{job}/events")).json()]


async def test_a_restart_loses_and_repeats_nothing(start: Any, redis_url: str, client: Any) -> None:
    async with start() as consortium:
        hospital, late = await consortium.hospital(), await consortium.hospital()
        opening = await consortium.open()
        submission = consortium.submission(hospital, opening)
        assert (await consortium.submit(submission)).status_code == 201
        before = consortium.info
        await until_on_stream(redis_url, 2)
        missed = consortium.submission(late, opening)

    # Somebody else relays while the service is away.
    update = missed.update
    entry = (late.address, bytes.fromhex(update.digest), update.samples, bytes.fromhex(update.metrics))
    batch = [(*entry, bytes.fromhex(missed.signature[2:]))]
    job, base = bytes.fromhex(opening.job), bytes.fromhex(opening.base)
    consortium.send(consortium.admin, "submitUpdates", job, 1, base, batch)

    async with start() as consortium:
        assert consortium.info == before
        stream = await until_on_stream(redis_url, 3)
        assert stream == await events_of(consortium, opening.job)
        assert [each.name for each in stream] == ["RoundOpened", "UpdateRecorded", "UpdateRecorded"]
        assert (await consortium.post("/v1/rounds", opening)).status_code == 200
        told = LedgerRound.model_validate((await consortium.get(f"/v1/jobs/{opening.job}/rounds/1")).json())
        assert [each.metrics for each in told.updates] == [submission.metrics, None]
        assert len((await consortium.get("/v1/transactions", job=opening.job)).json()) == 2


async def test_a_lost_database_is_read_again_from_the_chain(start: Any, settings: Any, tmp_path: Any) -> None:
    async with start() as consortium:
        hospital = await consortium.hospital()
        opening = await consortium.open()
        submission = consortium.submission(hospital, opening)
        assert (await consortium.submit(submission)).status_code == 201
        address = consortium.info.address
        events = await events_of(consortium, opening.job)
    new = settings.model_copy(
        update={"database_url": f"sqlite:///{tmp_path / 'new.db'}", "contract_address": address, "admin_address": None}
    )
    async with start(new) as consortium:
        assert consortium.info.address == address
        assert consortium.info.deployment_block == 1
        assert await events_of(consortium, opening.job) == events
        told = LedgerRound.model_validate((await consortium.get(f"/v1/jobs/{opening.job}/rounds/1")).json())
        assert [(each.update, each.signature) for each in told.updates] == [(submission.update, submission.signature)]
        again = await consortium.post("/v1/rounds", opening)
        assert (again.status_code, again.json()["transaction"]) == (200, events[0].transaction)


async def test_a_crash_between_stream_and_mark(start: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:

        def crash(_self: Store, _event: LedgerEvent) -> None:
            raise OSError("the disk went away")

        patched.setattr(Store, "mark_published", crash)
        async with start() as consortium:
            opening = await consortium.open()
            await until_on_stream(redis_url, 1)
            ready = await consortium.http.get("/readyz")
            for _ in range(100):
                if ready.status_code == 503:
                    break
                await asyncio.sleep(0.02)
                ready = await consortium.http.get("/readyz")
            assert ready.json()["follower"] == "OSError"
            assert len(on_stream(redis_url)) == 1
    async with start() as consortium:
        assert (await consortium.post(f"/v1/rounds/{opening.job}/1/abort", None)).status_code == 201
        stream = await until_on_stream(redis_url, 2)
        assert [each.name for each in stream] == ["RoundOpened", "RoundAborted"]


async def test_redis_away_for_a_while(start: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with start() as consortium:
        with monkeypatch.context() as patched:

            def refuse(*_: Any, **__: Any) -> None:
                raise redis.ConnectionError

            patched.setattr(redis.Redis, "xadd", refuse)
            opening = await consortium.open()
            assert [each.name for each in await events_of(consortium, opening.job)] == ["RoundOpened"]
            assert on_stream(redis_url) == []
        assert [each.name for each in await until_on_stream(redis_url, 1)] == ["RoundOpened"]


async def test_a_reorganised_chain(start: Any, client: Any, redis_url: str) -> None:
    async with start() as consortium:
        hospital = await consortium.hospital()
        opening = await consortium.open()
        kept = await events_of(consortium, opening.job)
        snapshot = client.provider.ethereum_tester.take_snapshot()
        submission = consortium.submission(hospital, opening)
        assert (await consortium.submit(submission)).status_code == 201
        await consortium.open()
        follower: Follower = consortium.app.state.reading._follower
        with follower._following:  # hold the thread, lest it look at half a reorganisation
            client.provider.ethereum_tester.revert_to_snapshot(snapshot)
            consortium.send(consortium.admin, "grantRole", b"\x00" * 32, hospital.address)
            consortium.send(consortium.admin, "revokeRole", b"\x00" * 32, hospital.address)
            consortium.send(consortium.admin, "pause")
        assert await events_of(consortium, opening.job) == kept
        told = LedgerRound.model_validate((await consortium.get(f"/v1/jobs/{opening.job}/rounds/1")).json())
        assert (told.submitted, told.updates) == (0, ())
        consortium.send(consortium.admin, "unpause")
        # Sent again, it was refused by a ledger that was paused; now it is taken, whoever is the first to ask.
        assert (await consortium.submit(submission)).status_code in (200, 201)
        names = [each.name for each in await events_of(consortium, opening.job)]
        assert names == ["RoundOpened", "UpdateRecorded"]


async def test_what_a_reorganisation_took_comes_back(start: Any, client: Any) -> None:
    async with start() as consortium:
        hospitals = [await consortium.hospital() for _ in range(2)]
        snapshot = client.provider.ethereum_tester.take_snapshot()
        opening = await consortium.open()
        submissions = [consortium.submission(each, opening) for each in hospitals]
        for each in submissions:
            assert (await consortium.submit(each)).status_code == 201
        follower: Follower = consortium.app.state.reading._follower
        with follower._following:
            client.provider.ethereum_tester.revert_to_snapshot(snapshot)
            for function in ("pause", "unpause", "pause", "unpause"):  # a chain that is longer
                consortium.send(consortium.admin, function)
        rows: list[Any] = []
        for _ in range(500):  # the gateway looks after its transactions, and knows their new blocks a moment later
            answer = await consortium.get(f"/v1/jobs/{opening.job}/rounds/1")
            rows = (await consortium.get("/v1/transactions", job=opening.job)).json()
            if answer.status_code == 200 and len(answer.json()["updates"]) == 2 and len(rows) == 3:
                break
            await asyncio.sleep(0.02)
        told = LedgerRound.model_validate(answer.json())
        assert {each.update for each in told.updates} == {each.update for each in submissions}
        names = [each.name for each in await events_of(consortium, opening.job)]
        assert names == ["RoundOpened", "UpdateRecorded", "UpdateRecorded"]
        assert {each["block"] for each in rows} == {each.block for each in await events_of(consortium, opening.job)}


async def test_a_chain_started_anew_has_a_ledger_of_its_own(start: Any, settings: Any, relay: Any, admin: Any) -> None:
    async with start() as consortium:
        first = consortium.info
        opening = await consortium.open()
    async with start(settings, providers.connect("eth-tester://", [relay.address, admin.address])) as consortium:
        # The same address and block, and none of the old ledger's events.
        assert consortium.info == first
        assert await events_of(consortium, opening.job) == []
        assert (await consortium.post("/v1/rounds", opening)).status_code == 201


@pytest.fixture
def stores(tmp_path: Any) -> Any:
    """Two processes' stores on one database, which stand before the ledger's first block."""
    engine = database.engine(f"sqlite:///{tmp_path / 'a.db'}")
    database.migrate(engine, main.MIGRATIONS)
    known = chain_store.remember(engine, 1, "0xabc", 5, "0x5", _at(4))
    yield Store(engine, known), Store(engine, known)
    engine.dispose()


def test_what_is_stored_is_stored_once(stores: Any) -> None:
    store, _ = stores
    event = _event(5)
    assert store.advance(_at(4), _at(5), [event])
    with pytest.raises(Exception, match="UNIQUE"):
        store.advance(_at(5), _at(9), [event])
    # Both or neither: the cursor did not move without its events.
    assert store.cursor() == _at(5)
    assert store.events_of_job(event.job) == [event]


def test_who_follows_from_where_another_was_stores_nothing(stores: Any) -> None:
    # As after a pause of any length: the other read further, and its events are not read again from the middle.
    first, second = stores
    event, later = _event(5), _event(7)
    assert first.advance(_at(4), _at(5), [event])
    assert first.advance(_at(5), _at(7), [later])
    assert not second.advance(_at(4), _at(5), [event])
    assert not second.advance(_at(5), _at(6), [])
    assert not second.rewind(_at(5), _at(4))
    assert second.cursor() == _at(7)
    assert [*second.events_of_job(event.job), *second.events_of_job(later.job)] == [event, later]
    assert second.rewind(_at(7), _at(5))
    assert not first.advance(_at(7), _at(8), [])
    assert first.events_of_job(later.job) == []


def _at(block: int) -> chain_store.Cursor:
    return chain_store.Cursor(block, f"0x{block:x}")


def _event(block: int) -> Event:
    job = secrets.token_hex(32)
    return Event("RoundAborted", {"job": job, "round": 1}, block, f"0x{block:x}", 0, "0xt")
