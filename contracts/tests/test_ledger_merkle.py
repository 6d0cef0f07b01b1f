"""Merkle mode: one commitment a round, its rejections, and what can be proven and disputed afterwards."""

import random
from dataclasses import replace
from typing import Any

import pytest
from concilia_kit import merkle
from eth_account.signers.local import LocalAccount
from eth_tester.exceptions import TransactionFailed

from contracts.tests.ledger_harness import (
    COORDINATOR_ROLE,
    HOSPITAL_ROLE,
    Chain,
    Committed,
    Ledger,
    Update,
    account,
    digest,
    refusal,
)

JOB = digest("job")
BASE = digest("base")
GLOBAL = digest("global of round 1")
CONTRIBUTIONS = digest("contributions")
ROOT = digest("root")
OTHER = digest("other")
ZERO = bytes(32)
GRACE = 3600
NONE, OPEN, CLOSED, ABORTED = range(4)
NORM_TOO_LARGE = 8
EMPTY_UPDATE, NOT_HOSPITAL, INVALID_SIGNATURE = 1, 2, 3
SECP256K1_N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

Hospitals = tuple[LocalAccount, ...]


def updates(ledger: Ledger, hospitals: Hospitals) -> list[Update]:
    return [ledger.update(hospital, JOB, BASE) for hospital in hospitals]


def proven(committed: Committed, index: int) -> list[tuple[str, dict[str, Any]]]:
    fields = {name: value for name, value in committed.updates[index].message().items() if name != "base"}
    return [("UpdateProven", fields | {"index": index})]


def disputed(committed: Committed, index: int, finding: int) -> list[tuple[str, dict[str, Any]]]:
    fields = {"job": JOB, "round": 1, "hospital": committed.updates[index].hospital}
    return [("UpdateDisputed", fields | {"index": index, "finding": finding})]


def prove(ledger: Ledger, committed: Committed, index: int) -> list[tuple[str, dict[str, Any]]]:
    return ledger.events(ledger.send("proveUpdate", *committed.shown(index), sender=ledger.relay))


def dispute(ledger: Ledger, committed: Committed, index: int) -> list[tuple[str, dict[str, Any]]]:
    return ledger.events(ledger.send("disputeUpdate", *committed.shown(index), sender=ledger.relay))


# ------------------------------------------------------------------------------------------------------------- commit


def test_a_round_is_committed_rejected_from_closed_and_published(ledger: Ledger, hospitals: Hospitals) -> None:
    deadline = ledger.open(JOB, BASE, quorum=2)
    committed = ledger.committed(*updates(ledger, hospitals))
    assert ledger.events(ledger.send(*committed.commitment())) == [
        ("UpdatesCommitted", {"job": JOB, "round": 1, "root": committed.tree.root, "count": 3})
    ]
    assert ledger.view("commitmentOf", JOB, 1) == (committed.tree.root, 3, True)
    assert ledger.view("roundOf", JOB, 1) == (BASE, deadline, 2, 3, 0, OPEN)

    receipt = ledger.send("rejectCommitted", *committed.shown(1), NORM_TOO_LARGE)
    hospital = committed.updates[1].hospital
    assert ledger.events(receipt) == [
        ("UpdateRejected", {"job": JOB, "round": 1, "hospital": hospital, "reason": NORM_TOO_LARGE}),
        ("LeafRejected", {"job": JOB, "round": 1, "index": 1}),
    ]
    assert [ledger.view("leafRejected", JOB, 1, index) for index in range(4)] == [False, True, False, False]
    assert ledger.refused("closeRound", JOB, 1, GLOBAL, CONTRIBUTIONS, 3) == refusal("ContributionCountMismatch", 2, 3)
    ledger.send("closeRound", JOB, 1, GLOBAL, CONTRIBUTIONS, 2)
    assert ledger.view("roundOf", JOB, 1) == (BASE, deadline, 2, 3, 1, CLOSED)
    ledger.send("publishModel", JOB, GLOBAL)


