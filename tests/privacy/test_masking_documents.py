"""What a hospital, the aggregator or somebody between them may change in a round's masking, and who notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from concilia_kit import masking, signing
from concilia_kit.masking import MaskingError, Secrets
from concilia_kit.wire.masking import Consent, Parcel, Revealed, Roster, SecureAggregation, SignedKeys, Unmasking

from tests.privacy.cohort import DOMAIN, THIRDS, Cohort, Member, member, model, signed_keys


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """Four hospitals that shared; the last one's update is missing."""
    four = Cohort.of(4, tmp_path)
    four.keys()
    four.shares()
    four.inputs(gone=[four.members[3].hospital])
    return four


def changed(roster: Roster, at: int, **members: Any) -> Roster:
    each = roster.members[at]
    keys = each.keys.model_copy(update=members)
    return with_member(roster, at, each.model_copy(update={"keys": keys}))


def with_member(roster: Roster, at: int, signed: SignedKeys) -> Roster:
    members = list(roster.members)
    members[at] = signed
    return roster.model_copy(update={"members": tuple(members)})


def resigned(its: Member, **members: Any) -> SignedKeys:
    return signed_keys(its.account, its.signed.keys.model_copy(update=members))


LOW = "01" + "00" * 31
"""A point of order one (RFC 7748, section 7)."""

ROSTERS: dict[str, Callable[[Cohort], Roster]] = {
    "own keys changed": lambda of: with_member(of.roster, 0, resigned(of.members[0], samples=5)),
    "another's key without its signature": lambda of: changed(of.roster, 1, masking="ab" * 32),
    "another's sealing key without its signature": lambda of: changed(of.roster, 2, sealing="ab" * 32),
    "another's samples without its signature": lambda of: changed(of.roster, 2, samples=1),
    "another's job": lambda of: with_member(of.roster, 1, resigned(of.members[1], job="3" * 64)),
    "another's round": lambda of: with_member(of.roster, 1, resigned(of.members[1], round=2)),
    "another's base": lambda of: with_member(of.roster, 1, resigned(of.members[1], base="3" * 64)),
    "a masking key of low order": lambda of: with_member(of.roster, 1, resigned(of.members[1], masking=LOW)),
    "a sealing key of low order": lambda of: with_member(of.roster, 1, resigned(of.members[1], sealing="00" * 32)),
    "a key twice": lambda of: with_member(
        of.roster, 1, resigned(of.members[1], masking=of.members[2].signed.keys.masking)
    ),
    "a commitment twice": lambda of: with_member(
        of.roster, 1, resigned(of.members[1], commitment=of.members[2].signed.keys.commitment)
    ),
    "a member twice": lambda of: of.roster.model_copy(update={"members": (*of.roster.members, of.roster.members[-1])}),
    "out of order": lambda of: of.roster.model_copy(update={"members": of.roster.members[::-1]}),
    "too few": lambda of: of.roster.model_copy(update={"members": of.roster.members[:2]}),
    "a lower threshold": lambda of: of.roster.model_copy(update={"threshold": 0.51}),
    "groups": lambda of: of.roster.model_copy(update={"group": 3}),
}


@pytest.mark.parametrize("change", ROSTERS.values(), ids=ROSTERS)
def test_a_roster_that_is_not_masked_by(cohort: Cohort, change: Callable[[Cohort], Roster]) -> None:
    own = cohort.members[0].signed
    masking.check_roster(cohort.roster, own, THIRDS, DOMAIN)
    with pytest.raises(MaskingError):
        masking.check_roster(change(cohort), own, THIRDS, DOMAIN)


def test_signatures_of_another_chain_are_none(cohort: Cohort) -> None:
    with pytest.raises(MaskingError, match="not signed"):
        masking.check_roster(cohort.roster, cohort.members[0].signed, THIRDS, DOMAIN.model_copy(update={"chain_id": 1}))


def test_secrets_that_are_not_of_the_roster(cohort: Cohort) -> None:
    its = cohort.members[0]
    others = member(77, its.samples, model()).secrets
    for secrets, hospital in ((others, its.hospital), (its.secrets, cohort.members[1].hospital)):
        with pytest.raises(MaskingError, match="other keys"):
            masking.share(secrets, cohort.roster, hospital)
        with pytest.raises(MaskingError, match="other keys"):
            masking.masks(secrets, cohort.roster, hospital, cohort.sharers)
    with pytest.raises(MaskingError, match="not in the roster"):
        masking.share(its.secrets, cohort.roster, "0x" + "00" * 20)


