"""Recomputes a job to the last bit and names everything that does not agree.

What is checked of every round: each update's signature against its hospital, the hospital's role at that place of the
chain (where the role events are given), its metrics and its file against their digests, the ordered contribution list,
and the global model folded again from the stored updates, and that an adapter is still over the trunk that the job
began with; of a Merkle round before all that its leaves, against root and count; of a secure one what `masked` checks,
of one with noise what `noised` does.
One finding does not end the search; a service that does not answer does, because nothing follows from that.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from concilia_kit import digests, signing
from concilia_kit.digests import Contribution, in_order, of_contributions
from concilia_kit.encodings import encoding_of, staleness_of
from concilia_kit.problems import Problem
from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.storedfile import digest_of, size_of
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.adapter import Adapter
from concilia_kit.wire.chain import LedgerEvent, LedgerUpdate, Reason
from concilia_kit.wire.verification import Finding, Verdict

from concilia_aggregator import noising, staleness
from concilia_aggregator.facts import is_other
from concilia_aggregator.folding import Recipe, fold, remember
from concilia_aggregator.strategies import Blockwise, Stateful
from concilia_aggregator.verification import masked, noised
from concilia_aggregator.verification.commitment import unfold
from concilia_aggregator.verification.lineage import BrokenLineage, Lineage, RecordedUpdate, Round, rebuild
from concilia_aggregator.verification.roles import RoleHistory


class ArtifactSource(Protocol):
    """Where the verifier gets files from."""

    def fetch(self, digest: str, folder: Path) -> Path:
        """A path to the artifact's bytes, perhaps inside `folder`.

        Raises `Problem` or `OSError` where it is gone, `Problem` of 500 and above where that cannot be told.
        """
        ...


class Folds(Protocol):
    """What was folded once: by a key that all that goes in determines, the digest of what came out."""

    def recall(self, key: str) -> str | None:
        """The digest that a fold had, None where it is not known."""
        ...

    def remember(self, key: str, digest: str) -> None:
        """Keep a fold's digest."""
        ...


@dataclass
class _Tally:
    signatures: int = 0
    bytes_read: int = 0
    done: int = 0
    all: int = 1


Progress = Callable[[float, str], None]
"""Told how much is done, from 0 to 1 and never back, and what is done next. What it raises ends the search."""

_NO_SOUND_FILE = frozenset({Reason.ARTIFACT_MISSING, Reason.DIGEST_MISMATCH})
"""Updates that were rejected because there was no file of their digest: there is none to check."""

Place = tuple[int, str]
"""A round and a hospital."""