def test_a_merkle_round_is_told_from_its_opening(ledger: Ledger, hospitals: Hospitals) -> None:
    deadline = ledger.chain.now + 60
    receipt = ledger.send("openMerkleRound", JOB, 1, BASE, deadline, 2)
    assert ledger.events(receipt) == [
        ("RoundOpened", {"job": JOB, "round": 1, "base": BASE, "deadline": deadline, "quorum": 2}),
        ("MerkleRoundOpened", {"job": JOB, "round": 1}),
    ]
    assert ledger.view("commitmentOf", JOB, 1) == (ZERO, 0, True)
    assert ledger.refused(*ledger.submission(*updates(ledger, hospitals))) == refusal("RoundTakesCommitment", JOB, 1)
    ledger.commit(*updates(ledger, hospitals))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((ZERO, 1, BASE, 60, 1), refusal("EmptyValue")),
        ((JOB, 1, ZERO, 60, 1), refusal("EmptyValue")),
        ((JOB, 1, BASE, 60, 0), refusal("EmptyValue")),
        ((JOB, 2, BASE, 60, 1), refusal("RoundOutOfOrder", JOB, 2, 1)),
    ],
)
def test_a_merkle_round_opens_by_the_same_rules(ledger: Ledger, arguments: tuple[Any, ...], expected: Any) -> None:
    job, number, base, seconds, quorum = arguments
    deadline = ledger.chain.now + seconds
    assert ledger.refused("openMerkleRound", job, number, base, deadline, quorum) == expected


def test_a_round_takes_updates_or_a_commitment(ledger: Ledger, hospitals: Hospitals) -> None:
    first, *rest = updates(ledger, hospitals)
    ledger.open(JOB, BASE)
    assert ledger.view("commitmentOf", JOB, 1) == (ZERO, 0, False)
    ledger.submit(first)
    committed = ledger.committed(first, *rest)
    assert ledger.refused(*committed.commitment()) == refusal("UpdatesRecorded", JOB, 1, 1)
    assert ledger.refused("proveUpdate", *committed.shown(0)) == refusal("NotCommitted", JOB, 1)
    ledger.send("abortRound", JOB, 1)

    ledger.open(JOB, BASE, 2)
    second = [ledger.update(hospital, JOB, BASE, round=2) for hospital in hospitals]
    ledger.commit(*second)
    assert ledger.refused(*ledger.submission(second[0])) == refusal("RoundTakesCommitment", JOB, 2)
    again = ledger.committed(*second[:2])
    assert ledger.refused(*again.commitment()) == refusal("AlreadyCommitted", JOB, 2)


def test_a_commitment_is_of_something_on_the_base_of_the_round(ledger: Ledger) -> None:
    assert ledger.refused("commitUpdates", JOB, 1, BASE, ROOT, 1) == refusal("RoundNotOpen", JOB, 1)
    ledger.open(JOB, BASE)
    assert ledger.refused("commitUpdates", JOB, 1, BASE, ZERO, 1) == refusal("EmptyValue")
    assert ledger.refused("commitUpdates", JOB, 1, BASE, ROOT, 0) == refusal("EmptyValue")
    assert ledger.refused("commitUpdates", JOB, 1, OTHER, ROOT, 1) == refusal("BaseMismatch", BASE, OTHER)


