"""What a verification needs of the ledger, wherever it came from: a node, the services, or a bundle.

`examine` is the one place where it is judged. It trusts no part of it: every value is checked against another, and what
nothing here can check is said in the verdict's notes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from concilia_aggregator.verification import roles
from concilia_aggregator.verification.verifier import ArtifactSource, Folds, Place, Progress, Verifier
from concilia_kit.digests import JobId
from concilia_kit.signing import Domain
from concilia_kit.wire.base import Wire
from concilia_kit.wire.chain import EventName, LedgerEvent, LedgerUpdate, Reason
from concilia_kit.wire.training import UpdateMetrics
from concilia_kit.wire.verification import Finding, Verdict
from pydantic import Field, ValidationError

from concilia.connection import UsageError
from concilia.verification import decoding
from concilia.verification.blocks import Blocks
from concilia.verification.blocks import check as check_blocks
from concilia.verification.decoding import ChainEvent
from concilia.verification.leaves import Leaf, Leaves

_JOB_EVENTS = frozenset(EventName)
_NO_FILE = frozenset({Reason.ARTIFACT_MISSING, Reason.DIGEST_MISMATCH})


class SignedUpdate(Wire):
    """What hospitals handed in beside what the ledger's event says. `wallet`: a contract wallet said that it signed."""

    round: int = Field(ge=0, lt=2**32)
    hospital: str = Field(pattern=decoding.ADDRESS)
    signature: str = Field(max_length=2100)
    metrics: UpdateMetrics | None = None
    wallet: bool = False


class NamedUpdate(NamedTuple):
    """An update that the ledger records, or that is said to be under its commitment."""

    round: int
    hospital: str
    digest: str
    samples: int


class Evidence(Wire):
    """A contract's events up to a job's end, and what goes with the job's updates.

    `leaves` are the updates of Merkle rounds, which no event tells, None where nobody told them. `calldata` is by
    transaction, 0x-prefixed hexadecimal; `blocks` are the headers and receipts that show the events to be those of a
    chain. Both are None where the services told the events.
    """

    origin: Literal["node", "services"]
    domain: Domain
    job: JobId
    events: tuple[ChainEvent, ...]
    updates: tuple[SignedUpdate, ...]
    leaves: tuple[Leaf, ...] | None = None
    calldata: dict[str, str] | None = None
    blocks: Blocks | None = None

    def of_job(self) -> Iterator[ChainEvent]:
        """The job's own events."""
        return (event for event in self.events if event.arguments.get("job") == self.job)

    def commitments(self) -> dict[int, ChainEvent]:
        """The event that commits a Merkle round's updates, by round."""
        return {event.round: event for event in self.of_job() if event.name == EventName.UPDATES_COMMITTED}

    def named(self) -> Iterator[NamedUpdate]:
        """The job's updates, recorded and committed ones."""
        for event in self.of_job():
            if event.name == EventName.UPDATE_RECORDED:
                samples = event.arguments.get("samples")
                counted = samples if isinstance(samples, int) else 0
                yield NamedUpdate(event.round, str(event.hospital), str(event.arguments.get("digest")), counted)
        for leaf in self.leaves or ():
            update = leaf.update
            yield NamedUpdate(update.round, update.hospital, update.digest, update.samples)

    def with_leaves(self, told: Leaves) -> Evidence:
        """The same with other leaves. Raises `UsageError` where they are not this job's."""
        if (told.job, told.domain) != (self.job, self.domain):
            raise UsageError(
                f"these are leaves of job {told.job} on contract {told.domain.contract}, chain {told.domain.chain_id}"
            )
        return self.model_copy(update={"leaves": told.leaves})

    def leaves_document(self) -> Leaves | None:
        """The leaves as a document of their own."""
        return None if self.leaves is None else Leaves(domain=self.domain, job=self.job, leaves=self.leaves)

    def artifacts(self) -> list[str]:
        """Digests of the files that the job's events and leaves name: sorted, each once."""
        told = (event.arguments.get(key) for event in self.of_job() for key in ("base", "digest", "globalDigest"))
        return sorted(
            {digest for digest in (*told, *(each.digest for each in self.named())) if isinstance(digest, str)}
        )

    def models(self) -> frozenset[str]:
        """Digests of the job's models, the initial one included: the files whose metadata count."""
        told = (event.arguments.get(key) for event in self.of_job() for key in ("base", "globalDigest"))
        return frozenset(digest for digest in told if isinstance(digest, str))

    def without_artifact(self) -> frozenset[str]:
        """Digests that no sound file need have: of updates that were rejected for having none."""
        rejected = {
            (event.round, event.hospital)
            for event in self.of_job()
            if event.name == EventName.UPDATE_REJECTED and event.arguments.get("reason") in _NO_FILE
        }
        return frozenset(each.digest for each in self.named() if (each.round, each.hospital) in rejected)


