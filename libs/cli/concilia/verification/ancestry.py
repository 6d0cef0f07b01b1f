"""From a model back to all that made it: its rounds, whose updates went in and whose did not, and where it began. Pure.

It tells what the ledger has, and what of the rest agrees with it. Signatures, files and folding are `examine`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from concilia_aggregator.verification.commitment import unfold
from concilia_aggregator.verification.lineage import BrokenLineage, Lineage, RecordedUpdate, Round, rebuild
from concilia_kit import digests
from concilia_kit.digests import Digest, JobId
from concilia_kit.signing import Domain
from concilia_kit.wire.base import Wire
from concilia_kit.wire.chain import LedgerUpdate, Reason
from concilia_kit.wire.jobs import JobManifest, Recording

from concilia.verification.evidence import Evidence, ledger_events


class Contributor(Wire):
    """An update of a round, and whose it is; `reason` says why it was left out, None where it counts."""

    hospital: str
    site: str | None
    update: Digest
    samples: int
    transaction: str
    block: int
    reason: str | None


class Generation(Wire):
    """A round on the way to the model. `unseen` updates are under `root`, and nobody told what they are."""

    round: int
    base: Digest
    model: Digest | None
    recording: Recording
    root: Digest | None
    contributors: tuple[Contributor, ...]
    rejected: tuple[Contributor, ...]
    unseen: int


class Beginning(Wire):
    """The initial weights, and in words where they came from."""

    digest: Digest
    origin: str | None


class Terms(Wire):
    """What the job was to be, by its manifest. `fits`: the manifest's digest is the job's id on the ledger.

    `hyperparameters` is the digest of the manifest's `spec` in canonical JSON (RFC 8785).
    """

    fits: bool
    code: str
    hyperparameters: Digest
    created_by: str
    created_at: str


class Ancestry(Wire):
    """A model's lineage. `faults` are what does not agree, `notes` what could not be told.

    Rounds that were given up have no `model`; they are told because hospitals' updates were in them.
    """

    model: Digest
    job: JobId
    ledger: Domain
    published: bool
    initial: Beginning | None
    terms: Terms | None
    rounds: tuple[Generation, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...]


class Known(NamedTuple):
    """What the ledger does not say, as far as anybody told it: sites by hospital, origin of the initial weights."""

    sites: Mapping[str, str]
    origin: str | None = None
    initial: str | None = None
    manifest: JobManifest | None = None
    notes: tuple[str, ...] = ()


def trace(model: str, evidence: Evidence, known: Known) -> Ancestry:
    """The lineage of a model that a job made: of its published one, or of any round's."""
    faults: list[str] = []
    notes = [*known.notes]
    lineage = _lineage(evidence, faults)
    rounds = list(_until(model, lineage))
    if not rounds:
        faults.append(f"the ledger has no round of job {evidence.job} that made this model")
    elif lineage.published is None:
        notes.append("the job has published no model")
    elif lineage.published != model:
        notes.append(f"the job published a later model: {lineage.published}")
    initial = lineage.rounds[0].base if lineage.rounds else None
    if None not in (initial, known.initial) and initial != known.initial:
        faults.append(f"round 1 starts from {initial} on the ledger, the model service says {known.initial}")
    if known.origin is None and initial is not None:
        notes.append("where the initial weights came from was not told")
    if any(item.commitment and not item.updates for item in rounds):
        notes.append("updates of Merkle rounds are not on the chain, and nobody told them: give their leaves")
    return Ancestry(
        model=model,
        job=evidence.job,
        ledger=evidence.domain,
        published=lineage.published == model,
        initial=None if initial is None else Beginning(digest=initial, origin=known.origin),
        terms=_terms(evidence.job, initial, known.manifest, faults, notes),
        rounds=tuple(_generation(item, known.sites) for item in rounds),
        faults=tuple(faults),
        notes=tuple(notes),
    )


def _lineage(evidence: Evidence, faults: list[str]) -> Lineage:
    try:
        lineage = rebuild(ledger_events(evidence))
    except BrokenLineage as broken:
        faults.append(str(broken))
        return Lineage()
    leaves: dict[int, list[LedgerUpdate]] = defaultdict(list)
    for leaf in evidence.leaves or ():
        made = LedgerUpdate(
            update=leaf.update,
            signature=leaf.signature,
            metrics=None,
            reason=None,
            transaction="",
            block=0,
            index=leaf.index,
        )
        leaves[leaf.update.round].append(made)
    for item in lineage.rounds:
        if item.commitment is not None and leaves[item.number]:
            found = unfold(evidence.job, item, leaves[item.number], evidence.domain)
            faults += [f"round {item.number} · {fault.hospital or '–'}: {fault.what}" for fault in found]
    return lineage


def _until(model: str, lineage: Lineage) -> Iterator[Round]:
    if model in {item.global_digest for item in lineage.rounds}:
        for item in lineage.rounds:
            yield item
            if item.global_digest == model:
                return


def _terms(
    job: str, initial: str | None, manifest: JobManifest | None, faults: list[str], notes: list[str]
) -> Terms | None:
    if manifest is None:
        notes.append("the job's manifest was not told: nothing binds code and hyperparameters to it")
        return None
    fits = manifest.id() == job
    if not fits:
        faults.append(f"the manifest is that of job {manifest.id()}")
    if initial is not None and manifest.spec.get("initial") != initial:
        faults.append("the manifest asks for other initial weights than round 1 starts from")
    return Terms(
        fits=fits,
        code=manifest.code,
        hyperparameters=digests.of_json(manifest.spec),
        created_by=manifest.created_by,
        created_at=manifest.created_at,
    )


def _generation(item: Round, sites: Mapping[str, str]) -> Generation:
    commitment = item.commitment
    told = [_contributor(each, sites) for each in item.updates.values()]
    return Generation(
        round=item.number,
        base=item.base,
        model=item.global_digest,
        recording=Recording.MERKLE if item.merkle or commitment else Recording.EACH,
        root=commitment.root if commitment else None,
        contributors=tuple(each for each in told if each.reason is None),
        rejected=tuple(each for each in told if each.reason is not None),
        unseen=max(0, item.submitted - len(told)),
    )


def _contributor(update: RecordedUpdate, sites: Mapping[str, str]) -> Contributor:
    known = update.reason in list(Reason)
    reason = Reason(update.reason).name.lower() if known else str(update.reason)
    return Contributor(
        hospital=update.hospital,
        site=sites.get(update.hospital),
        update=update.digest,
        samples=update.samples,
        transaction=update.transaction,
        block=update.block,
        reason=reason if update.reason else None,
    )
