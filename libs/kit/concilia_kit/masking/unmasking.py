"""What takes a round's masks off: for the aggregator from what nodes revealed, for a verifier from a model's file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from concilia_kit.masking import pairing, shares
from concilia_kit.masking.errors import MaskingError
from concilia_kit.masking.graph import Graph, graph
from concilia_kit.masking.participant import check_apart, check_members, is_signed
from concilia_kit.masking.stream import Mask
from concilia_kit.signing import Domain
from concilia_kit.wire.masking import Revealed, Roster, Unmasking


def is_enough(roster: Roster, sharers: Sequence[str], survivors: Sequence[str], revealers: Iterable[str]) -> bool:
    """Whether `reconstruct` has shares enough of each secret that it needs once these hospitals revealed theirs."""
    its = graph(roster)
    there = {its.index[each] for each in revealers if each in its.index} & {its.index[each] for each in sharers}
    return not its.is_missing(survivors) and all(
        len(its.holders(member) & there) >= its.thresholds[member] for member in (its.index[each] for each in sharers)
    )


def reconstruct(
    roster: Roster, sharers: Sequence[str], survivors: Sequence[str], revealed: Iterable[Revealed], bound: float
) -> Unmasking:
    """The seeds that unmask a sum: of survivors the self-mask's, of the sharers that dropped out the masking key's.

    `bound` is the job's (`SecureAggregation.bound`). A hospital that reveals a wrong share is found by the commitments
    and public keys, and left out as far as others are enough. Raises `MaskingError` where survivors are too few or no
    sharers, shares are too few, of another roster or of both secrets of one, or no seed fits.
    """
    its = graph(roster)
    check_members(its, sharers)
    _check_survivors(its, sharers, survivors)
    hospitals, sharing, alive = roster.hospitals, frozenset(sharers), frozenset(survivors)
    seeds: dict[str, dict[int, bytes]] = {each: {} for each in survivors}
    keys: dict[str, dict[int, bytes]] = {each: {} for each in sharers if each not in alive}
    for given in revealed:
        _check_revealed(its, hospitals, sharing, alive, given)
        place = its.index[given.hospital] + 1
        for told, kept in ((given.seeds, seeds), (given.keys, keys)):
            for of, value in told.items():
                kept[of][place] = bytes.fromhex(value)

    members = {each.keys.hospital: each.keys for each in roster.members}

    def combined(of: str, given: Mapping[int, bytes], told: str, says: Callable[[str], str]) -> str:
        return _combined(of, given, its.thresholds[its.index[of]], told, says)

    return Unmasking(
        roster=roster,
        sharers=tuple(sharers),
        survivors=tuple(survivors),
        seeds={of: combined(of, each, members[of].commitment, pairing.commitment) for of, each in seeds.items()},
        keys={of: combined(of, each, members[of].masking, _public) for of, each in keys.items()},
        bound=bound,
    )


def check_revealed(roster: Roster, sharers: Sequence[str], survivors: Sequence[str], given: Revealed) -> None:
    """For the aggregator: raises `MaskingError` where these are not exactly a sharer's shares of its neighbours' and
    its own secrets: of survivors the self-mask's, of the other sharers the masking key's. Whether they are right only
    `reconstruct` can tell."""
    _check_revealed(graph(roster), roster.hospitals, frozenset(sharers), frozenset(survivors), given)


def _check_revealed(
    its: Graph, hospitals: Sequence[str], sharers: frozenset[str], survivors: frozenset[str], given: Revealed
) -> None:
    if given.roster != its.digest or given.hospital not in sharers:
        raise MaskingError(f"what {given.hospital} revealed is not of this roster")
    of = {hospitals[each] for each in its.holders(its.index[given.hospital])} & sharers
    if set(given.seeds) != of & survivors or set(given.keys) != of - survivors:
        raise MaskingError(f"what {given.hospital} revealed is not of those whose shares it holds")


def check_unmasking(unmasking: Unmasking, domain: Domain | None = None) -> None:
    """Raises `MaskingError` where members are not in order, survivors or sharers are too few or no members, seeds are
    not exactly those of survivors and dropped ones, a seed is not its commitment's, or a key's seed not its public
    key's; with `domain` also where a signature of keys is not its hospital's."""
    its = graph(unmasking.roster)
    check_members(its, unmasking.sharers)
    _check_survivors(its, unmasking.sharers, unmasking.survivors)
    check_apart(unmasking.roster)
    if set(unmasking.seeds) != set(unmasking.survivors):
        raise MaskingError("the seeds are not the survivors'")
    if set(unmasking.keys) != set(unmasking.sharers) - set(unmasking.survivors):
        raise MaskingError("the seeds of keys are not those of who dropped out")
    for each in unmasking.roster.members:
        hospital, keys = each.keys.hospital, each.keys
        seed, key = unmasking.seeds.get(hospital), unmasking.keys.get(hospital)
        if seed is not None and pairing.commitment(seed) != keys.commitment:
            raise MaskingError(f"the seed of {hospital} is not of its commitment")
        if key is not None and _public(key) != keys.masking:
            raise MaskingError(f"the seed of the key of {hospital} is not of its public key")
        if domain is not None and not is_signed(keys.statement(), hospital, each.signature, domain):
            raise MaskingError(f"the keys of {hospital} are not signed by it")


def total_masks(unmasking: Unmasking, group: int) -> tuple[Mask, ...]:
    """What the sum of a group's masked words has on it, to be taken off: survivors' self-masks, and masks between
    survivors and dropped ones. Does not check (`check_unmasking`)."""
    roster, its = unmasking.roster, graph(unmasking.roster)
    survivors = {its.index[each] for each in unmasking.survivors}
    here = [each for each in unmasking.survivors if its.group_of[its.index[each]] == group]
    found = [Mask(pairing.self_key(unmasking.seeds[each], its.digest), 1) for each in here]
    for hospital, seed in unmasking.keys.items():
        gone, key = its.index[hospital], pairing.masking_key(seed)
        if its.group_of[gone] != group:
            continue
        for other in sorted(its.neighbours[gone] & survivors):
            pair = pairing.pair_key(key, roster.members[other].keys.masking, its.digest)
            found.append(Mask(pair, 1 if other < gone else -1))  # as the survivor put it on
    return tuple(found)


def _check_survivors(its: Graph, sharers: Collection[str], survivors: Sequence[str]) -> None:
    check_members(its, survivors)
    if not set(survivors) <= set(sharers):
        raise MaskingError("a survivor handed out no shares")
    if its.is_missing(survivors):
        raise MaskingError("the survivors are too few")


def _combined(of: str, given: Mapping[int, bytes], threshold: int, told: str, says: Callable[[str], str]) -> str:
    """The seed of these shares, of which `told` was said beforehand. Where it is not, other shares are tried: each in
    turn is begun with."""
    places = sorted(given)
    if len(places) < threshold:
        raise MaskingError(f"{len(places)} shares of a seed of {of} are too few, {threshold} are needed")
    tries = len(places) if len(places) > threshold else 1
    for first in range(tries):
        chosen = {place: given[place] for place in (*places[first:], *places[:first])[:threshold]}
        try:
            seed = shares.combine(chosen, threshold).hex()
        except MaskingError:
            continue
        if says(seed) == told:
            return seed
    raise MaskingError(f"the shares of a seed of {of} do not fit what it advertised")


def _public(seed: str) -> str:
    return pairing.public(pairing.masking_key(seed))