def examine(
    evidence: Evidence,
    source: ArtifactSource | None,
    progress: Progress,
    folder: Path | None = None,
    *,
    offline: bool = False,
    folds: Folds | None = None,
) -> Verdict:
    """The verdict over a job. `source` is None where no file is at hand, `offline` says that the evidence came in a
    bundle and nobody was asked. Raises what `Verifier.verify` raises."""
    findings: list[Finding] = []
    sound = list(_sound(evidence.events, findings))
    trusted = evidence.model_copy(update={"events": tuple(sound)})
    shown = False
    if evidence.blocks is not None:
        shown = check_blocks(evidence.blocks, evidence.domain.contract, trusted.events, findings)
    _calldata(trusted, findings)
    signed = [*_signed(trusted, findings), *_committed(trusted, findings)]
    wallets = {(item.round, item.hospital) for item in evidence.updates if item.wallet}
    leaf_wallets = {(leaf.update.round, leaf.update.hospital) for leaf in evidence.leaves or () if leaf.wallet}
    believed: set[Place] = set()
    # A wallet's answer is the node's word. In a bundle it counts where the events are shown to be those of a chain and
    # the contract had asked the wallet before it emitted them; about a leaf it asks for `UpdateProven` only.
    if evidence.origin == "node" and (shown or not offline):
        believed = wallets | (leaf_wallets & _proven(trusted) if offline else leaf_wallets)
    verdict = Verifier(evidence.domain, source, progress, folder, folds).verify(
        evidence.job, ledger_events(trusted), signed, roles=roles.history(trusted.events), wallets=believed
    )
    merged = (*findings, *verdict.findings)
    notes = tuple(_notes(evidence, source, len(wallets | leaf_wallets), offline))
    return verdict.model_copy(update={"findings": merged, "ok": not merged, "notes": notes})


def _sound(events: Iterable[ChainEvent], findings: list[Finding]) -> Iterator[ChainEvent]:
    last = (-1, -1)
    for event in events:
        if (fault := decoding.fault(event.name, event.arguments)) is not None:
            findings.append(event.finding(f"an event in block {event.block} is malformed: {fault}"))
        elif event.place <= last:
            findings.append(event.finding(f"{event.name} in block {event.block} is not in the order of the chain"))
        else:
            last = event.place
            yield event


def ledger_events(evidence: Evidence) -> list[LedgerEvent]:
    """The job's events as the aggregator's verifier takes them."""
    return [
        LedgerEvent(
            name=EventName(event.name),
            job=evidence.job,
            round=event.round,
            block=event.block,
            log_index=event.log_index,
            transaction=event.transaction,
            arguments=event.arguments,
        )
        for event in evidence.of_job()
        if event.name in _JOB_EVENTS
    ]


def _proven(evidence: Evidence) -> set[Place]:
    """Leaves of which the contract emitted that they are committed and signed, a wallet being asked then."""
    leaves = {(leaf.update.round, leaf.index): leaf.update for leaf in evidence.leaves or ()}
    proven = set()
    for event in evidence.of_job():
        if event.name != EventName.UPDATE_PROVEN:
            continue
        told = event.arguments
        update = leaves.get((event.round, int(told["index"])))
        said = (event.hospital, told["digest"], told["samples"], told["metrics"])
        if update is not None and said == (update.hospital, update.digest, update.samples, update.metrics):
            proven.add((event.round, update.hospital))
    return proven


