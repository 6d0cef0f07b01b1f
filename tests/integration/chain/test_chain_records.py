"""The ledger's history for its readers: who granted what, and every event, page by page."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from concilia_chain import main
from concilia_kit import database
from concilia_kit.roles import Role
from concilia_kit.wire.chain import EventPage, RecordedEvent, RoleRecord
from eth_account import Account

# Calls the contract whose address comes first with the bytes that follow, and does not care how that ends.
#   copy calldata[32:] to memory; call(gas, calldata[0:32], 0, memory, 0, 0); stop
FORWARDER = "6020360360206000376000600060203603600060006000355af100"
CREATION = f"0x60{len(FORWARDER) // 2:02x}8060093d393df3{FORWARDER}"


async def records(consortium: Any, **params: Any) -> list[RoleRecord]:
    answer = await consortium.get("/v1/role-records", **params)
    assert answer.status_code == 200, answer.text
    return [RoleRecord.model_validate(each) for each in answer.json()]


async def page(consortium: Any, **params: Any) -> EventPage:
    answer = await consortium.get("/v1/events", **params)
    assert answer.status_code == 200, answer.text
    return EventPage.model_validate(answer.json())


def block_time(consortium: Any, number: int) -> datetime:
    return datetime.fromtimestamp(consortium.client.eth.get_block(number)["timestamp"], UTC)


async def test_who_granted_what(consortium: Any) -> None:
    account = Account.create().address
    assert (await consortium.change(Role.CLINICIAN, account)).status_code == 201
    assert (await consortium.change(Role.CLINICIAN, account, granted=False)).status_code == 201
    consortium.send(consortium.admin, "grantRole", Role.AUDITOR.identifier, account)
    consortium.send(consortium.admin, "grantRole", b"\x07" * 32, account)  # of no meaning here
    told = await records(consortium, account=account.lower())
    assert [(each.role, each.granted) for each in told] == [
        (Role.AUDITOR, True),
        (Role.CLINICIAN, False),
        (Role.CLINICIAN, True),
    ]
    # The relay sent two of the transactions, and decided neither.
    assert {each.admin for each in told} == {consortium.admin.address}
    assert {each.account for each in told} == {account}
    assert [each.at for each in told] == [block_time(consortium, each.block) for each in told]
    assert told == (await records(consortium))[:3]
    assert [each.role for each in await records(consortium, limit=2)] == [Role.AUDITOR, Role.CLINICIAN]
    # The constructor's grants, by whoever deployed.
    first = (await records(consortium))[-1]
    relay = consortium.app.state.service._relay.address
    assert (first.role, first.account, first.admin) == (Role.ADMIN, consortium.admin.address, relay)


async def test_unknown_roles_take_no_place_on_the_list(consortium: Any) -> None:
    account = Account.create().address
    assert (await consortium.change(Role.CLINICIAN, account)).status_code == 201
    for number in range(3):
        consortium.send(consortium.admin, "grantRole", bytes([7 + number]) * 32, account)
    assert [each.role for each in await records(consortium, limit=1)] == [Role.CLINICIAN]
    # Less than is asked for only where there is no more.
    assert [each.role for each in await records(consortium, account=account, limit=2)] == [Role.CLINICIAN]


async def test_a_change_that_a_contract_wraps(consortium: Any) -> None:
    account = Account.create().address
    created = consortium.transact(consortium.admin, None, CREATION)
    forwarder = consortium.client.eth.get_transaction_receipt(created)["contractAddress"]

    async def through(role: Role, granted: bool) -> None:
        order = await consortium.signed_change(role, account, granted)
        members = (role.identifier, account, granted, order.change.nonce, order.change.deadline)
        call = consortium.contract.encode_abi("changeRole", [members, order.admin, bytes.fromhex(order.signature[2:])])
        target = consortium.info.address[2:].lower().rjust(64, "0")
        # An estimate would find the least gas with which the forwarder, not the call, succeeds.
        consortium.transact(consortium.admin, forwarder, f"0x{target}{call[2:]}", gas=300_000)

    await through(Role.AUDITOR, True)
    await through(Role.AUDITOR, False)
    told = await records(consortium, account=account)
    assert [(each.role, each.granted, each.admin) for each in told] == [
        (Role.AUDITOR, False, consortium.admin.address),
        (Role.AUDITOR, True, consortium.admin.address),
    ]
    event = (await page(consortium, name="RoleGranted", account=account)).events[0]
    assert event.arguments["sender"] == forwarder


async def test_a_decision_cannot_be_put_on_somebody_else(consortium: Any) -> None:
    """An administrator grants a role and adds, where the contract does not look, what another one never signed."""
    account, other = Account.create().address, Account.create().address
    assert (await consortium.change(Role.ADMIN, other)).status_code == 201
    order = await consortium.signed_change(Role.AUDITOR, account)
    members = (Role.AUDITOR.identifier, account, True, order.change.nonce, order.change.deadline)
    forged = consortium.contract.encode_abi("changeRole", [members, other, bytes.fromhex(order.signature[2:])])
    call = consortium.contract.encode_abi("grantRole", [Role.AUDITOR.identifier, account])
    consortium.transact(consortium.admin, consortium.info.address, call + forged[2:])
    (told,) = await records(consortium, account=account)
    assert told.admin == consortium.admin.address


async def test_every_event_newest_first(consortium: Any) -> None:
    hospital = await consortium.hospital()
    opening = await consortium.open()
    assert (await consortium.submit(consortium.submission(hospital, opening))).status_code == 201
    consortium.send(consortium.admin, "pause")
    whole = await page(consortium)
    assert whole.before is None
    assert [each.name for each in whole.events] == [
        *("Paused", "UpdateRecorded", "RoundOpened", "HospitalNumbered", "RoleGranted", "RoleGranted", "RoleGranted"),
    ]
    assert [each.at for each in whole.events] == [block_time(consortium, each.block) for each in whole.events]
    update = whole.events[1]
    assert (update.job, update.round, update.account) == (opening.job, 1, hospital.address)
    numbered = whole.events[3]
    assert (numbered.job, numbered.round, numbered.account) == (None, None, hospital.address)
    assert numbered.arguments == {"hospital": hospital.address, "number": 1}

    async def only(**params: Any) -> list[RecordedEvent]:
        return list((await page(consortium, **params)).events)

    def those(*names: str) -> list[RecordedEvent]:
        return [each for each in whole.events if each.name in names]

    assert await only(name="Paused") == those("Paused")
    assert await only(name=["RoundOpened", "RoleGranted"]) == those("RoundOpened", "RoleGranted")
    assert await only(name="NeverHeardOf") == []
    assert await only(job=opening.job) == those("UpdateRecorded", "RoundOpened")
    assert await only(job=opening.job, name="RoundOpened") == those("RoundOpened")
    assert await only(job=opening.job, round=2) == []
    assert await only(account=hospital.address.lower()) == [whole.events[1], *whole.events[3:5]]
    assert await only(from_block=update.block) == list(whole.events[:2])
    assert await only(to_block=update.block) == list(whole.events[1:])
    assert await only(from_block=update.block, to_block=update.block) == [update]


@pytest.mark.parametrize("names", [[], ["RoleGranted", "HospitalNumbered", "RoleRevoked"], ["RoleGranted"]])
async def test_pages_join_without_gap_or_repetition(consortium: Any, names: list[str]) -> None:
    for _ in range(3):  # two events of a block: a page may end between them
        await consortium.hospital()
    for size in (1, 2, 3):
        whole = list((await page(consortium, name=names)).events)
        one = await page(consortium, name=names, limit=size)
        found = list(one.events)
        # What is recorded meanwhile moves nothing.
        consortium.send(consortium.admin, "grantRole", Role.AUDITOR.identifier, Account.create().address)
        while one.before is not None and len(found) <= len(whole):
            one = await page(consortium, name=names, limit=size, before=one.before)
            assert 0 < len(one.events) <= size
            found += one.events
        assert len(found) >= 5
        assert found == whole


@pytest.mark.parametrize(
    "cursor", ["", "7", "7-", "-7", "7-1-2", " 7-1", "7-1\n", "a-b", "٧-١", "9" * 19 + "-1", "1--1"]
)
async def test_a_malformed_cursor(consortium: Any, cursor: str) -> None:
    answer = await consortium.get("/v1/events", before=cursor)
    assert (answer.status_code, answer.json()["code"]) == (422, "cursor_malformed")


@pytest.mark.parametrize(
    "params",
    [
        {"limit": 0},
        {"limit": 1001},
        {"job": "a" * 63},
        {"round": 0},
        {"round": 2**32},
        {"account": "0x12"},
        {"from_block": -1},
        {"to_block": 2**63},
        {"name": "a'b"},
        {"name": ["A"] * 21},
    ],
)
async def test_filters_that_cannot_be(consortium: Any, params: dict[str, Any]) -> None:
    answer = await consortium.get("/v1/events", **params)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 1001}, {"account": "0x12"}])
async def test_records_that_cannot_be(consortium: Any, params: dict[str, Any]) -> None:
    answer = await consortium.get("/v1/role-records", **params)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_a_database_from_before_times_were_kept(start: Any, settings: Any, tmp_path: Path) -> None:
    async with start() as consortium:
        hospital = await consortium.hospital()
        opening = await consortium.open()
        [before] = (await consortium.get("/v1/transactions", job=opening.job)).json()
    engine = database.engine(settings.database_url)
    config = Config()
    config.set_main_option("script_location", str(main.MIGRATIONS))
    with engine.begin() as connection:  # back to the first schema, by hand: revisions only go forward
        connection.execute(
            sa.text(
                'CREATE TABLE transactions AS SELECT o.deployment, s."transaction", s.block, s.gas, o.received_at,'
                " s.sent_at, s.mined_at AS confirmed_at, o.function, o.job, o.round, o.hospital"
                " FROM orders o JOIN sendings s ON o.sending = s.id"
            )
        )
        for table in ("orders", "attempts", "sendings", "leaves", "leases"):
            connection.execute(sa.text(f"DROP TABLE {table}"))
        for column in ("name", "account", "job"):
            connection.execute(sa.text(f"DROP INDEX events_newest_of_{column}"))
        for index in ("events_of_round", "events_unpublished"):
            connection.execute(sa.text(f"DROP INDEX {index}"))
        connection.execute(sa.text("CREATE INDEX events_of_job ON events (deployment, job, round)"))
        connection.execute(sa.text("CREATE INDEX events_to_publish ON events (deployment, published)"))
        for column in ("timestamp", "signer"):
            connection.execute(sa.text(f'ALTER TABLE events DROP COLUMN "{column}"'))
        config.attributes["connection"] = connection
        command.stamp(config, "0001")
    engine.dispose()
    async with start() as consortium:
        auditor = Account.create().address
        assert (await consortium.change(Role.AUDITOR, auditor)).status_code == 201
        new, old, *_ = await records(consortium)
        assert (new.account, new.admin, new.at) == (
            auditor,
            consortium.admin.address,
            block_time(consortium, new.block),
        )
        # Nobody knows any more who signed: the event itself names the relay.
        relay = consortium.app.state.service._relay.address
        assert (old.account, old.admin, old.at) == (hospital.address, relay, None)
        assert (await page(consortium, account=hospital.address)).events[0].at is None
        assert (await consortium.get("/v1/transactions", job=opening.job)).json() == [before]
        assert (await consortium.post(f"/v1/rounds/{opening.job}/1/abort", None)).status_code == 201
