"""What is asked often does not grow with the number of hospitals: the roll, a round's standing, one hospital's part."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import redis
import sqlalchemy as sa
from concilia_chain import tables
from concilia_chain.store import Store, deployments
from concilia_kit import database
from concilia_kit.roles import Role
from concilia_kit.wire.chain import COLLECTED_STREAM, Collected, Holders, LedgerRound, Roll, RoundStanding


async def standing(consortium: Any, job: str) -> RoundStanding:
    answer = await consortium.get(f"/v1/jobs/{job}/rounds/1/standing")
    assert answer.status_code == 200, answer.text
    return RoundStanding.model_validate_json(answer.content)


async def test_the_roll_is_told_again_only_where_a_role_changed(consortium: Any) -> None:
    hospitals = [await consortium.hospital() for _ in range(2)]
    answer = await consortium.http.get("/v1/roles")
    told = Roll.model_validate_json(answer.content).roles
    assert {address for address, held in told.items() if Role.HOSPITAL in held} == {each.address for each in hospitals}
    assert told[consortium.admin.address] == (Role.ADMIN,)
    tagged = {"If-None-Match": answer.headers["ETag"]}
    same = await consortium.http.get("/v1/roles", headers=tagged)
    assert (same.status_code, same.content) == (304, b"")
    await consortium.open()  # a block without a role in it
    assert (await consortium.http.get("/v1/roles", headers=tagged)).status_code == 304
    assert (await consortium.change(Role.HOSPITAL, hospitals[0].address, granted=False)).status_code == 201
    changed = await consortium.http.get("/v1/roles", headers=tagged)
    assert changed.status_code == 200
    assert hospitals[0].address not in Roll.model_validate_json(changed.content).roles


async def test_holders_are_those_of_the_roll(consortium: Any) -> None:
    hospitals = [await consortium.hospital() for _ in range(3)]
    path = f"/v1/holders/{Role.HOSPITAL.value}"
    answer = await consortium.get(path)
    told = Holders.model_validate_json(answer.content)
    assert told.addresses == tuple(sorted((each.address for each in hospitals), key=lambda each: int(each, 16)))
    headers = {**consortium.headers(Role.AUDITOR), "If-None-Match": answer.headers["ETag"]}
    same = await consortium.http.get(path, headers=headers)
    assert same.status_code == 304
    assert (answer.headers["Cache-Control"], same.headers["Cache-Control"]) == ("no-store", "no-store")


async def test_a_rounds_standing_counts_as_the_contract_does(consortium: Any) -> None:
    hospitals = [await consortium.hospital() for _ in range(3)]
    opening = await consortium.open()
    assert (await standing(consortium, opening.job)).updates == 0
    for number, hospital in enumerate(hospitals):
        answer = await consortium.submit(consortium.submission(hospital, opening))
        assert answer.status_code == 201, answer.text
        assert (await standing(consortium, opening.job)).updates == number + 1
    told = LedgerRound.model_validate((await consortium.get(f"/v1/jobs/{opening.job}/rounds/1")).json())
    shown = await standing(consortium, opening.job)
    assert (shown.base, shown.deadline, shown.quorum) == (told.base, told.deadline, told.quorum)
    assert (shown.updates, shown.rejected, shown.merkle) == (told.submitted, told.rejected, False)
    unknown = await consortium.get(f"/v1/jobs/{'0' * 64}/rounds/1/standing")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "round_unknown")


async def test_one_hospital_is_shown_its_own_update(consortium: Any) -> None:
    ours, theirs, absent = [await consortium.hospital() for _ in range(3)]
    for merkle in (False, True):
        opening = await consortium.open(merkle=merkle)
        for hospital in (ours, theirs):
            await consortium.submit(consortium.submission(hospital, opening))
        path = f"/v1/jobs/{opening.job}/rounds/1"

        async def shown(hospital: Any, path: str = path) -> LedgerRound:
            return LedgerRound.model_validate((await consortium.get(path, hospital=hospital.address)).json())

        if merkle:
            assert ((await shown(ours)).collected, (await shown(absent)).collected) == ((ours.address,), ())
            assert (await consortium.post(f"/v1/rounds/{opening.job}/1/commitment", None)).status_code == 201
        everybody = LedgerRound.model_validate((await consortium.get(path)).json())
        own = await shown(ours)
        assert own.updates == tuple(each for each in everybody.updates if each.update.hospital == ours.address)
        assert own.model_copy(update={"updates": everybody.updates}) == everybody
        assert (await shown(absent)).updates == ()


async def test_collected_updates_are_announced(consortium: Any, redis_url: str) -> None:
    hospitals = [await consortium.hospital() for _ in range(3)]
    opening = await consortium.open(merkle=True)
    sent = [consortium.submit(consortium.submission(each, opening)) for each in hospitals]
    assert [each.status_code for each in await asyncio.gather(*sent)] == [202] * 3
    with redis.Redis.from_url(redis_url) as client:
        for _ in range(200):
            entries: Any = client.xrevrange(COLLECTED_STREAM, count=1)
            if entries and json.loads(entries[0][1][b"round"])["updates"] == 3:
                break
            await asyncio.sleep(0.02)
    assert Collected.model_validate_json(entries[0][1][b"round"]) == Collected(job=opening.job, round=1, updates=3)
    assert (await standing(consortium, opening.job)).updates == 3


async def test_many_at_once_are_collected_once_each(consortium: Any) -> None:
    hospitals = [await consortium.hospital() for _ in range(4)]
    opening = await consortium.open(merkle=True)
    submissions = [consortium.submission(each, opening) for each in hospitals]
    answers = await asyncio.gather(*(consortium.submit(each) for each in submissions for _ in range(3)))
    assert {each.status_code for each in answers} == {202}
    assert len({each.json()["leaf"] for each in answers}) == 4
    other = consortium.submission(hospitals[0], opening)
    refused = await consortium.submit(other)
    assert (refused.status_code, refused.json()["code"]) == (409, "already_submitted")


async def test_what_is_looked_for_again_and_again_is_found_without_a_look_at_the_rest(consortium: Any) -> None:
    # Committed leaves, whenever updates are kept; events to be told, whenever blocks are asked for; a round, whenever
    # one of its hospitals asks, and members are many more events than a round has.
    leaves = tables.leaves
    engine = database.engine(consortium.settings.database_url)
    (known,) = deployments(engine, consortium.domain.chain_id, consortium.domain.contract)
    store = Store(engine, known)
    plans: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def explain(connection: Any, _cursor: Any, words: str, values: Any, *_: Any) -> None:
        if words.startswith("SELECT"):
            plan = connection.connection.dbapi_connection.execute(f"EXPLAIN QUERY PLAN {words}", values)
            plans.append("; ".join(row[3] for row in plan))

    with engine.begin() as connection:
        place = (leaves.c.deployment == 1, leaves.c.job == "a", leaves.c.round == 1)
        connection.execute(sa.select(leaves.c.leaf).where(*place, leaves.c.index.is_not(None)))
    store.unpublished(100)
    store.events_of_round("a", 1)
    store.events_of_updates("a", 1, consortium.admin.address)
    store.events_of_job("a", 1)
    engine.dispose()
    of_round = "events_of_round (deployment=? AND job=? AND round=?"
    assert plans == [
        "SEARCH leaves USING INDEX leaves_committed (deployment=? AND job=? AND round=?)",
        "SEARCH events USING INDEX events_unpublished (deployment=?)",
        f"SEARCH events USING COVERING INDEX {of_round})",
        f"SEARCH events USING INDEX {of_round})",
        f"SEARCH events USING INDEX {of_round} AND name=? AND account=?)",
        f"SEARCH events USING INDEX {of_round})",
    ]