def parcels_of(cohort: Cohort, recipient: str) -> list[Parcel]:
    shares = [masking.share(each.secrets, cohort.roster, each.hospital) for each in cohort.members]
    return [parcel for each in shares for parcel in each.parcels if parcel.recipient == recipient]


@pytest.mark.parametrize("at", [0, 12, 40, -1])
def test_a_parcel_that_was_changed(cohort: Cohort, at: int) -> None:
    its = cohort.members[0]
    parcels = parcels_of(cohort, its.hospital)
    raw = bytearray.fromhex(parcels[1].sealed)
    raw[at] ^= 1
    parcels[1] = parcels[1].model_copy(update={"sealed": raw.hex()})
    with pytest.raises(MaskingError, match="does not open"):
        masking.open_parcels(its.secrets, cohort.roster, its.hospital, cohort.sharers, parcels)


def test_parcels_that_are_others(cohort: Cohort) -> None:
    its, other = cohort.members[0], cohort.members[1]
    own, others = parcels_of(cohort, its.hospital), parcels_of(cohort, other.hospital)
    swapped = [own[0].model_copy(update={"sealed": own[1].sealed}), *own[1:]]
    readdressed = [*own[:2], own[2].model_copy(update={"sealed": others[2].sealed})]
    towards_other = next(each for each in others if each.sender == its.hospital)
    reflected = [
        each.model_copy(update={"sealed": towards_other.sealed}) if each.sender == other.hospital else each
        for each in own
    ]
    for wrong in (reflected, own[:-1], [*own, own[0]], [*own[:-1], others[-1]], swapped, readdressed):
        with pytest.raises(MaskingError):
            masking.open_parcels(its.secrets, cohort.roster, its.hospital, cohort.sharers, wrong)
    assert masking.open_parcels(its.secrets, cohort.roster, its.hospital, cohort.sharers, own[::-1]) == its.held


def test_parcels_of_another_roster(cohort: Cohort) -> None:
    """The same hospitals with the same keys, but for one: no share goes from one roster to another."""
    its, last = cohort.members[0], cohort.members[3]
    before = parcels_of(cohort, its.hospital)
    cohort.members[3] = Member(last.account, last.secrets, 5, last.trained, resigned(last, samples=5))
    cohort.keys()
    with pytest.raises(MaskingError, match="does not open"):
        masking.open_parcels(its.secrets, cohort.roster, its.hospital, cohort.sharers, before)


def test_a_parcel_says_nothing_to_others(cohort: Cohort) -> None:
    its = cohort.members[0]
    for parcel in parcels_of(cohort, cohort.members[1].hospital):
        assert its.held is not None
        for share in (*its.held.masks.values(), *its.held.keys.values()):
            assert share not in parcel.sealed


def test_too_few_sharers_or_strange_ones(cohort: Cohort) -> None:
    its = cohort.members[0]
    names = cohort.sharers
    for sharers in (names[:2], names[1:], names[::-1], [*names, "0x" + "00" * 20], [names[0], *names]):
        with pytest.raises(MaskingError):
            masking.masks(its.secrets, cohort.roster, its.hospital, sharers)


def test_survivors_that_are_not_signed(cohort: Cohort) -> None:
    its, good = cohort.members[0], cohort.survivors()
    assert its.held is not None
    masking.check_survivors(good, cohort.roster, its.hospital, its.held)
    alive, gone = good.survivors, good.dropped
    changes: list[dict[str, Any]] = [
        {"roster": "0" * 64},
        {"job": "3" * 64},
        {"round": 2},
        {"survivors": alive[:2], "dropped": (alive[2], *gone)},  # too few
        {"survivors": alive[1:], "dropped": (alive[0], *gone)},  # not itself
        {"dropped": ()},
        {"survivors": (*alive, *gone)},  # one is in both
        {"survivors": alive[::-1]},
        {"survivors": (*alive, "0x" + "00" * 20)},
    ]
    for change in changes:
        with pytest.raises(MaskingError):
            masking.check_survivors(good.model_copy(update=change), cohort.roster, its.hospital, its.held)
        with pytest.raises(MaskingError):
            masking.reveal(its.held, cohort.roster, its.hospital, good.model_copy(update=change))