class Verifier:
    """Checks one job. What must lie on disk meanwhile lies below `folder` (the system's own place where it is None).

    Without a `source` no file is checked and nothing folded: the verdict counts no round. What `folds` recalls is not
    folded again; all files are hashed in any case. With `keys` they may be sealed.
    """

    def __init__(
        self,
        domain: signing.Domain,
        source: ArtifactSource | None,
        progress: Progress,
        folder: Path | None = None,
        folds: Folds | None = None,
        keys: Keyring | None = None,
    ) -> None:
        self._keys = keys
        self._domain = domain
        self._source = source
        self._tell = progress
        self._folder = folder
        self._folds = folds
        self._findings: list[Finding] = []
        self._tally = _Tally()
        self._adapters: dict[str, Adapter | None] = {}
        self._noise: dict[str, int] = {}

    def verify(
        self,
        job: str,
        events: Iterable[LedgerEvent],
        signed: Iterable[LedgerUpdate],
        *,
        roles: RoleHistory | None = None,
        wallets: Collection[Place] = (),
    ) -> Verdict:
        """Check a job's events and the signed updates that go with them, a Merkle round's by ascending index. Raises
        `Problem` where a file's service does not answer, and what `progress` raises.

        `wallets` names updates whose signature a contract wallet was asked about, and accepted (ERC-1271).
        """
        self._job, self._roles, self._wallets = job, roles, wallets
        by_place: dict[Place, LedgerUpdate] = {}
        leaves: dict[int, list[LedgerUpdate]] = defaultdict(list)
        for each in signed:
            by_place.setdefault((each.update.round, each.update.hospital), each)
            leaves[each.update.round].append(each)
        try:
            lineage = rebuild(events)
        except BrokenLineage as broken:
            self._find(broken.round, broken.hospital, None, str(broken))
            lineage = Lineage()
        if not lineage.rounds and not self._findings:
            self._find(0, None, None, "the ledger has no round of this job")
        for item in lineage.rounds:
            if item.commitment is not None:
                for fault in unfold(job, item, leaves[item.number], self._domain):
                    self._find(item.number, *fault)
        self._tally.all = 1 + sum(len(item.updates) + bool(item.global_digest) for item in lineage.rounds)
        if lineage.rounds and self._source is not None:
            self._progress("initial weights")
            with self._place() as place:
                self._initial(lineage.rounds[0].base, place)
        self._tally.done += 1
        for item in lineage.rounds:
            self._round(job, item, by_place)
        self._progress("done")
        if lineage.rounds and lineage.published is None:
            self._find(lineage.rounds[-1].number, None, None, "the job's model is not published")
        return Verdict(
            job=job,
            ok=not self._findings,
            rounds=len([item for item in lineage.rounds if item.global_digest and self._source is not None]),
            updates=sum(item.submitted for item in lineage.rounds),
            signatures=self._tally.signatures,
            rejected=sum(item.rejected for item in lineage.rounds),
            bytes_read=self._tally.bytes_read,
            published=lineage.published,
            findings=tuple(self._findings),
        )

    def _round(self, job: str, item: Round, signed: Mapping[Place, LedgerUpdate]) -> None:
        self._progress(f"round {item.number}: {len(item.updates)} signatures")
        for update in item.updates.values():
            self._signature(job, item, update, signed.get((item.number, update.hospital)))
        counted = [] if item.global_digest is None else [each.digest for each in item.accepted()]
        for update in item.updates.values():
            if update.digest in counted:
                continue
            if update.reason not in _NO_SOUND_FILE and self._source is not None:
                self._progress(f"round {item.number}: file of {update.hospital[:10]}…")
                with self._place() as place:
                    self._file(item.number, update.hospital, update.digest, place)
            self._tally.done += 1
        if item.global_digest is None:
            return
        if item.commitment is not None and not item.updates:  # its leaves are needed, which is a finding already
            if self._source is not None:
                with self._place() as place:
                    self._file(item.number, None, item.global_digest, place)
            self._tally.done += 1
            return
        contributions = in_order(Contribution(each.hospital, each.digest, each.samples) for each in item.accepted())
        if of_contributions(contributions) != item.contributions:
            self._find(item.number, None, item.contributions, "the ordered contribution list has another digest")
        if self._source is None:
            self._tally.done += len(contributions)
        else:
            with self._place() as place:
                told = {each.hospital: signed.get((item.number, each.hospital)) for each in contributions}
                self._fold(item, contributions, place, told)
        self._tally.done += 1

    def _signature(self, job: str, item: Round, update: RecordedUpdate, signed: LedgerUpdate | None) -> None:
        where = (item.number, update.hospital, update.digest)
        # The contract checks no role at a commitment. A leaf of no hospital that was rejected went nowhere: that is how
        # one is left out whose hospital was expelled between the last look and the commitment.
        if (
            self._roles is not None
            and not (item.commitment and update.reason)
            and not self._roles.held(update.hospital, update.block, update.log_index)
        ):
            what = "recorded" if item.commitment is None else "committed"
            self._find(*where, f"its signer did not hold the hospital role when it was {what}")
        if signed is None:
            self._find(*where, "there is no signature for it")
            return
        statement = signing.Update(
            hospital=update.hospital,
            job=job,
            round=item.number,
            base=item.base,
            digest=update.digest,
            samples=update.samples,
            metrics=update.metrics,
        )
        try:
            recovered = signing.signer(statement, self._domain, signed.signature)
        except ValueError:
            recovered = "nobody"
        if (item.number, update.hospital) in self._wallets:
            pass  # recovering says nothing of a wallet's signature, and the wallet was asked
        elif recovered != update.hospital:
            self._find(*where, f"its signature is {recovered}'s")
        elif not signing.is_canonical(signed.signature):
            self._find(*where, "its signature is in a form that the contract never accepts")
        else:
            self._tally.signatures += 1
        if signed.metrics is not None and digests.of_json(signed.metrics.model_dump(mode="json")) != update.metrics:
            self._find(*where, "its metrics are not those that were signed")

    def _fold(
        self,
        item: Round,
        contributions: list[Contribution],
        folder: Path,
        told: Mapping[str, LedgerUpdate | None],
    ) -> None:
        files: list[TensorFile] = []
        for each in contributions:
            self._progress(f"round {item.number}: update of {each.hospital[:10]}…")
            if (path := self._file(item.number, each.hospital, each.digest, folder)) is not None:
                self._open(item.number, each.hospital, each.digest, path, files)
            self._tally.done += 1
        self._progress(f"round {item.number}: global model")
        stored = self._file(item.number, None, item.global_digest or "", folder)
        if stored is None or len(files) != len(contributions):
            return  # named already; folding what is broken would only say it again
        models: list[TensorFile] = []
        self._open(item.number, None, item.global_digest or "", stored, models)
        if not models:
            return
        self._progress(f"round {item.number}: folding {len(files)} updates again")
        try:
            recipe = Recipe.of(models[0])
            self._see_trunk(item, recipe.adapter)
            is_weighed = recipe.strategy.asynchronous and self._late(item, contributions, files)
            is_weighed |= recipe.masking is not None or not isinstance(recipe.made(), Blockwise)
            said = masked.faults(recipe.masking, self._job, item, contributions, told, self._domain)
            for hospital, what in (*said, *noised.faults(recipe, item.number, told, self._noise)):
                self._find(item.number, hospital, item.global_digest, what)
            base = self._base(item, files, folder, is_weighed)
            more = {} if base is None else {"base": item.base}
            before = None if base is None else self._beside(item, recipe.state_before(base), folder)
            hospitals = [each.hospital for each in contributions]
            words = [None if (known := told[name]) is None else known.metrics for name in hospitals]
            if is_other(recipe.facts, hospitals, words, recipe.strategy.root):
                self._find(
                    item.number, None, item.global_digest, "it was made by other facts than its hospitals signed"
                )
            if base is not None and isinstance(recipe.made(), Stateful):
                samples = [each.samples for each in contributions]
                state = remember(files, samples, recipe, folder / "state", base, before, keys=self._keys or NO_KEYS)
                if state != recipe.state:
                    self._find(item.number, None, item.global_digest, f"what its strategy remembers is {state}")
            key = self._beside(item, recipe.noise, folder)
            noise = None if key is None else noising.read_key(key)
            again = self._folded(files, contributions, recipe, folder / "again", base, more, before, noise)
        except (ValueError, KeyError) as error:
            self._find(item.number, None, item.global_digest, f"it cannot be folded again: {error}")
            return
        if again != item.global_digest:
            self._find(item.number, None, item.global_digest, f"folded again it is {again}")

    def _initial(self, digest: str, folder: Path) -> None:
        """The first round's base, and its trunk where it is an adapter."""
        found: list[TensorFile] = []
        if (path := self._file(0, None, digest, folder)) is not None:
            self._open(0, None, digest, path, found)
        try:
            said = self._adapters[digest] = Adapter.of(found[0].header.metadata)
        except IndexError:
            return  # named already
        except ValueError as error:
            self._find(0, None, digest, f"it cannot be an adapter: {error}")
            return
        if said is not None:
            self._file(0, None, said.trunk, folder)

    def _see_trunk(self, item: Round, adapter: Adapter | None) -> None:
        """A round's model must be over the very trunk of its base: folding, which sees neither, would not tell."""
        if self._adapters.get(item.base, adapter) != adapter:
            said = "none" if adapter is None else f"{adapter.kind} over {adapter.trunk}"
            self._find(item.number, None, item.global_digest, f"it is another adapter than its base: {said}")
        self._adapters[item.global_digest or ""] = adapter

    def _beside(self, item: Round, digest: str | None, folder: Path) -> TensorFile | None:
        """A file that a round's model is made with beside its updates, where there is any and it can be had."""
        found: list[TensorFile] = []
        if digest is not None and (path := self._file(item.number, None, digest, folder)) is not None:
            self._open(item.number, None, digest, path, found)
        return found[0] if found else None

    def _late(self, item: Round, contributions: list[Contribution], files: list[TensorFile]) -> bool:
        """Whether any update of an asynchronous job is late; a finding for each that is later than can be. Raises
        `MalformedFile`."""
        late = [staleness_of(each) for each in files]
        for each, rounds in zip(contributions, late, strict=True):
            if rounds > staleness.most(item.number):
                self._find(item.number, each.hospital, each.digest, f"it says that it is {rounds} rounds late")
        return any(late)

    def _base(self, item: Round, files: list[TensorFile], folder: Path, is_weighed: bool) -> TensorFile | None:
        """The model that a round's updates start from, where one is needed: to decode them, or where it `is_weighed`
        beside them. Raises `MalformedFile`."""
        if not is_weighed and all(encoding_of(each).plain for each in files):
            return None
        return self._beside(item, item.base, folder)

    def _folded(
        self,
        files: list[TensorFile],
        contributions: list[Contribution],
        recipe: Recipe,
        target: Path,
        base: TensorFile | None,
        more: Mapping[str, str],
        before: TensorFile | None = None,
        noise: bytes | None = None,
    ) -> str:
        """The digest of a fold: the files are those of the contributions' digests, which was looked at just before.
        `more` is what else it is remembered by."""
        key = digests.of_json(
            {
                **more,
                "contributions": of_contributions(contributions),
                "recipe": recipe.metadata(),
                "code": {name: version(name) for name in ("concilia-aggregator", "concilia-kit", "numpy")},
            }
        )
        if self._folds is not None and (known := self._folds.recall(key)) is not None:
            return known
        samples, keys = [each.samples for each in contributions], self._keys or NO_KEYS
        again = fold(files, samples, recipe, target, base, before=before, noise=noise, keys=keys)
        if self._folds is not None:
            self._folds.remember(key, again)
        return again

    def _file(self, round_: int, hospital: str | None, digest: str, folder: Path) -> Path | None:
        """The artifact's path if its bytes hash to its digest; a finding and None otherwise."""
        assert self._source is not None, "callers look first"
        try:
            path = self._source.fetch(digest, folder)
            actual = digest_of(path, self._keys)
        except (Problem, OSError) as error:
            if isinstance(error, Problem) and error.problem_status >= 500:
                raise
            self._find(round_, hospital, digest, f"its file cannot be had: {error}")
            return None
        self._tally.bytes_read += size_of(path)
        if actual != digest:
            self._find(round_, hospital, digest, f"its stored file has another digest: {actual}")
            return None
        return path

    def _open(self, round_: int, hospital: str | None, digest: str, path: Path, into: list[TensorFile]) -> None:
        try:
            into.append(TensorFile.open(path, self._keys))
        except MalformedFile as error:
            self._find(round_, hospital, digest, f"its file is malformed: {error}")

    def _progress(self, step: str) -> None:
        self._tell(self._tally.done / self._tally.all, step)

    @contextlib.contextmanager
    def _place(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="concilia-verify-", dir=self._folder) as name:
            yield Path(name)

    def _find(self, round_: int, hospital: str | None, digest: str | None, what: str) -> None:
        self._findings.append(Finding(round=round_, hospital=hospital, digest=digest, what=what))
