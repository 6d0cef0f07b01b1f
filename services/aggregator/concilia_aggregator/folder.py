"""Where updates are fetched, screened, rejected on the chain and folded: the edge around `screening` and `folding`."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from concilia_kit import logs
from concilia_kit.digests import Contribution, in_order, of_contributions
from concilia_kit.encodings import expect
from concilia_kit.problems import Unavailable
from concilia_kit.storedfile import digest_of, size_of
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.adapter import Adapter
from concilia_kit.wire.chain import LedgerRound, LedgerUpdate, Reason, Rejection, RoundStatus
from concilia_kit.wire.encoding import PLAIN, Encoding
from concilia_kit.wire.jobs import JobSpec
from concilia_kit.wire.masking import Unmasking

from concilia_aggregator import staleness, strategies
from concilia_aggregator.artifacts import ArtifactNotFound, Artifacts
from concilia_aggregator.errors import UpdateChanged
from concilia_aggregator.facts import RoundFacts, claimed, miscounted
from concilia_aggregator.folding import AVERAGED, Recipe, fold, remember
from concilia_aggregator.keying import Keying, Remembered
from concilia_aggregator.ledger import Ledger
from concilia_aggregator.masking import screening as masked_screening
from concilia_aggregator.masking.screening import Sharers
from concilia_aggregator.metrics import RoundMetrics
from concilia_aggregator.partials import Member
from concilia_aggregator.screening import Base, Limits, screen
from concilia_aggregator.strategies import Additive, Blockwise, Noised, Stateful
from concilia_aggregator.summing import Ahead, Summing

_KEPT = 100_000  # verdicts that are remembered
_OF_THE_FILE = frozenset({Reason.ARTIFACT_MISSING, Reason.DIGEST_MISMATCH})
_AGAIN_SECONDS = 60.0  # until a rejection that the ledger does not show is sent once more

_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a verdict depends on besides the limits: an update's bytes, the model it updates, its samples. `roster`: of
    a masked one, by which."""

    base: str
    digest: str
    samples: int
    registered: int | None
    encoding: Encoding
    roster: str | None = None


_Identity = tuple[int, int, int, int]
"""Which file it is that was read: device, inode, bytes, nanoseconds of its last change."""