def test_never_both_shares_of_one(cohort: Cohort) -> None:
    survivors = cohort.survivors()
    for revealed in cohort.reveals(cohort.consents()):
        assert set(revealed.seeds) == set(survivors.survivors)
        assert set(revealed.keys) == set(survivors.dropped)


def test_consents_that_do_not_count(cohort: Cohort) -> None:
    its, good, survivors = cohort.members[0], cohort.consents(), cohort.survivors()

    def check(consents: list[Consent]) -> None:
        masking.check_consents(consents, survivors, cohort.roster, its.hospital, DOMAIN)

    check(good)
    dropped = cohort.members[3]
    by_dropped = Consent(
        hospital=dropped.hospital, signature=signing.sign(survivors.statement(), DOMAIN, dropped.account)
    )
    of_other = survivors.model_copy(update={"round": 2}).statement()
    of_another = Consent(hospital=good[2].hospital, signature=signing.sign(of_other, DOMAIN, cohort.members[2].account))
    borrowed = Consent(hospital=good[2].hospital, signature=good[1].signature)
    broken = Consent(hospital=good[2].hospital, signature="0x00")
    for third in (good[0], by_dropped, of_another, borrowed, broken):
        with pytest.raises(MaskingError, match="2 agreed"):
            check([good[0], good[1], third])
    check([*good, broken])


def test_consents_of_another_group_do_not_count(tmp_path: Path) -> None:
    cohort = Cohort.of(6, tmp_path, SecureAggregation(group=3))
    cohort.keys()
    cohort.shares()
    cohort.inputs()
    its = masking.graph(cohort.roster)
    first, second = its.groups
    consents = {each.hospital: each for each in cohort.consents()}
    names = cohort.roster.hospitals
    few = [consents[names[at]] for at in (*first[:1], *second)]
    with pytest.raises(MaskingError, match="1 agreed"):
        masking.check_consents(few, cohort.survivors(), cohort.roster, names[first[0]], DOMAIN)
    masking.check_consents(few, cohort.survivors(), cohort.roster, names[second[0]], DOMAIN)


def test_a_wrong_share_is_passed_over_where_others_are_enough(tmp_path: Path) -> None:
    cohort = Cohort.of(6, tmp_path)  # 4 shares are needed
    cohort.keys()
    cohort.shares()
    cohort.inputs(gone=[cohort.members[5].hospital])
    revealed = cohort.reveals(cohort.consents())
    expected = cohort.unmasking(revealed)

    def lying(given: Revealed) -> Revealed:
        return given.model_copy(
            update={"seeds": dict.fromkeys(given.seeds, "ab" * 32), "keys": dict.fromkeys(given.keys, "00" * 32)}
        )

    for at in range(5):
        given = [lying(each) if at == place else each for place, each in enumerate(revealed)]
        assert cohort.unmasking(given) == expected
    with pytest.raises(MaskingError, match="do not fit"):
        cohort.unmasking([lying(each) if place < 2 else each for place, each in enumerate(revealed)])


def test_what_is_revealed_must_be_what_is_held(cohort: Cohort) -> None:
    survivors, revealed = cohort.survivors(), cohort.reveals(cohort.consents())
    one = revealed[0]
    of, gone = survivors.survivors, survivors.dropped
    wrong = [
        one.model_copy(update={"roster": "0" * 64}),
        one.model_copy(update={"hospital": "0x" + "00" * 20}),
        one.model_copy(update={"seeds": {of[0]: one.seeds[of[0]]}}),
        one.model_copy(update={"keys": {}}),
        one.model_copy(update={"seeds": {**one.seeds, gone[0]: "00" * 32}}),
        one.model_copy(update={"keys": {**one.keys, of[0]: "00" * 32}}),
    ]
    for each in wrong:
        with pytest.raises(MaskingError):
            masking.check_revealed(cohort.roster, cohort.sharers, of, each)
        with pytest.raises(MaskingError):
            cohort.unmasking([each, *revealed[1:]])


def test_enough_is_enough(cohort: Cohort) -> None:
    revealed = cohort.reveals(cohort.consents())
    names = [each.hospital for each in revealed]
    assert masking.is_enough(cohort.roster, cohort.sharers, names, names)
    assert not masking.is_enough(cohort.roster, cohort.sharers, names, names[:2])
    assert not masking.is_enough(cohort.roster, cohort.sharers, names[:2], names)
    with pytest.raises(MaskingError, match="too few"):
        cohort.unmasking(revealed[:2])


