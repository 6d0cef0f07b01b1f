"""What a hospital's node computes at each stage of a round's masking. Pure functions: what is to be kept between stages
(`Secrets`, `Held`) is handed in again, and everything but `Secrets.new` gives the same for the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from concilia_kit.digests import Digest, JobId
from concilia_kit.masking import pairing, shares
from concilia_kit.masking.errors import MaskingError
from concilia_kit.masking.graph import Graph, graph
from concilia_kit.masking.pairing import Secrets
from concilia_kit.masking.stream import Mask
from concilia_kit.signing import Address, Domain, Statement, signer
from concilia_kit.wire.base import Wire
from concilia_kit.wire.masking import (
    Consent,
    MaskingKeys,
    Parcel,
    Revealed,
    Roster,
    SecureAggregation,
    Share,
    Shares,
    SignedKeys,
    Survivors,
)


class Held(Wire):
    """The shares that a node holds once it took its parcels, its own among them; for its disk.

    `sharers`: who handed out shares, as it was told then: of them its masks are. `masks`, `keys`: by whose secret a
    share is of (this node's neighbours that are sharers, and itself).
    """

    roster: Digest
    sharers: tuple[Address, ...]
    masks: dict[Address, Share]
    keys: dict[Address, Share]

    def __repr__(self) -> str:
        return f"Held({self.roster[:12]}…)"  # shares are for no log

    __str__ = __repr__


def advertise(secrets: Secrets, *, hospital: str, job: JobId, round_: int, base: Digest, samples: int) -> MaskingKeys:
    """KEYS: the keys that the hospital signs (`MaskingKeys.statement`) and sends."""
    return MaskingKeys(
        hospital=hospital,
        job=job,
        round=round_,
        base=base,
        sealing=pairing.public(secrets.sealing_key()),
        masking=pairing.public(secrets.masking_key()),
        commitment=pairing.commitment(secrets.mask),
        samples=samples,
    )


def check_roster(roster: Roster, own: SignedKeys, secure: SecureAggregation, domain: Domain) -> None:
    """SHARES, first: whether a roster may be masked by. Whether its members hold the hospital role is for the ledger,
    which the caller asks (`roster.hospitals`).

    `own`: the keys that this node sent. `secure`: the signed task's. Raises `MaskingError` where own keys are not in it
    unchanged, a signature is not its hospital's, job, round or base of a member are not the own keys', threshold or
    group not the task's, a key is there twice or of low order, members are too few (3, one group) or not in order.
    """
    graph(roster)
    if own not in roster.members:
        raise MaskingError("the roster has not this hospital's keys as they were sent")
    if (roster.threshold, roster.group) != (secure.threshold, secure.group):
        raise MaskingError("the roster's threshold or groups are not the task's")
    about = own.keys.job, own.keys.round, own.keys.base
    for each in roster.members:
        if (each.keys.job, each.keys.round, each.keys.base) != about:
            raise MaskingError(f"the keys of {each.keys.hospital} are of another round")
        pairing.check_points(each.keys)
        if not is_signed(each.keys.statement(), each.keys.hospital, each.signature, domain):
            raise MaskingError(f"the keys of {each.keys.hospital} are not signed by it")
    check_apart(roster)


def check_apart(roster: Roster) -> None:
    """Raises `MaskingError` where a key or a commitment is there twice: whoever copies another's could have its seed
    revealed in its own name."""
    keys = [key for each in roster.members for key in (each.keys.sealing, each.keys.masking, each.keys.commitment)]
    if len(set(keys)) != len(keys):
        raise MaskingError("the roster has a key twice")


def is_signed(statement: Statement, hospital: str, signature: str, domain: Domain) -> bool:
    """Whether a hospital signed a statement."""
    try:
        return signer(statement, domain, signature) == hospital
    except ValueError:
        return False


def share(secrets: Secrets, roster: Roster, hospital: str) -> Shares:
    """SHARES, second: both secrets split among `hospital`'s holders, each one's shares sealed to it.

    Call `check_roster` first. The same secrets and roster give the same bytes. Raises `MaskingError` where the roster
    has not this hospital with these secrets.
    """
    its, own = _own(secrets, roster, hospital)
    random = secrets.random(its.digest)
    masks, keys = _split(secrets, its, own, random)
    sealing = secrets.sealing_key()
    parcels = []
    for holder in sorted(its.neighbours[own]):
        to = roster.members[holder].keys
        content = masks[holder + 1] + keys[holder + 1]
        sealed = pairing.seal(sealing, to.sealing, its.digest, pairing.nonce(random), content)
        parcels.append(Parcel(sender=hospital, recipient=to.hospital, sealed=sealed))
    return Shares(roster=its.digest, parcels=tuple(parcels))


def check_shares(roster: Roster, hospital: str, given: Shares) -> None:
    """For the aggregator: raises `MaskingError` where these are not one parcel from `hospital` to each of its
    neighbours, in the roster's order, of this roster."""
    its = graph(roster)
    own = _member(its, hospital)
    expected = [(hospital, roster.hospitals[each]) for each in sorted(its.neighbours[own])]
    if given.roster != its.digest or [(each.sender, each.recipient) for each in given.parcels] != expected:
        raise MaskingError(f"the shares of {hospital} are not one parcel to each of its neighbours by this roster")


def check_sharers(roster: Roster, hospital: str, sharers: Sequence[str]) -> None:
    """Raises `MaskingError` where sharers are not members in the roster's order, `hospital` is none of them, or they
    are too few (`Graph.is_missing`): then nothing is to be masked."""
    its = graph(roster)
    check_members(its, sharers)
    if hospital not in sharers:
        raise MaskingError("this hospital is not among those that handed out shares")
    if its.is_missing(sharers):
        raise MaskingError("too few handed out shares")


def check_members(its: Graph, hospitals: Sequence[str]) -> None:
    """Raises `MaskingError` where these are not members in the roster's order, each once."""
    places = [_member(its, each) for each in hospitals]
    if any(before >= after for before, after in pairwise(places)):
        raise MaskingError("hospitals are not in the roster's order, each once")


def open_parcels(
    secrets: Secrets, roster: Roster, hospital: str, sharers: Sequence[str], parcels: Iterable[Parcel]
) -> Held:
    """INPUTS, before: what this node holds from now on. `parcels` are `MaskingView.parcels`: one of each neighbour that
    is a sharer, in any order.

    Raises `MaskingError` as `check_sharers` does, and where a parcel is missing, twice, of or for somebody else, or
    does not open.
    """
    its, own = _own(secrets, roster, hospital)
    check_sharers(roster, hospital, sharers)
    senders = [roster.hospitals[each] for each in sorted(its.neighbours[own] & {its.index[each] for each in sharers})]
    given = list(parcels)
    if sorted(each.sender for each in given) != sorted(senders) or any(each.recipient != hospital for each in given):
        raise MaskingError("the parcels are not one of each neighbour that handed out shares")
    masks, keys = _split(secrets, its, own, secrets.random(its.digest))
    held_masks, held_keys = {hospital: masks[own + 1].hex()}, {hospital: keys[own + 1].hex()}
    sealing = secrets.sealing_key()
    for each in given:
        of = roster.members[its.index[each.sender]].keys
        mask, key = pairing.open_parcel(sealing, of.sealing, its.digest, each.sealed)
        held_masks[each.sender], held_keys[each.sender] = mask.hex(), key.hex()
    return Held(roster=its.digest, sharers=tuple(sharers), masks=held_masks, keys=held_keys)


def masks(secrets: Secrets, roster: Roster, hospital: str, sharers: Sequence[str]) -> tuple[Mask, ...]:
    """INPUTS: what goes onto this hospital's words (`writing.write`): its self-mask, and one mask with each neighbour
    that is a sharer, added by the one of lower index and subtracted by the other.

    Raises `MaskingError` as `check_sharers` does, and where the roster has not this hospital with these secrets.
    """
    its, own = _own(secrets, roster, hospital)
    check_sharers(roster, hospital, sharers)
    key = secrets.masking_key()
    found = [Mask(pairing.self_key(secrets.mask, its.digest), 1)]
    for other in sorted(its.neighbours[own] & {its.index[each] for each in sharers}):
        pair = pairing.pair_key(key, roster.members[other].keys.masking, its.digest)
        found.append(Mask(pair, 1 if own < other else -1))
    return tuple(found)


def check_survivors(survivors: Survivors, roster: Roster, hospital: str, held: Held) -> None:
    """CONSENT: whether `survivors` may be signed. That the ledger's accepted updates are exactly these, each of this
    roster, is for the caller to see; and that it signed no other one of this round.

    Raises `MaskingError` where the roster is another than was masked by, job or round are not the roster's, survivors
    and dropped ones are not the sharers (each in one of the two, in the roster's order), `hospital` is no survivor, or
    survivors are too few (`Graph.is_missing`, `Graph.gives_away`).
    """
    its = graph(roster)
    if not its.digest == held.roster == survivors.roster:
        raise MaskingError("another roster than was masked by")
    about = roster.members[_member(its, hospital)].keys
    if (survivors.job, survivors.round) != (about.job, about.round):
        raise MaskingError("survivors are of another round")
    check_members(its, survivors.survivors)
    check_members(its, survivors.dropped)
    if sorted((*survivors.survivors, *survivors.dropped)) != sorted(held.sharers):
        raise MaskingError("survivors and dropped ones are not those that handed out shares")
    if hospital not in survivors.survivors:
        raise MaskingError("this hospital is not among the survivors")
    if its.is_missing(survivors.survivors) or its.gives_away(survivors.survivors):
        raise MaskingError("the survivors are too few")


def check_consents(
    consents: Iterable[Consent], survivors: Survivors, roster: Roster, hospital: str, domain: Domain
) -> None:
    """REVEAL, first: raises `MaskingError` where fewer than are needed of this hospital's own group signed this very
    statement. Consents of others than survivors, wrong ones, and second ones of a hospital do not count."""
    its = graph(roster)
    group = its.group_of[_member(its, hospital)]
    statement = survivors.statement()
    here = {each for each in survivors.survivors if its.group_of[_member(its, each)] == group}
    agreed: set[str] = set()
    for each in consents:
        if each.hospital not in here or each.hospital in agreed:
            continue
        if is_signed(statement, each.hospital, each.signature, domain):
            agreed.add(each.hospital)
    if len(agreed) < its.needed[group]:
        raise MaskingError(f"{len(agreed)} agreed to who is in the sum, {its.needed[group]} are needed")


def reveal(held: Held, roster: Roster, hospital: str, survivors: Survivors) -> Revealed:
    """REVEAL, second: shares of survivors' self-mask seeds, and of dropped ones' masking key seeds, of those that this
    node holds shares of. Never both of one.

    Call `check_consents` first. Raises `MaskingError` as `check_survivors` does.
    """
    check_survivors(survivors, roster, hospital, held)
    return Revealed(
        hospital=hospital,
        roster=held.roster,
        seeds={each: held.masks[each] for each in survivors.survivors if each in held.masks},
        keys={each: held.keys[each] for each in survivors.dropped if each in held.keys},
    )


def _member(its: Graph, hospital: str) -> int:
    found = its.index.get(hospital)
    if found is None:
        raise MaskingError(f"{hospital} is not in the roster")
    return found


def _own(secrets: Secrets, roster: Roster, hospital: str) -> tuple[Graph, int]:
    its = graph(roster)
    own = _member(its, hospital)
    keys = roster.members[own].keys
    made = advertise(secrets, hospital=hospital, job=keys.job, round_=keys.round, base=keys.base, samples=keys.samples)
    if made != keys:
        raise MaskingError("the roster has other keys of this hospital than its secrets are of")
    return its, own


def _split(secrets: Secrets, its: Graph, own: int, random: shares.Random) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Shares of both secrets by place."""
    places = [each + 1 for each in sorted(its.holders(own))]
    threshold = its.thresholds[own]
    return (
        shares.split(bytes.fromhex(secrets.mask), threshold, places, random),
        shares.split(bytes.fromhex(secrets.key), threshold, places, random),
    )
