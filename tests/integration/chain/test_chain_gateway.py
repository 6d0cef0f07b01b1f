"""The gateway through its REST interface: batches with a bad one among them, finality, Merkle rounds, leases."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from concilia_chain import main, providers
from concilia_chain.errors import StartError
from concilia_kit import merkle
from concilia_kit.digests import Contribution, of_contributions
from concilia_kit.roles import Role
from concilia_kit.wire.chain import AccountRoles, Acknowledgement, Finality, InclusionProof, LedgerRound, Receipt
from eth_account import Account


async def round_of(consortium: Any, job: str) -> LedgerRound:
    return LedgerRound.model_validate((await consortium.get(f"/v1/jobs/{job}/rounds/1")).json())


async def test_one_bad_update_does_not_spoil_the_others(consortium: Any) -> None:
    hospitals = [await consortium.hospital() for _ in range(6)]
    opening = await consortium.open()
    good = [consortium.submission(each, opening) for each in hospitals]
    bad = [
        consortium.submission(Account.create(), opening),
        consortium.submission(hospitals[0], opening, key=hospitals[1]),
        consortium.submission(hospitals[0], opening, samples=0),
    ]
    answers = await asyncio.gather(*(consortium.submit(each) for each in [*good[:3], *bad, *good[3:]]))
    refused = [each.json()["code"] for each in answers[3:6]]
    assert refused == ["not_hospital", "invalid_signature", "no_samples"]
    assert [each.status_code for each in answers[:3] + answers[6:]] == [201] * 6
    assert {each.update for each in (await round_of(consortium, opening.job)).updates} == {each.update for each in good}


async def test_the_same_update_from_two_at_once_is_one_order(consortium: Any) -> None:
    hospital = await consortium.hospital()
    opening = await consortium.open()
    submission = consortium.submission(hospital, opening)
    answers = await asyncio.gather(*(consortium.submit(submission) for _ in range(5)))
    assert {each.status_code for each in answers} <= {200, 201}
    assert len({each.json()["transaction"] for each in answers}) == 1
    assert len((await round_of(consortium, opening.job)).updates) == 1


async def test_what_is_in_a_block_is_final_some_blocks_later(start: Any, settings: Any, client: Any) -> None:
    async with start(settings.model_copy(update={"confirmations": 2})) as consortium:
        assert consortium.info.confirmations == 2
        auditor = Account.create().address

        async def roles() -> tuple[Role, ...]:
            answer = await consortium.http.get(f"/v1/members/{auditor}/roles")
            return AccountRoles.model_validate(answer.json()).roles

        answer = await consortium.change(Role.AUDITOR, auditor)
        assert Receipt.model_validate(answer.json()).finality is Finality.CONFIRMED
        await consortium.get("/v1/events")
        assert await roles() == ()  # a grant counts when it is final

        opening = consortium.opening()
        waiting = asyncio.create_task(consortium.post("/v1/rounds", opening))
        while not (await consortium.get(f"/v1/jobs/{opening.job}/events")).json():
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        assert not waiting.done()  # the coordinator builds on nothing that may still go
        for _ in range(2):
            client.provider.ethereum_tester.mine_block()
        receipt = Receipt.model_validate((await waiting).json())
        assert receipt.finality is Finality.FINAL
        await consortium.get("/v1/events")
        assert await roles() == (Role.AUDITOR,)

        revocation = await consortium.change(Role.AUDITOR, auditor, granted=False)
        assert Receipt.model_validate(revocation.json()).finality is Finality.CONFIRMED
        await consortium.get("/v1/events")
        assert await roles() == ()  # and a revocation at once


async def test_a_merkle_round_from_its_opening_to_its_end(consortium: Any) -> None:
    hospitals = [await consortium.hospital() for _ in range(5)]
    opening = await consortium.open(merkle=True, quorum=3)
    path = f"/v1/rounds/{opening.job}/1"
    early = await consortium.post(f"{path}/commitment", None)
    assert (early.status_code, early.json()["code"]) == (409, "nothing_collected")

    submissions = [consortium.submission(each, opening) for each in hospitals]
    answers = await asyncio.gather(*(consortium.submit(each) for each in submissions))
    assert [each.status_code for each in answers] == [202] * 5
    for submission, answer in zip(submissions, answers, strict=True):
        data = merkle.update_data(submission.update, consortium.domain, submission.signature)
        assert Acknowledgement.model_validate(answer.json()).leaf == merkle.leaf(data).hex()
    again = await consortium.submit(submissions[0])
    assert (again.status_code, again.json()) == (202, answers[0].json())
    told = await round_of(consortium, opening.job)
    assert (told.merkle, told.root, told.submitted, told.updates) == (True, None, 0, ())
    assert set(told.collected) == {each.address for each in hospitals}
    assert (await consortium.get(f"/v1/jobs/{opening.job}/rounds/1/proofs/{hospitals[0].address}")).status_code == 404

    first = await consortium.post(f"{path}/commitment", None)
    assert first.status_code == 201, first.text
    repeated = await consortium.post(f"{path}/commitment", None)
    assert (repeated.status_code, repeated.json()["transaction"]) == (200, first.json()["transaction"])
    told = await round_of(consortium, opening.job)
    assert (told.submitted, told.collected) == (5, ())
    assert [each.index for each in told.updates] == list(range(5))
    assert [each.update.hospital for each in told.updates] == sorted(
        (each.address for each in hospitals), key=lambda address: int(address, 16)
    )
    assert {each.transaction for each in told.updates} == {first.json()["transaction"]}

    stored = consortium.contract.functions.commitmentOf(bytes.fromhex(opening.job), 1).call()
    assert (stored[0].hex(), stored[1], stored[2]) == (told.root, 5, True)
    for each in told.updates:
        answer = await consortium.get(f"/v1/jobs/{opening.job}/rounds/1/proofs/{each.update.hospital}")
        proof = InclusionProof.model_validate(answer.json())
        leaf = merkle.leaf(merkle.update_data(proof.update, consortium.domain, proof.signature))
        path_ = [bytes.fromhex(step) for step in proof.path]
        assert merkle.verify(leaf, proof.index, proof.count, path_, stored[0])

    late = await consortium.submit(consortium.submission(await consortium.hospital(), opening))
    assert (late.status_code, late.json()["code"]) == (409, "already_committed")
    rejection = {"hospital": told.updates[2].update.hospital, "reason": 8}
    assert (await consortium.post(f"{path}/rejections", rejection)).status_code == 201
    assert (await consortium.post(f"{path}/rejections", rejection)).status_code == 200
    stranger = await consortium.post(f"{path}/rejections", rejection | {"hospital": consortium.admin.address})
    assert (stranger.status_code, stranger.json()["code"]) == (404, "update_not_found")
    told = await round_of(consortium, opening.job)
    assert [each.update.hospital for each in told.updates if each.reason is not None] == [rejection["hospital"]]
    accepted = [Contribution(each.update.hospital, each.update.digest, each.update.samples) for each in told.accepted()]
    closing = {"global_digest": secrets.token_hex(32), "contributions": of_contributions(accepted), "count": 4}
    assert (await consortium.post(f"{path}/closure", closing)).status_code == 201


async def test_what_a_merkle_round_refuses(consortium: Any) -> None:
    hospital, other = await consortium.hospital(), await consortium.hospital()
    opening = await consortium.open(merkle=True)

    async def code(*arguments: Any, **replaced: Any) -> tuple[int, str]:
        answer = await consortium.submit(consortium.submission(*arguments, **replaced))
        return answer.status_code, answer.json().get("code", "")

    assert await code(hospital, opening, key=other) == (422, "invalid_signature")
    assert await code(hospital, opening, base="d" * 64) == (422, "base_mismatch")
    assert await code(hospital, opening, samples=0) == (422, "no_samples")
    assert await code(hospital, opening, digest="0" * 64) == (422, "empty_value")
    assert await code(Account.create(), opening) == (403, "not_hospital")
    good = consortium.submission(hospital, opening)
    # The same signature in the form that the contract never takes: s in the upper half, v the other one.
    raw = bytes.fromhex(good.signature[2:])
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    flipped = raw[:32] + (order - int.from_bytes(raw[32:64], "big")).to_bytes(32, "big") + bytes([55 - raw[64]])
    spelled = good.model_copy(update={"signature": "0x" + flipped.hex()})
    assert (await consortium.submit(spelled)).json()["code"] == "invalid_signature"
    assert (await consortium.submit(good)).status_code == 202
    assert await code(hospital, opening) == (409, "already_submitted")

    assert (await consortium.submit(consortium.submission(other, opening))).status_code == 202
    assert (await consortium.change(Role.HOSPITAL, other.address, granted=False)).status_code == 201
    assert (await consortium.post(f"/v1/rounds/{opening.job}/1/commitment", None)).status_code == 201
    told = await round_of(consortium, opening.job)
    assert [each.update.hospital for each in told.updates] == [hospital.address]  # the other is no hospital any more

    closed = await consortium.open(merkle=True, deadline=int(time.time()) + 4)
    while time.time() <= closed.deadline:
        await asyncio.sleep(0.1)
    assert await code(hospital, closed) == (409, "deadline_passed")
    assert (await consortium.post(f"/v1/rounds/{closed.job}/1/abort", None)).status_code == 201
    assert await code(hospital, closed) == (409, "round_not_open")


async def test_a_wallet_signs_in_a_merkle_round(consortium: Any) -> None:
    """A contract that takes one account's signatures, as contracts/src/test/TestWallet.sol (ERC-1271)."""
    owner = Account.create()
    build = json.loads((main.MIGRATIONS.parents[3] / "contracts" / "build" / "TestWallet.json").read_text())
    factory = consortium.client.eth.contract(abi=build["abi"], bytecode=build["bytecode"])
    sent = consortium.transact(consortium.admin, None, factory.constructor(owner.address).data_in_transaction)
    wallet = consortium.client.eth.get_transaction_receipt(sent)["contractAddress"]
    assert (await consortium.change(Role.HOSPITAL, wallet)).status_code == 201
    opening = await consortium.open(merkle=True)
    hospital: Any = SimpleNamespace(address=wallet)
    submission = consortium.submission(hospital, opening, key=owner)
    forged = consortium.submission(hospital, opening, key=Account.create())
    assert (await consortium.submit(forged)).json()["code"] == "invalid_signature"
    assert (await consortium.submit(submission)).status_code == 202


def test_a_second_service_of_the_same_relay_is_refused(settings: Any, client: Any, relay: Any, admin: Any) -> None:
    quick = settings.model_copy(update={"lease_seconds": 1.0})
    main.build(quick.model_copy(update={"lease_seconds": 600.0}), client)
    with pytest.raises(StartError, match="another chain service sends from this relay's key"):
        main.build(quick, providers.connect("eth-tester://", [relay.address, admin.address]))


async def test_a_start_that_fails_leaves_no_lease_behind(start: Any, settings: Any, client: Any) -> None:
    with pytest.raises(StartError):
        main.build(settings.model_copy(update={"admin_address": None}), client)
    async with start() as consortium:
        answer: httpx.Response = await consortium.http.get("/readyz")
        assert answer.status_code == 200
