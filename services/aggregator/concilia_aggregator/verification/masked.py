"""What is checked of a secure round beside what is checked of any: that the secrets in its model's file are those of
its hospitals' keys, of just the updates that the ledger has, and that each hospital signed to be masked by these keys.

Folding again shows what the sum is; this, that nobody put it together otherwise than its hospitals agreed to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from concilia_kit.digests import Contribution
from concilia_kit.masking import MaskingError, check_unmasking, pairing
from concilia_kit.masking.participant import is_signed
from concilia_kit.signing import Domain
from concilia_kit.wire.chain import LedgerUpdate
from concilia_kit.wire.masking import Unmasking

from concilia_aggregator.verification.lineage import Round

Fault = tuple[str | None, str]
"""Whose fault it is, where it is one hospital's, and what."""


def faults(
    masking: Unmasking | None,
    job: str,
    item: Round,
    contributions: Sequence[Contribution],
    told: Mapping[str, LedgerUpdate | None],
    domain: Domain,
) -> Iterator[Fault]:
    """What is wrong with how a round was unmasked, by its model's file. `told`: each contribution's signed update, as
    far as it is known. Of a round that was not secure nothing is, unless its updates say that they are masked."""
    rosters = {name: _roster(update) for name, update in told.items()}
    if masking is None:
        if any(rosters.values()):
            yield None, "its updates are masked, and its file does not say how they became a sum"
        return
    before = 0
    for fault in _faults(masking, job, item, contributions, domain):
        before += 1
        yield fault
    digest = masking.roster.digest()
    for name, update in told.items():
        if update is not None and update.metrics is not None and rosters[name] != digest:
            yield name, "it signed to be masked by another roster than its round was unmasked by"
    try:
        check_unmasking(masking)
    except MaskingError as error:
        if not before:
            yield None, f"its sum was not unmasked by the rules: {error}"


def _faults(
    masking: Unmasking, job: str, item: Round, contributions: Sequence[Contribution], domain: Domain
) -> Iterator[Fault]:
    if [*masking.survivors] != [each.hospital for each in contributions]:
        yield None, "it was unmasked as the sum of others than its contributions"
    members = {each.keys.hospital: each for each in masking.roster.members}
    for name, signed in members.items():
        keys = signed.keys
        if (keys.job, keys.round, keys.base) != (job, item.number, item.base):
            yield name, "the keys of its masks are of another job, round or base"
        if not is_signed(keys.statement(), name, signed.signature, domain):
            yield name, "the keys of its masks are not signed by it"
    for each in contributions:
        if each.hospital in members and each.samples > members[each.hospital].keys.samples:
            yield each.hospital, "it weighs more samples than the keys of its masks say"
    for name, seed in masking.seeds.items():
        if name in members and pairing.commitment(seed) != members[name].keys.commitment:
            yield name, "the seed that its mask was taken off by is not that of its commitment"
    for name, seed in masking.keys.items():
        if name in members and pairing.public(pairing.masking_key(seed)) != members[name].keys.masking:
            yield name, "the seed of its masking key is not that of its public key"


def _roster(update: LedgerUpdate | None) -> str | None:
    """The roster that an update's signed metrics name."""
    if update is None or update.metrics is None or update.metrics.masked is None:
        return None
    return update.metrics.masked.roster
