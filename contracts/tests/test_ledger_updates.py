"""Signed updates: what a batch must hold for every one of its updates to be recorded."""

from dataclasses import replace
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount

from contracts.tests.ledger_harness import HOSPITAL_ROLE, Ledger, Update, account, digest, refusal

JOB = digest("job")
BASE = digest("base")
OTHER = digest("other")
ZERO = bytes(32)
SECP256K1_N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

Hospitals = tuple[LocalAccount, ...]


def recorded(update: Update) -> tuple[str, dict[str, Any]]:
    fields = update.message()
    return "UpdateRecorded", {name: value for name, value in fields.items() if name != "base"}


def test_a_batch_is_recorded_in_its_order(ledger: Ledger, hospitals: Hospitals) -> None:
    deadline = ledger.open(JOB, BASE)
    batch = [
        ledger.update(hospital, JOB, BASE, samples=samples)
        for hospital, samples in zip(reversed(hospitals), (1, 7, 2**64 - 1), strict=True)
    ]
    assert ledger.events(ledger.submit(*batch)) == [recorded(update) for update in batch]
    assert ledger.view("roundOf", JOB, 1)[:5] == (BASE, deadline, 1, 3, 0)
    statuses = [ledger.view("updateStatus", JOB, 1, hospital.address) for hospital in hospitals]
    assert statuses == [[True, False]] * 3