def test_no_more_is_committed_than_there_are_hospitals_now(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.open(JOB, BASE)
    ledger.enrol(hospitals[0].address)  # again, which changes nothing
    assert ledger.refused("commitUpdates", JOB, 1, BASE, ROOT, 4) == refusal("MoreUpdatesThanHospitals", 3, 4)
    for _ in range(2):  # the second time changes nothing
        ledger.send("revokeRole", HOSPITAL_ROLE, hospitals[0].address, sender=ledger.admin)
    assert ledger.refused("commitUpdates", JOB, 1, BASE, ROOT, 3) == refusal("MoreUpdatesThanHospitals", 2, 3)
    ledger.enrol(hospitals[0].address)
    ledger.send("commitUpdates", JOB, 1, BASE, ROOT, 3)


def test_a_commitment_may_be_late_by_the_grace_and_no_more(ledger: Ledger, hospitals: Hospitals) -> None:
    assert ledger.view("COMMIT_GRACE") == GRACE
    other = digest("other job")
    deadline = ledger.open(JOB, BASE)
    ledger.open(other, BASE, seconds=deadline - ledger.chain.now)
    ledger.chain.tester.time_travel(deadline + GRACE)
    ledger.commit(*updates(ledger, hospitals))
    assert ledger.chain.now == deadline + GRACE
    latest = ledger.view("roundOf", other, 1)[1] + GRACE
    ledger.chain.tester.time_travel(latest + 2)
    refused = ledger.refused("commitUpdates", other, 1, BASE, ROOT, 1)
    assert refused == refusal("DeadlinePassed", latest, latest + 1)


def test_the_last_deadline_of_all_does_not_overflow(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.send("openRound", JOB, 1, BASE, 2**64 - 1, 1)
    ledger.commit(*updates(ledger, hospitals))


def test_a_merkle_round_without_commitment_cannot_close(ledger: Ledger) -> None:
    ledger.open(JOB, BASE, merkle_only=True)
    assert ledger.refused("closeRound", JOB, 1, GLOBAL, CONTRIBUTIONS, 0) == refusal("QuorumNotReached", 0, 1)
    ledger.send("abortRound", JOB, 1)


def test_only_the_coordinator_commits_and_nothing_while_paused(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.open(JOB, BASE)
    committed = ledger.commit(*updates(ledger, hospitals))
    calls: list[tuple[Any, ...]] = [
        ("openMerkleRound", OTHER, 1, BASE, ledger.chain.now + 60, 1),
        ("commitUpdates", JOB, 1, BASE, ROOT, 1),
        ("rejectCommitted", *committed.shown(0), NORM_TOO_LARGE),
    ]
    for sender in (ledger.deployer, ledger.admin, ledger.relay):
        expected = refusal("AccessControlUnauthorizedAccount", sender, COORDINATOR_ROLE)
        assert [ledger.refused(*call, sender=sender) for call in calls] == [expected] * len(calls)
    ledger.send("pause", sender=ledger.admin)
    assert [ledger.refused(*call) for call in calls] == [refusal("EnforcedPause")] * len(calls)
    # A proof changes nothing, and a pause is no time to lose one.
    assert prove(ledger, committed, 0) == proven(committed, 0)


# ------------------------------------------------------------------------------------------------------------- reject


def test_a_leaf_is_rejected_once_by_its_own_name(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.open(JOB, BASE)
    committed = ledger.commit(*updates(ledger, hospitals))
    job, number, update, index, proof = committed.shown(0)
    reject = ("rejectCommitted", job, number)
    assert ledger.refused(*reject, update, index, proof, 0) == refusal("ReasonMissing")
    assert ledger.refused(*reject, update, index, proof, 10) == refusal("")
    assert ledger.refused(*reject, update, 3, proof, 1) == refusal("IndexOutOfRange", 3, 3)
    assert ledger.refused(*reject, update, 1, proof, 1) == refusal("NotInCommitment", committed.leaves[0], 1)
    renamed = replace(committed.updates[0], hospital=committed.updates[1].hospital)
    leaf = ledger.committed(renamed).leaves[0]
    refused = ledger.refused(*reject, renamed.argument(), index, proof, 1)
    assert refused == refusal("NotInCommitment", leaf, 0)

    ledger.send(*reject, update, index, proof, 1)
    refused = ledger.refused(*reject, update, index, proof, 2)
    assert refused == refusal("AlreadyRejected", JOB, 1, committed.updates[0].hospital)
    assert ledger.view("updateStatus", JOB, 1, committed.updates[0].hospital) == [False, False]
    refused = ledger.refused("rejectUpdate", JOB, 1, committed.updates[1].hospital, 1)
    assert refused == refusal("UpdateNotFound", JOB, 1, committed.updates[1].hospital)


def test_every_leaf_can_be_rejected_and_the_quorum_then_fails(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.open(JOB, BASE)
    committed = ledger.commit(*updates(ledger, hospitals))
    for index in (2, 0, 1):
        ledger.send("rejectCommitted", *committed.shown(index), NORM_TOO_LARGE)
    assert ledger.refused("closeRound", JOB, 1, GLOBAL, CONTRIBUTIONS, 0) == refusal("QuorumNotReached", 0, 1)


def test_a_false_leaf_can_be_rejected_and_no_leaf_of_an_ended_round(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.open(JOB, BASE)
    good, spoilt, _ = updates(ledger, hospitals)
    committed = ledger.commit(good, replace(spoilt, signature=b""))
    at = [update.hospital for update in committed.updates].index(spoilt.hospital)
    ledger.send("rejectCommitted", *committed.shown(at), NORM_TOO_LARGE)
    ledger.send("closeRound", JOB, 1, GLOBAL, CONTRIBUTIONS, 1)
    refused = ledger.refused("rejectCommitted", *committed.shown(1 - at), NORM_TOO_LARGE)
    assert refused == refusal("RoundNotOpen", JOB, 1)


# -------------------------------------------------------------------------------------------------- prove and dispute


def test_anyone_proves_a_committed_update_at_any_time(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.open(JOB, BASE)
    committed = ledger.commit(*updates(ledger, hospitals))
    for ending in (None, ("closeRound", JOB, 1, GLOBAL, CONTRIBUTIONS, 3)):
        if ending:
            ledger.send(*ending)
        for index in range(3):
            assert prove(ledger, committed, index) == proven(committed, index)
            refused = ledger.refused("disputeUpdate", *committed.shown(index))
            assert refused == refusal("NothingToDispute", committed.updates[index].hospital)


@pytest.mark.parametrize("field", ["hospital", "digest", "samples", "metrics", "signature"])
def test_an_update_other_than_the_committed_one_is_not_in_it(ledger: Ledger, hospitals: Hospitals, field: str) -> None:
    ledger.open(JOB, BASE)
    committed = ledger.commit(*updates(ledger, hospitals))
    update = committed.updates[1]
    values: dict[str, Any] = {
        "hospital": committed.updates[0].hospital,
        "samples": 101,
        "signature": update.signature[:-1],
    }
    changed = replace(update, **{field: values.get(field, OTHER)})
    job, number, _, index, proof = committed.shown(1)
    leaf = ledger.committed(changed).leaves[0]
    for name in ("proveUpdate", "disputeUpdate"):
        refused = ledger.refused(name, job, number, changed.argument(), index, proof)
        assert refused == refusal("NotInCommitment", leaf, 1)


def false_updates(ledger: Ledger, hospital: LocalAccount, other: LocalAccount) -> dict[str, Update]:
    """Updates that no batch would take, with signatures that look like some."""
    right = ledger.update(hospital, JOB, BASE)
    r, s, v = right.signature[:32], int.from_bytes(right.signature[32:64], "big"), right.signature[64]
    high = (SECP256K1_N - s).to_bytes(32, "big")
    compact = r + (s | (v - 27) << 255).to_bytes(32, "big")
    return {
        "of another": replace(right, signature=ledger.sign(right, other).signature),
        "none": replace(right, signature=b""),
        "mirrored": replace(right, signature=r + high + bytes([55 - v])),
        "high s, same v": replace(right, signature=r + high + bytes([v])),
        "v from zero": replace(right, signature=right.signature[:64] + bytes([v - 27])),
        "the other v": replace(right, signature=right.signature[:64] + bytes([55 - v])),
        "compact (EIP-2098)": replace(right, signature=compact),
        "longer": replace(right, signature=right.signature + b"\0"),
        "another job": replace(right, signature=ledger.sign(replace(right, job=OTHER), hospital).signature),
        "another round": replace(right, signature=ledger.sign(replace(right, round=2), hospital).signature),
        "another base": replace(right, signature=ledger.sign(replace(right, base=OTHER), hospital).signature),
        "another chain": ledger.sign(right, hospital, chainId=1),
        "another contract": ledger.sign(right, hospital, verifyingContract="0x" + "11" * 20),
    }


FALSE = (
    "of another",
    "none",
    "mirrored",
    "high s, same v",
    "v from zero",
    "the other v",
    "compact (EIP-2098)",
    "longer",
    "another job",
    "another round",
    "another base",
    "another chain",
    "another contract",
)


@pytest.mark.parametrize("how", FALSE)
def test_a_signature_that_no_batch_would_take_is_refused_and_disputed(
    ledger: Ledger, hospitals: Hospitals, how: str
) -> None:
    ledger.open(JOB, BASE)
    made = false_updates(ledger, hospitals[0], hospitals[1])
    assert set(made) == set(FALSE)
    refused = ledger.refused(*ledger.submission(made[how]))
    assert refused == refusal("InvalidSignature", hospitals[0].address)

    committed = ledger.commit(made[how], *updates(ledger, hospitals[1:]))
    index = list(committed.updates).index(made[how])
    refused = ledger.refused("proveUpdate", *committed.shown(index))
    assert refused == refusal("InvalidSignature", hospitals[0].address)
    assert dispute(ledger, committed, index) == disputed(committed, index, INVALID_SIGNATURE)


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"digest": ZERO}, "EmptyValue"), ({"samples": 0}, "NoSamples"), ({"digest": ZERO, "samples": 0}, "EmptyValue")],
)
def test_an_empty_update_is_disputed(ledger: Ledger, hospitals: Hospitals, fields: Any, error: str) -> None:
    ledger.open(JOB, BASE)
    committed = ledger.commit(ledger.update(hospitals[0], JOB, BASE, **fields))
    arguments = (hospitals[0].address,) if error == "NoSamples" else ()
    assert ledger.refused("proveUpdate", *committed.shown(0)) == refusal(error, *arguments)
    assert dispute(ledger, committed, 0) == disputed(committed, 0, EMPTY_UPDATE)


def test_a_stranger_is_disputed_even_if_enrolled_later(
    ledger: Ledger, hospitals: Hospitals, stranger: LocalAccount
) -> None:
    ledger.open(JOB, BASE)
    committed = ledger.commit(ledger.update(stranger, JOB, BASE))
    for _ in range(2):
        assert ledger.refused("proveUpdate", *committed.shown(0)) == refusal("NotHospital", stranger.address)
        assert dispute(ledger, committed, 0) == disputed(committed, 0, NOT_HOSPITAL)
        ledger.enrol(stranger.address)


def test_the_role_counts_as_it_was_at_the_commitment(ledger: Ledger, hospitals: Hospitals) -> None:
    """Whatever happens to the role afterwards, and whatever happened before."""
    member = hospitals[0]
    numbers = iter(range(1, 100))
    base = BASE
    seen: list[tuple[Committed, bool]] = []

    def commit(holds: bool) -> None:
        ledger.open(JOB, base, number := next(numbers))
        made = ledger.commit(ledger.update(member, JOB, base, round=number))
        ledger.send("abortRound", JOB, number)
        seen.append((made, holds))
        for committed, held in seen:
            refused = ledger.refused("disputeUpdate" if held else "proveUpdate", *committed.shown(0))
            assert refused == refusal("NothingToDispute" if held else "NotHospital", member.address)
            ledger.send("proveUpdate" if held else "disputeUpdate", *committed.shown(0))

    for change, holds in (("grantRole", True), ("revokeRole", False), ("grantRole", True), ("revokeRole", False)):
        ledger.send(change, HOSPITAL_ROLE, member.address, sender=ledger.admin)
        commit(holds)
        ledger.send("revokeRole", HOSPITAL_ROLE, account(1).address, sender=ledger.admin)
        ledger.enrol(account(1).address)
        commit(holds)


def test_the_role_is_told_within_one_block(ledger: Ledger, hospitals: Hospitals) -> None:
    """Commit and revoke in one block, in both orders: the block's clock could not tell them apart."""
    member, tester = hospitals[0].address, ledger.chain.tester
    for number, commit_first in enumerate((True, False), start=1):
        ledger.enrol(member)
        ledger.open(JOB, BASE, number)
        committed = ledger.committed(ledger.update(hospitals[0], JOB, BASE, round=number))
        commit = (ledger.coordinator, committed.commitment())
        revoke = (ledger.admin, ("revokeRole", HOSPITAL_ROLE, member))
        tester.disable_auto_mine_transactions()
        sent = []
        for sender, (name, *arguments) in (commit, revoke) if commit_first else (revoke, commit):
            data = ledger.contract.encode_abi(name, arguments)
            call = {"from": sender, "to": ledger.contract.address, "data": data, "gas": 1_000_000, "gas_price": 10**10}
            sent.append(tester.send_transaction(call))
        tester.enable_auto_mine_transactions()
        receipts = [tester.get_transaction_receipt(each) for each in sent]
        assert {each["block_number"] for each in receipts} == {receipts[0]["block_number"]}
        assert [each["status"] for each in receipts] == [1, 1]
        ledger.send("proveUpdate" if commit_first else "disputeUpdate", *committed.shown(0))
        ledger.send("abortRound", JOB, number)


def test_a_wallet_contract_proves_its_update_and_is_not_disputed(
    ledger: Ledger, hospitals: Hospitals, stranger: LocalAccount
) -> None:
    wallet = ledger.chain.deploy("TestWallet", stranger.address).address
    ledger.enrol(wallet)
    ledger.open(JOB, BASE)
    plain = Update(wallet, JOB, 1, BASE, OTHER, 5, OTHER)
    signed, forged = ledger.sign(plain, stranger), ledger.sign(plain, hospitals[0])
    committed = ledger.commit(signed, *updates(ledger, hospitals))
    index = list(committed.updates).index(signed)
    assert prove(ledger, committed, index) == proven(committed, index)
    assert ledger.refused("disputeUpdate", *committed.shown(index)) == refusal("NothingToDispute", wallet)

    ledger.send("abortRound", JOB, 1)
    ledger.open(JOB, BASE, 2)
    again = ledger.commit(replace(forged, round=2))
    assert ledger.refused("proveUpdate", *again.shown(0)) == refusal("InvalidSignature", wallet)
    assert ledger.refused("disputeUpdate", *again.shown(0)) == refusal("NothingToDispute", wallet)


# A wallet that accepts whatever it is asked, after hashing 384 KiB, which takes some 400,000 gas.
THIRSTY_WALLET = bytes.fromhex("601880600b6000396000f36206000060002050631626ba7e60e01b60005260206000f3")


def test_no_lack_of_gas_makes_a_right_update_disputed(ledger: Ledger, hospitals: Hospitals) -> None:
    """A call gets 63 of 64 parts of what is left: the rest is enough to emit an event after a wallet died of thirst."""
    tester = ledger.chain.tester
    deployed = tester.send_transaction({"from": ledger.relay, "data": THIRSTY_WALLET.hex(), "gas": 500_000})
    wallet = tester.get_transaction_receipt(deployed)["contract_address"]
    wallet = ledger.contract.w3.to_checksum_address(wallet)
    ledger.enrol(wallet)
    ledger.open(JOB, BASE)
    committed = ledger.commit(Update(wallet, JOB, 1, BASE, OTHER, 5, OTHER), ledger.update(hospitals[0], JOB, BASE))
    for index in range(2):
        assert prove(ledger, committed, index) == proven(committed, index)
        call = {
            "from": ledger.relay,
            "to": ledger.contract.address,
            "data": ledger.contract.encode_abi("disputeUpdate", committed.shown(index)),
        }
        for gas in (*range(30_000, 70_000, 1_000), *range(70_000, 600_000, 10_000)):
            with pytest.raises(TransactionFailed):
                tester.call(call | {"gas": gas})


# ------------------------------------------------------------------------------------------- the trees, bit by bit


@pytest.fixture(scope="module")
def grove() -> tuple[Ledger, list[Committed]]:
    """Commitments of random sizes, one a job, over made-up hospitals; on a chain of its own, changed by nobody."""
    ledger = Ledger(Chain())
    ledger.enrol(*(account(number).address for number in range(70)))
    drawn = random.Random(6962)
    made = []
    for number, size in enumerate([1, 2, 3, 4, 5, 7, 8, 9, *(drawn.randint(10, 70) for _ in range(6))]):
        job = digest(f"job {number}")
        ledger.open(job, BASE)
        signers = drawn.sample(range(70), size)
        made.append(
            ledger.commit(
                *(
                    Update(account(each).address, job, 1, BASE, drawn.randbytes(32), 5, OTHER, drawn.randbytes(65))
                    for each in signers
                )
            )
        )
    return ledger, made


def verdict(ledger: Ledger, *shown: Any) -> str:
    """The contract's word on inclusion; the signatures are noise, so that what is included ends with one of these."""
    error = ledger.refused("proveUpdate", *shown).error
    return "included" if error == "InvalidSignature" else error


def test_the_contract_agrees_with_the_kit_on_random_trees(grove: tuple[Ledger, list[Committed]]) -> None:
    ledger, made = grove
    for committed in made:
        count = len(committed.updates)
        for index in {0, count - 1, count // 2, count // 3}:
            job, number, update, _, proof = committed.shown(index)
            for at in {index, index ^ 1, index + 2, 0}:
                right = merkle.verify(committed.leaves[index], at, count, proof, committed.tree.root)
                expected = "IndexOutOfRange" if at >= count else "included" if right else "NotInCommitment"
                assert verdict(ledger, job, number, update, at, proof) == expected
                assert right is (at == index)
            for wrong in ([*proof, ZERO], proof[:-1]):
                if wrong != proof:
                    assert verdict(ledger, job, number, update, index, wrong) == "NotInCommitment"


def test_no_bit_of_leaf_proof_or_index_can_change(grove: tuple[Ledger, list[Committed]]) -> None:
    ledger, made = grove
    committed = made[4]
    job, number, update, index, proof = committed.shown(2)
    assert verdict(ledger, job, number, update, index, proof) == "included"
    for at, each in enumerate(proof):
        for bit in range(0, 256, 5):
            changed = [*proof[:at], flipped(each, bit), *proof[at + 1 :]]
            assert verdict(ledger, job, number, update, index, changed) == "NotInCommitment"
    for bit in range(32):
        assert verdict(ledger, job, number, update, index ^ 1 << bit, proof) in ("NotInCommitment", "IndexOutOfRange")
    hospital, file, samples, metrics, signature = update
    for bit in range(0, 64 * 8, 9):
        changed_updates = [
            (f"0x{flipped(bytes.fromhex(hospital[2:]), bit % 160).hex()}", file, samples, metrics, signature),
            (hospital, flipped(file, bit % 256), samples, metrics, signature),
            (hospital, file, samples ^ 1 << bit % 64, metrics, signature),
            (hospital, file, samples, flipped(metrics, bit % 256), signature),
            (hospital, file, samples, metrics, flipped(signature, bit)),
        ]
        for changed_update in changed_updates:
            shown = (ledger.contract.w3.to_checksum_address(changed_update[0]), *changed_update[1:])
            assert verdict(ledger, job, number, shown, index, proof) == "NotInCommitment"


def test_no_bit_of_the_root_can_change_and_a_wrong_count_shows(ledger: Ledger, hospitals: Hospitals) -> None:
    """The count is not in the root: it is the last leaf of the smaller count that gives a wrong one away."""
    ledger.open(JOB, BASE)
    committed = ledger.committed(*updates(ledger, hospitals))
    snapshot = ledger.chain.tester.take_snapshot()
    for bit in range(0, 256, 15):
        ledger.send("commitUpdates", JOB, 1, BASE, flipped(committed.tree.root, bit), 3)
        assert ledger.refused("proveUpdate", *committed.shown(1)).error == "NotInCommitment"
        ledger.chain.tester.revert_to_snapshot(snapshot)
    for count in (1, 2):
        ledger.send("commitUpdates", JOB, 1, BASE, committed.tree.root, count)
        assert ledger.refused("proveUpdate", *committed.shown(count - 1)).error == "NotInCommitment"
        ledger.chain.tester.revert_to_snapshot(snapshot)


def flipped(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "big") ^ 1 << bit).to_bytes(len(data), "big")