def _calldata(evidence: Evidence, findings: list[Finding]) -> None:
    """Each recorded update must stand in its transaction's calldata as its event and its signature say."""
    if evidence.calldata is None:
        return
    signatures = {(item.round, item.hospital): item.signature for item in evidence.updates}
    bases: dict[int, str] = {}
    read, carried = "", frozenset[decoding.Submission]()
    for event in evidence.of_job():
        if event.name == EventName.ROUND_OPENED:
            bases[event.round] = str(event.arguments["base"])
        if event.name != EventName.UPDATE_RECORDED:
            continue
        told = event.arguments
        expected = decoding.Submission(
            evidence.job,
            event.round,
            bases.get(event.round, ""),
            str(told["hospital"]),
            str(told["digest"]),
            int(told["samples"]),
            str(told["metrics"]),
            signatures.get((event.round, str(told["hospital"])), ""),
        )
        if event.transaction != read:
            read = event.transaction
            try:
                carried = frozenset(decoding.submissions(bytes.fromhex(evidence.calldata[read].removeprefix("0x"))))
            except (KeyError, ValueError):
                carried = frozenset()  # missing, or no hexadecimal
        if expected not in carried:
            findings.append(event.finding("its transaction's calldata does not carry this update and signature"))


def _signed(evidence: Evidence, findings: list[Finding]) -> Iterator[LedgerUpdate]:
    recorded = {
        (event.round, event.hospital): event for event in evidence.of_job() if event.name == EventName.UPDATE_RECORDED
    }
    opened = decoding.bases(evidence.of_job())
    for item in evidence.updates:
        event = recorded.pop((item.round, item.hospital), None)
        if event is None:
            what = "there is a signature of an update that the ledger does not have, or a second one"
            findings.append(Finding(round=item.round, hospital=item.hospital, digest=None, what=what))
            continue
        try:
            yield LedgerUpdate(
                update=decoding.update_of(event, opened),
                signature=item.signature,
                metrics=item.metrics,
                reason=None,
                transaction=event.transaction,
                block=event.block,
            )
        except ValidationError:
            findings.append(event.finding("its signature is malformed"))


def _committed(evidence: Evidence, findings: list[Finding]) -> Iterator[LedgerUpdate]:
    commitments = evidence.commitments()
    for leaf in evidence.leaves or ():
        event = commitments.get(leaf.update.round)
        if event is None:
            what = "there is a leaf of a round that has no commitment"
            findings.append(
                Finding(round=leaf.update.round, hospital=leaf.update.hospital, digest=leaf.update.digest, what=what)
            )
            continue
        yield LedgerUpdate(
            update=leaf.update,
            signature=leaf.signature,
            metrics=leaf.metrics,
            reason=None,
            transaction=event.transaction,
            block=event.block,
            index=leaf.index,
        )


def _notes(evidence: Evidence, source: ArtifactSource | None, wallets: int, offline: bool) -> Iterator[str]:
    if source is None:
        yield "no file was at hand: digests only, nothing was folded again"
    told = [*(item.metrics for item in evidence.updates), *(leaf.metrics for leaf in evidence.leaves or ())]
    if unseen := told.count(None):
        yield f"the metrics of {unseen} updates were not at hand: their digests are signed, they were not compared"
    if wallets and offline:
        yield f"{wallets} updates are signed by contract wallets (ERC-1271): that these accepted is the bundle's word"
    elif wallets:
        yield f"{wallets} updates are signed by contract wallets (ERC-1271), asked as they were at the updates' blocks"
    if evidence.origin == "services":
        yield "the events are the chain service's word; --rpc reads them from the chain itself"
    if evidence.blocks is not None:
        yield from evidence.blocks.notes()
    elif offline:
        yield "the bundle holds no headers and receipts: nothing shows its events to be those of a chain"