def test_batches_add_up(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.open(JOB, BASE)
    for count, hospital in enumerate(hospitals, start=1):
        ledger.submit(ledger.update(hospital, JOB, BASE))
        assert ledger.view("roundOf", JOB, 1)[3] == count


def test_an_empty_batch_is_refused(ledger: Ledger) -> None:
    ledger.open(JOB, BASE)
    assert ledger.refused("submitUpdates", JOB, 1, BASE, []) == refusal("EmptyValue")


def test_a_batch_names_the_base_of_the_round(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.open(JOB, BASE)
    refused = ledger.refused(*ledger.submission(ledger.update(hospitals[0], JOB, OTHER)))
    assert refused == refusal("BaseMismatch", BASE, OTHER)


def test_the_deadline_itself_is_still_in_time(ledger: Ledger, hospitals: Hospitals) -> None:
    deadline = ledger.open(JOB, BASE)
    submission = ledger.submission(ledger.update(hospitals[0], JOB, BASE))
    ledger.chain.tester.time_travel(deadline)
    ledger.send(*submission, sender=ledger.relay)
    assert ledger.chain.now == deadline

    late = ledger.submission(ledger.update(hospitals[1], JOB, BASE))
    ledger.chain.tester.time_travel(deadline + 2)
    assert ledger.refused(*late) == refusal("DeadlinePassed", deadline, deadline + 1)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_one_bad_update_refuses_its_whole_batch(ledger: Ledger, hospitals: Hospitals, position: int) -> None:
    ledger.open(JOB, BASE)
    batch = [ledger.update(hospital, JOB, BASE) for hospital in hospitals]
    batch[position] = replace(batch[position], samples=99)
    refused = ledger.refused(*ledger.submission(*batch))
    assert refused == refusal("InvalidSignature", hospitals[position].address)


def test_an_update_has_a_digest_and_samples(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.open(JOB, BASE)
    first = hospitals[0]
    empty = ledger.update(first, JOB, BASE, digest=ZERO, samples=0)
    assert ledger.refused(*ledger.submission(empty)) == refusal("EmptyValue")
    idle = replace(ledger.update(first, JOB, BASE, samples=0), signature=b"")
    assert ledger.refused(*ledger.submission(idle)) == refusal("NoSamples", first.address)


@pytest.mark.parametrize(
    "tampered",
    [{"digest": OTHER}, {"samples": 101}, {"metrics": OTHER}],
    ids=lambda changed: str(next(iter(changed))),
)
def test_a_field_changed_after_signing_is_refused(
    ledger: Ledger, hospitals: Hospitals, tampered: dict[str, Any]
) -> None:
    ledger.open(JOB, BASE)
    update = replace(ledger.update(hospitals[0], JOB, BASE), **tampered)
    assert ledger.refused(*ledger.submission(update)) == refusal("InvalidSignature", hospitals[0].address)


@pytest.mark.parametrize(
    "signed_for",
    [{"job": OTHER}, {"round": 2}, {"base": OTHER}],
    ids=lambda changed: str(next(iter(changed))),
)
def test_a_signature_for_another_round_is_refused(
    ledger: Ledger, hospitals: Hospitals, signed_for: dict[str, Any]
) -> None:
    ledger.open(JOB, BASE)
    here = ledger.update(hospitals[0], JOB, BASE)
    elsewhere = ledger.sign(replace(here, **signed_for), hospitals[0])
    update = replace(here, signature=elsewhere.signature)
    assert ledger.refused(*ledger.submission(update)) == refusal("InvalidSignature", hospitals[0].address)


@pytest.mark.parametrize(
    "domain",
    [{"chainId": 1}, {"verifyingContract": "0x" + "11" * 20}, {"name": "Other"}, {"version": "2"}],
    ids=lambda changed: str(next(iter(changed))),
)
def test_a_signature_for_another_domain_is_refused(
    ledger: Ledger, hospitals: Hospitals, domain: dict[str, Any]
) -> None:
    ledger.open(JOB, BASE)
    update = ledger.sign(ledger.update(hospitals[0], JOB, BASE), hospitals[0], **domain)
    assert ledger.refused(*ledger.submission(update)) == refusal("InvalidSignature", hospitals[0].address)


def test_what_one_ledger_took_another_refuses(ledger: Ledger, hospitals: Hospitals) -> None:
    twin = Ledger(ledger.chain)
    twin.enrol(hospitals[0].address)
    update = ledger.update(hospitals[0], JOB, BASE)
    for each in (ledger, twin):
        each.open(JOB, BASE)
    ledger.submit(update)
    assert twin.refused(*twin.submission(update)) == refusal("InvalidSignature", hospitals[0].address)


def test_nobody_signs_for_another(ledger: Ledger, hospitals: Hospitals, stranger: LocalAccount) -> None:
    ledger.open(JOB, BASE)
    for signer in (hospitals[1], stranger):
        update = ledger.sign(ledger.update(hospitals[0], JOB, BASE), signer)
        assert ledger.refused(*ledger.submission(update)) == refusal("InvalidSignature", hospitals[0].address)


def test_the_mirrored_signature_is_refused(ledger: Ledger, hospitals: Hospitals) -> None:
    """(r, n - s, 55 - v) recovers the same signer; two valid signatures of one update must not exist."""
    ledger.open(JOB, BASE)
    update = ledger.update(hospitals[0], JOB, BASE)
    r, s, v = update.signature[:32], int.from_bytes(update.signature[32:64], "big"), update.signature[64]
    mirrored = replace(update, signature=r + (SECP256K1_N - s).to_bytes(32, "big") + bytes([55 - v]))
    assert ledger.refused(*ledger.submission(mirrored)) == refusal("InvalidSignature", hospitals[0].address)
    ledger.submit(update)


@pytest.mark.parametrize("claimed", ["0x" + "00" * 20, "0x" + "00" * 19 + "04"], ids=["zero", "precompile"])
@pytest.mark.parametrize("signature", [b"", bytes(64), bytes(65), bytes(66)], ids=len)
def test_no_signature_is_none(ledger: Ledger, hospitals: Hospitals, claimed: str, signature: bytes) -> None:
    """A failed recovery gives address zero, and the identity precompile echoes what a wallet is asked."""
    ledger.open(JOB, BASE)
    update = replace(ledger.update(hospitals[0], JOB, BASE), hospital=claimed, signature=signature)
    assert ledger.refused(*ledger.submission(update)) == refusal("InvalidSignature", claimed)
    update = replace(update, hospital=hospitals[0].address)
    assert ledger.refused(*ledger.submission(update)) == refusal("InvalidSignature", hospitals[0].address)


@pytest.mark.parametrize("v", [0, 1, 26, 29])
def test_v_is_27_or_28(ledger: Ledger, hospitals: Hospitals, v: int) -> None:
    ledger.open(JOB, BASE)
    update = ledger.update(hospitals[0], JOB, BASE)
    update = replace(update, signature=update.signature[:64] + bytes([v]))
    assert ledger.refused(*ledger.submission(update)) == refusal("InvalidSignature", hospitals[0].address)


def test_only_hospitals_contribute(ledger: Ledger, hospitals: Hospitals, stranger: LocalAccount) -> None:
    ledger.open(JOB, BASE)
    ledger.send("revokeRole", HOSPITAL_ROLE, hospitals[0].address, sender=ledger.admin)
    for signer in (stranger, hospitals[0]):
        refused = ledger.refused(*ledger.submission(ledger.update(signer, JOB, BASE)))
        assert refused == refusal("NotHospital", signer.address)


def test_a_hospital_submits_once_a_round(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.open(JOB, BASE)
    ledger.submit(ledger.update(hospitals[0], JOB, BASE))
    again = ledger.update(hospitals[0], JOB, BASE, digest=OTHER)
    expected = refusal("AlreadySubmitted", JOB, 1, hospitals[0].address)
    assert ledger.refused(*ledger.submission(again)) == expected

    ledger.send("rejectUpdate", JOB, 1, hospitals[0].address, 8)
    assert ledger.refused(*ledger.submission(again)) == expected
    for change in ("revokeRole", "grantRole"):
        ledger.send(change, HOSPITAL_ROLE, hospitals[0].address, sender=ledger.admin)
    assert ledger.refused(*ledger.submission(again)) == expected


def test_a_batch_with_a_hospital_twice_is_refused(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.open(JOB, BASE)
    first, second, _ = hospitals
    batch = [
        ledger.update(first, JOB, BASE),
        ledger.update(second, JOB, BASE),
        ledger.update(first, JOB, BASE, digest=OTHER),
    ]
    refused = ledger.refused(*ledger.submission(*batch))
    assert refused == refusal("AlreadySubmitted", JOB, 1, first.address)


def test_hospitals_of_several_words_in_any_order(ledger: Ledger, hospitals: Hospitals) -> None:
    """256 hospitals share a storage word; a batch goes back and forth between two of them."""
    crowd = [*hospitals, *(account(number) for number in range(len(hospitals), 260))]
    ledger.enrol(*(each.address for each in crowd[len(hospitals) :]))
    numbers = [ledger.view("hospitalNumber", crowd[at].address) for at in (0, 254, 255, 259)]
    assert numbers == [1, 255, 256, 260]

    ledger.open(JOB, BASE)
    mixed = [crowd[at] for at in (255, 0, 256, 254, 257)]
    batch = [ledger.update(each, JOB, BASE) for each in mixed]
    for twice in (crowd[255], crowd[0]):
        again = ledger.update(twice, JOB, BASE, digest=OTHER)
        refused = ledger.refused(*ledger.submission(*batch, again))
        assert refused == refusal("AlreadySubmitted", JOB, 1, twice.address)

    ledger.submit(*batch)
    assert ledger.view("roundOf", JOB, 1)[3] == 5
    for at in (0, 1, 253, 254, 255, 256, 257, 258, 259):
        expected = [crowd[at] in mixed, False]
        assert ledger.view("updateStatus", JOB, 1, crowd[at].address) == expected, at
    ledger.send("rejectUpdate", JOB, 1, crowd[256].address, 1)
    assert ledger.view("updateStatus", JOB, 1, crowd[256].address) == [True, True]
    assert ledger.view("updateStatus", JOB, 1, crowd[0].address) == [True, False]


def test_a_wallet_contract_signs_by_erc1271(ledger: Ledger, hospitals: Hospitals, stranger: LocalAccount) -> None:
    wallet = ledger.chain.deploy("TestWallet", stranger.address).address
    ledger.open(JOB, BASE)
    plain = Update(wallet, JOB, 1, BASE, OTHER, 5, OTHER)
    signed = ledger.sign(plain, stranger)
    assert ledger.refused(*ledger.submission(signed)) == refusal("NotHospital", wallet)

    ledger.enrol(wallet)
    for forged in (plain, ledger.sign(plain, hospitals[0]), replace(signed, samples=6)):
        assert ledger.refused(*ledger.submission(forged)) == refusal("InvalidSignature", wallet)
    batch = [signed, ledger.update(hospitals[0], JOB, BASE)]
    assert ledger.events(ledger.submit(*batch)) == [recorded(update) for update in batch]


def test_a_contract_without_erc1271_signs_nothing(ledger: Ledger, stranger: LocalAccount) -> None:
    ledger.enrol(ledger.contract.address)
    ledger.open(JOB, BASE)
    update = ledger.sign(Update(ledger.contract.address, JOB, 1, BASE, OTHER, 5, OTHER), stranger)
    refused = ledger.refused(*ledger.submission(update))
    assert refused == refusal("InvalidSignature", ledger.contract.address)