class Folder:
    """Turns a round's recorded updates into a stored global model. Used by one thread at a time."""

    def __init__(
        self,
        artifacts: Artifacts,
        ledger: Ledger,
        directory: Path,
        limits: Limits,
        metrics: RoundMetrics | None = None,
        summing: Summing | None = None,
        noise: Remembered | None = None,
    ) -> None:
        """`noise`: where it is remembered which key a round's noise is of, for jobs that have any."""
        self._artifacts = artifacts
        self._ledger = ledger
        self._directory = directory
        self._limits = limits
        self._metrics = metrics or RoundMetrics()
        self._summing = summing
        self._keying = None if noise is None else Keying(artifacts, directory, noise)
        self._verdicts: OrderedDict[_Judged, Reason | None] = OrderedDict()
        self._files: OrderedDict[str, _Identity] = OrderedDict()
        self._told: OrderedDict[tuple[str, int, str], float] = OrderedDict()
        self._weights: OrderedDict[tuple[str, int, str], Reason | None] = OrderedDict()
        self._base: tuple[str, Base] | None = None
        self.lost: frozenset[str] = frozenset()

    def screen(
        self,
        recorded: LedgerRound,
        registered: Mapping[str, int],
        encoding: Encoding = PLAIN,
        asynchronous: bool = False,
        sharers: Sharers | None = None,
        classes: int | None = None,
    ) -> LedgerRound:
        """Screen what was not screened before; rejections are on the chain when this returns.

        An update in another encoding than the job's, or none, counts as malformed; one that is late where the job is
        not `asynchronous`, or later than can be, has no credible weight (`staleness`). Of a secure round those of
        `sharers` count, masked by its roster (`masking.screening`). Where the strategy goes by images of so many
        `classes`, who does not tell them has no credible weight either.

        To be called again as updates come, also while the round takes more: what was read once is not read again.
        Returns the round with its rejections; `lost` says of which hospitals no file can be read now, which the store
        had: they are waited for until the round's deadline. Raises `Problem` where a service does not answer.
        """
        verdicts, lost = self._screened(recorded, registered, encoding, sharers)
        # What the store lost is no hospital's fault. Each that is there brings its own again, while there is time.
        self.lost = frozenset(lost) if time.time() <= recorded.deadline else frozenset()
        screened: list[LedgerUpdate] = []
        rejected = 0
        for item in recorded.updates:
            hospital = item.update.hospital
            reason = item.reason or verdicts.get(hospital)
            if hospital in lost and hospital not in self.lost:
                reason = Reason.ARTIFACT_MISSING
            elif reason is None and hospital not in lost:
                reason = self._weighed(item) if asynchronous else staleness.claimed(item.metrics)
                reason = reason or miscounted(item, classes)
            if reason is not None and item.reason is None:
                self._reject(recorded, item, reason)
                rejected += 1
            screened.append(item.model_copy(update={"reason": reason}))
        result = recorded.model_copy(update={"updates": tuple(screened), "rejected": recorded.rejected + rejected})
        is_summed = sharers is None and not asynchronous
        if self._summing is not None and recorded.status is RoundStatus.OPEN and is_summed:
            self._summing.ask(result)
        return result

    def fold(self, recorded: LedgerRound, spec: JobSpec, masking: Unmasking | None = None) -> str:
        """Fold a screened round's accepted updates, store the global model; returns its digest. `masking`: what takes
        the masks off a secure round's sum.

        Raises `UpdateChanged` where a file is not the one that was screened: then the round is to be screened again.
        """
        contributions = in_order(
            Contribution(item.update.hospital, item.update.digest, item.update.samples) for item in recorded.accepted()
        )
        self._directory.mkdir(parents=True, exist_ok=True)
        target = self._directory / f"{recorded.job[:16]}-{recorded.round}.safetensors"
        facts = _facts(recorded, spec, contributions) if masking is None else None
        ahead = self._ahead(recorded, spec) if masking is None else Ahead((), frozenset())
        direct = [item for item in contributions if Member(item.digest, item.samples) not in ahead.members]
        state = target.with_suffix(".state")
        try:
            files, base = [self._unchanged(item.digest) for item in direct], self._open(recorded.base)
            adapter = Adapter.of(base.header.metadata)
            recipe = Recipe(
                spec.architecture, recorded.round, spec.strategy, facts=facts, adapter=adapter, masking=masking
            )
            samples, keys = [item.samples for item in direct], self._artifacts.keys
            key = None
            if isinstance(recipe.made(), Noised):
                assert self._keying is not None, "else no such job is taken"
                noise, key = self._keying.of(recorded, of_contributions(contributions))
                recipe = replace(recipe, noise=noise)
            known = recipe.state_before(base)
            before = None if known is None else self._open(known)
            if isinstance(recipe.made(), Stateful):
                recipe = replace(recipe, arithmetic=AVERAGED)
                recipe = replace(recipe, state=remember(files, samples, recipe, state, base, before, keys=keys))
            digest = fold(
                files, samples, recipe, target, base, partials=ahead.sums, before=before, noise=key, keys=keys
            )
            for item in direct:
                self._unchanged(item.digest)
            if recipe.state is not None:
                self._artifacts.put(recipe.state, state)
            self._artifacts.put(digest, target)
        finally:
            target.unlink(missing_ok=True)
            state.unlink(missing_ok=True)
        return digest

    def fold_again(self, recorded: LedgerRound, spec: JobSpec, masking: Unmasking | None = None) -> str:
        """Make a closed round's global model once more, whose file was lost; its digest. Raises `UpdateChanged` where
        an update is lost too, `NoiseKeyLost` where the key of its noise is."""
        for item in recorded.accepted():
            digest = item.update.digest
            try:
                path = self._artifacts.fetch(digest)
                self._files[digest] = _identity(path)
            except (ArtifactNotFound, FileNotFoundError) as error:
                raise UpdateChanged(f"the file of update {digest[:12]}… is gone") from error
            if digest_of(path, self._artifacts.keys) != digest:
                raise UpdateChanged(f"the file of update {digest[:12]}… has changed")
        return self.fold(recorded, spec, masking)

    def size(self, recorded: LedgerRound) -> int:
        """Bytes of a round's accepted updates, which were folded just now."""
        return sum(size_of(self._artifacts.fetch(item.update.digest)) for item in recorded.accepted())

    def release(self, recorded: LedgerRound) -> None:
        """Let go of local copies of a closed round's files."""
        self._base = None
        if self._summing is not None:
            self._summing.release(recorded)
        for item in recorded.updates:
            self._artifacts.release(item.update.digest)
        self._artifacts.release(recorded.base)

    def _weighed(self, item: LedgerUpdate) -> Reason | None:
        """What is wrong with how late an asynchronous job's update says that it is. Raises `UpdateChanged`."""
        key = item.update.digest, item.update.round, item.update.metrics
        if key not in self._weights:
            file = self._unchanged(item.update.digest)
            self._weights[key] = staleness.fault(file, item.metrics, item.update.round)
            while len(self._weights) > _KEPT:
                self._weights.popitem(last=False)
        return self._weights[key]

    def _ahead(self, recorded: LedgerRound, spec: JobSpec) -> Ahead:
        """What was added up ahead of a round's end, where there is such and the strategy adds by samples."""
        adds = isinstance(strategies.make(spec.strategy), Additive) and not spec.strategy.asynchronous
        if self._summing is None or not adds:
            return Ahead((), frozenset())
        return self._summing.ahead(recorded)

    def _open(self, digest: str) -> TensorFile:
        return TensorFile.open(self._artifacts.fetch(digest), self._artifacts.keys)

    def _screened(
        self,
        recorded: LedgerRound,
        registered: Mapping[str, int],
        encoding: Encoding,
        sharers: Sharers | None = None,
    ) -> tuple[dict[str, Reason | None], set[str]]:
        """By hospital what screening says of updates that the ledger shows no rejection of; and of which hospitals the
        store lost the file."""
        open_ = [item for item in recorded.updates if item.reason is None]
        signed = {} if sharers is None else {item.update.hospital: sharers.fault(item) for item in open_}
        most, roster = (registered, None) if sharers is None else (sharers.samples, sharers.roster)
        asked = {
            name: _Judged(recorded.base, item.update.digest, claimed(item), most.get(name), encoding, roster)
            for item in open_
            if signed.get(name := item.update.hospital) is None
        }
        lost: set[_Judged] = set()
        missing: set[_Judged] = set()
        unread = list(dict.fromkeys(each for each in asked.values() if each not in self._verdicts))
        if unread:
            base = self._measured(recorded.base)
            with ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="screen") as pool:
                for each, judged in zip(unread, pool.map(lambda each: self._judge(each, base), unread), strict=True):
                    if judged is None:
                        lost.add(each)
                    elif judged[0] is Reason.ARTIFACT_MISSING:
                        missing.add(each)  # not kept: this says nothing of bytes, which another round may have
                    else:
                        self._verdicts[each], file = judged
                        if file is not None:
                            self._files[each.digest] = file
        found = {
            hospital: Reason.ARTIFACT_MISSING if each in missing else self._verdicts[each]
            for hospital, each in asked.items()
            if each not in lost
        }
        found |= {hospital: reason for hospital, reason in signed.items() if reason is not None}
        for kept in (self._verdicts, self._files):
            while len(kept) > max(_KEPT, len(asked)):
                kept.popitem(last=False)
        return found, {hospital for hospital, each in asked.items() if each in lost}

    def _judge(self, asked: _Judged, base: Base) -> tuple[Reason | None, _Identity | None] | None:
        """What `_read` says; None where the store lost the file. One that was brought while this was asked is read."""
        for _ in range(2):
            reason, file = self._read(asked, base)
            if reason not in _OF_THE_FILE:
                break
            if self._is_lost(asked.digest, reason):
                return None
        return reason, file

    def _is_lost(self, digest: str, reason: Reason) -> bool:
        """Whether the store had an update's bytes, and has them no more: what comes in is hashed, so that a hospital
        cannot have brought others."""
        if reason is Reason.ARTIFACT_MISSING:
            return self._artifacts.is_put_aside(digest)
        if not self._artifacts.is_intact(digest):
            return True
        raise Unavailable(f"the store has other bytes of {digest[:12]}… than can be read here")

    def _measured(self, digest: str) -> Base:
        if self._base is None or self._base[0] != digest:
            self._base = digest, Base.of(self._open(digest))
        return self._base[1]

    def _read(self, asked: _Judged, base: Base) -> tuple[Reason | None, _Identity | None]:
        """Why an update is left out, if it is, and the file that was read for it."""
        try:
            path = self._artifacts.fetch(asked.digest)
            file = _identity(path)
        except (ArtifactNotFound, FileNotFoundError):
            return Reason.ARTIFACT_MISSING, None
        try:
            update = TensorFile.open(path, self._artifacts.keys)
            if asked.roster is not None:
                most, keys = asked.registered, self._artifacts.keys
                found = masked_screening.screen(
                    update, base.file, asked.samples, most, asked.roster, asked.digest, keys
                )
                return found, file
            expect(update, asked.encoding)
        except MalformedFile:
            is_other = digest_of(path, self._artifacts.keys) != asked.digest
            return Reason.DIGEST_MISMATCH if is_other else Reason.MALFORMED_FILE, file
        return screen(update, base, asked.samples, asked.registered, self._limits, asked.digest), file

    def _unchanged(self, digest: str) -> TensorFile:
        """The file of an accepted update, which must be the one whose bytes were hashed: a digest names it, and nobody
        who goes by the rules changes it, but a disk or a hand may."""
        try:
            file = self._open(digest)
            if self._files.get(digest) == _identity(file.path):
                return file
        except (ArtifactNotFound, MalformedFile, FileNotFoundError):
            pass
        for each in [each for each in self._verdicts if each.digest == digest]:
            del self._verdicts[each]
        raise UpdateChanged(f"the file of update {digest[:12]}… is another one than was screened, or gone")

    def _reject(self, recorded: LedgerRound, item: LedgerUpdate, reason: Reason) -> None:
        key = (recorded.job, recorded.round, item.update.hospital)
        if time.monotonic() - self._told.get(key, float("-inf")) < _AGAIN_SECONDS:
            return  # it is on the chain, and the reading of it behind
        self._ledger.reject(recorded.job, recorded.round, Rejection(hospital=item.update.hospital, reason=reason))
        self._told[key] = time.monotonic()
        while len(self._told) > _KEPT:
            self._told.popitem(last=False)
        self._metrics.rejected(reason)
        _log.warning(
            "update rejected",
            job=recorded.job,
            round=recorded.round,
            hospital=item.update.hospital,
            reason=reason.name.lower(),
        )


def _facts(recorded: LedgerRound, spec: JobSpec, contributions: Sequence[Contribution]) -> RoundFacts | None:
    """What the strategy goes by beside updates and samples, where it does: as the ledger has it, so that a model that
    was lost is made again to the byte."""
    if isinstance(strategies.make(spec.strategy), Blockwise | Noised):
        return None
    told = {item.update.hospital: item.metrics for item in recorded.accepted()}
    hospitals = [item.hospital for item in contributions]
    return RoundFacts.of(
        [told[each] for each in hospitals], hospitals, spec.local, recorded.submitted, spec.strategy.root
    )


def _identity(path: Path) -> _Identity:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