UNMASKINGS: dict[str, Callable[[Unmasking], dict[str, Any]]] = {
    "a seed that is not of its commitment": lambda of: {"seeds": {**of.seeds, of.survivors[0]: "00" * 16}},
    "two seeds exchanged": lambda of: {
        "seeds": {**of.seeds, of.survivors[0]: of.seeds[of.survivors[1]], of.survivors[1]: of.seeds[of.survivors[0]]}
    },
    "a key's seed that is not of its public key": lambda of: {"keys": dict.fromkeys(of.keys, "00" * 16)},
    "a seed is missing": lambda of: {"seeds": {each: of.seeds[each] for each in of.survivors[1:]}},
    "the dropped one's seed too": lambda of: {"seeds": {**of.seeds, of.sharers[3]: "00" * 16}},
    "no key's seed": lambda of: {"keys": {}},
    "too few survivors": lambda of: {"survivors": of.survivors[:2]},
    "survivors out of order": lambda of: {"survivors": of.survivors[::-1]},
    "a survivor that did not share": lambda of: {"sharers": of.sharers[1:]},
    "another roster": lambda of: {"roster": changed(of.roster, 0, commitment="ab" * 32)},
    "a key twice": lambda of: {"roster": changed(of.roster, 3, sealing=of.roster.members[0].keys.sealing)},
}


@pytest.mark.parametrize("change", UNMASKINGS.values(), ids=UNMASKINGS)
def test_an_unmasking_that_does_not_hold(cohort: Cohort, change: Callable[[Unmasking], dict[str, Any]]) -> None:
    good = cohort.unmasking(cohort.reveals(cohort.consents()))
    masking.check_unmasking(good, DOMAIN)
    wrong = good.model_copy(update=change(good))
    with pytest.raises(MaskingError):
        masking.check_unmasking(wrong)
    with pytest.raises(MaskingError):
        cohort.means(wrong)
    assert not list(cohort.folder.glob("mean*"))


def test_an_unmasking_by_keys_that_nobody_signed(cohort: Cohort) -> None:
    good = cohort.unmasking(cohort.reveals(cohort.consents()))
    wrong = good.model_copy(update={"roster": changed(good.roster, 0, samples=1)})
    masking.check_unmasking(wrong)
    with pytest.raises(MaskingError, match="not signed"):
        masking.check_unmasking(wrong, DOMAIN)


def test_secrets_are_fresh_and_in_no_log(cohort: Cohort) -> None:
    one, other = Secrets.new(), Secrets.new()
    values = [*one.model_dump().values(), *other.model_dump().values()]
    assert len(set(values)) == 8
    held = cohort.members[0].held
    assert held is not None
    for text in (repr(one), str(one), f"{one}", repr(held), str(held)):
        assert not any(each in text for each in (*values, *held.masks.values(), *held.keys.values()))
    assert Secrets.model_validate_json(one.model_dump_json()) == one


def test_masks_of_a_pair_are_opposite(cohort: Cohort) -> None:
    by_hospital = {
        each.hospital: masking.masks(each.secrets, cohort.roster, each.hospital, cohort.sharers)
        for each in cohort.members
    }
    signs: dict[bytes, list[int]] = {}
    for marks in by_hospital.values():
        assert marks[0].sign == 1
        for mark in marks[1:]:
            signs.setdefault(mark.key, []).append(mark.sign)
    assert all(sorted(each) == [-1, 1] for each in signs.values())
    assert len(signs) == 6


def test_too_few_survivors_whatever_seeds_there_are(cohort: Cohort) -> None:
    """An aggregator that got at all secrets of two hospitals has no model of the other two that anybody takes."""
    good = cohort.unmasking(cohort.reveals(cohort.consents()))
    few, others = cohort.members[:2], cohort.members[2:]
    wrong = good.model_copy(
        update={
            "survivors": tuple(each.hospital for each in few),
            "seeds": {each.hospital: each.secrets.mask for each in few},
            "keys": {each.hospital: each.secrets.key for each in others},
        }
    )
    with pytest.raises(MaskingError, match="too few"):
        masking.check_unmasking(wrong)
    with pytest.raises(MaskingError, match="too few"):
        masking.reconstruct(cohort.roster, cohort.sharers, wrong.survivors, [], 4.0)
