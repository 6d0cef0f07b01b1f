"""Whether a masked update may be added up: pure checks that say nothing of its values, which look like noise.

Rules, in the order they apply: the hospital is one of those that masks are made for, and its signed metrics name the
round's roster (and, where the job bounds changes, attest no longer one); the file's digest, exactly the base's floating
tensors in their shapes as whole numbers of 32 bits, and no more samples than its keys said. That no value is beyond
the bound, and no change too long, is each node's own word; a robust strategy over groups' sums is what bounds the harm
of one that lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from concilia_kit.masking import writing
from concilia_kit.sealing import Keyring
from concilia_kit.storedfile import digest_of
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import LedgerUpdate, Reason
from concilia_kit.wire.masking import SecureAggregation

from concilia_aggregator.masking.rules import Room, graph_of, roster_of


@dataclass(frozen=True, slots=True)
class Sharers:
    """Whose masked updates a round takes: by hospital, how many samples each may weigh at most. `roster`: the digest
    that their metrics and files must name; `norm`: the longest change that they must attest, where there is one."""

    roster: str
    samples: Mapping[str, int]
    norm: float | None = None

    @classmethod
    def of(cls, room: Room, secure: SecureAggregation) -> Sharers:
        """Those of a room that knows them; once it is settled who is in the sum, no other. Raises `ValueError`."""
        roster = roster_of(room)
        samples = {each.keys.hospital: each.keys.samples for each in roster.members}
        taken = room.sharers if room.survivors is None else room.survivors.survivors
        return cls(graph_of(roster).digest, {each: samples[each] for each in taken}, secure.norm)

    def fault(self, item: LedgerUpdate) -> Reason | None:
        """Why an update is left out by what its hospital signed, whatever is in its file."""
        told = None if item.metrics is None else item.metrics.masked
        if item.update.hospital not in self.samples or told is None or told.roster != self.roster:
            return Reason.MALFORMED_FILE
        if self.norm is not None and (told.norm is None or told.norm > self.norm):
            return Reason.NORM_TOO_LARGE
        return None


def screen(
    update: TensorFile, base: TensorFile, samples: int, most: int | None, roster: str, digest: str, keys: Keyring
) -> Reason | None:
    """Why a masked update's file is left out, or None where it is fine. `most`: samples that its keys said. Reads the
    file once."""
    if digest_of(update.path, keys) != digest:
        return Reason.DIGEST_MISMATCH
    if writing.roster_of(update) != roster or not writing.masked_like(update, base):
        return Reason.MALFORMED_FILE
    return None if most is not None and 0 < samples <= most else Reason.SAMPLE_COUNT
