"""The verifier: a true job verifies; whatever is changed anywhere is found and named."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from concilia_aggregator import noising, strategies
from concilia_aggregator.facts import RoundFacts
from concilia_aggregator.folding import Recipe, fold, remember
from concilia_aggregator.strategies import Blockwise, Noised, Stateful
from concilia_aggregator.verification.lineage import BrokenLineage, rebuild
from concilia_aggregator.verification.roles import RoleChanged, RoleHistory
from concilia_aggregator.verification.sources import FolderSource
from concilia_aggregator.verification.verifier import Verifier
from concilia_kit import digests, encodings, merkle, signing
from concilia_kit.digests import Contribution, in_order, of_contributions
from concilia_kit.signing import Domain, Update
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.adapter import ADAPTER, TRUNK, Adapter
from concilia_kit.wire.chain import EventName, LedgerEvent, LedgerUpdate
from concilia_kit.wire.encoding import Encoding
from concilia_kit.wire.metadata import STATE
from concilia_kit.wire.strategy import Strategy, StrategyName
from concilia_kit.wire.training import Architecture, LocalTraining
from concilia_kit.wire.verification import Verdict
from eth_account import Account
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import METRICS

JOB = "a" * 64
DOMAIN = Domain(chain_id=1337, contract="0x" + "11" * 20)
KEYS = [Account.from_key(bytes([i + 1]) * 32) for i in range(3)]


@dataclass
class Job:
    """A finished job of two rounds: three updates in the first (one rejected), two in the second."""

    store: Path
    events: list[LedgerEvent] = field(default_factory=list)
    signed: list[LedgerUpdate] = field(default_factory=list)

    def put(self, data: bytes) -> str:
        import hashlib

        digest = hashlib.sha256(data).hexdigest()
        path = self.store / digest[:2] / digest
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return digest

    def path(self, digest: str) -> Path:
        return self.store / digest[:2] / digest

    def emit(self, name: EventName, round_: int, *, same: bool = False, **arguments: str | int) -> None:
        """Each event has a block and a transaction of its own, or those of the event before."""
        last = self.events[-1] if same else None
        event = LedgerEvent(
            name=name,
            job=JOB,
            round=round_,
            block=last.block if last else len(self.events) + 1,
            log_index=last.log_index + 1 if last else 0,
            transaction=last.transaction if last else f"0x{len(self.events):064x}",
            arguments=arguments,
        )
        self.events.append(event)

    def commit(self, round_: int, updates: list[LedgerUpdate], rejected: str | None) -> None:
        """Put a Merkle round's updates in order, and their root on the ledger."""
        ordered = sorted(updates, key=lambda each: int(each.update.hospital, 16))
        self.signed += [each.model_copy(update={"index": index}) for index, each in enumerate(ordered)]
        leaves = (merkle.leaf(merkle.update_data(each.update, DOMAIN, each.signature)) for each in ordered)
        self.emit(EventName.UPDATES_COMMITTED, round_, root=merkle.root(leaves).hex(), count=len(ordered))
        for index, each in enumerate(ordered):
            if each.update.hospital == rejected:
                self.emit(EventName.UPDATE_REJECTED, round_, hospital=rejected, reason=7)
                self.emit(EventName.LEAF_REJECTED, round_, same=True, index=index)

    def verify(self, roles: RoleHistory | None = None) -> Verdict:
        verifier = Verifier(DOMAIN, FolderSource(self.store), lambda *_: None)
        return verifier.verify(JOB, self.events, self.signed, roles=roles)


def tensors(seed: int, metadata: dict[str, str] | None = None) -> bytes:
    rng = np.random.default_rng(seed)
    made = {"w": rng.normal(size=20).astype(np.float32), "n": np.array(seed, np.int64)}
    return safetensors.numpy.save(made, metadata)


def encoded(job: Job, text: str, update: bytes, base: str) -> bytes:
    """An update's tensors in an encoding."""
    arrays = safetensors.numpy.load(update)
    with tempfile.TemporaryDirectory() as folder:
        encodings.encode(Path(folder) / "u", Encoding.parse(text), arrays, TensorFile.open(job.path(base)))
        return (Path(folder) / "u").read_bytes()


def facts_of(job: Job, round_: int, ordered: list[Contribution], strategy: Strategy) -> RoundFacts | None:
    if isinstance(strategies.make(strategy), Blockwise | Noised):
        return None
    told = {each.update.hospital: each.metrics for each in job.signed if each.update.round == round_}
    hospitals = [each.hospital for each in ordered]
    return RoundFacts.of([told[each] for each in hospitals], hospitals, LocalTraining(), len(KEYS), strategy.root)


def finished(
    store: Path,
    merkle_rounds: frozenset[int] = frozenset(),
    encoding: str = "none",
    strategy: Strategy = Strategy(),  # noqa: B008 - frozen
    over: Sequence[Adapter | None] = (None, None, None),
) -> Job:
    """`over`: what the initial model and those of the two rounds are adapters of."""
    job = Job(store)
    base = job.put(tensors(0, None if over[0] is None else over[0].metadata()))
    for round_, who, rejected in ((1, KEYS, KEYS[1]), (2, KEYS[:2], None)):
        job.emit(EventName.ROUND_OPENED, round_, base=base, deadline=10, quorum=2)
        is_merkle = round_ in merkle_rounds
        if is_merkle:
            job.emit(EventName.MERKLE_ROUND_OPENED, round_, same=True)
        contributions, collected = [], []
        for index, key in enumerate(who):
            made = tensors(10 * round_ + index)
            digest = job.put(made if encoding == "none" else encoded(job, encoding, made, base))
            metrics = METRICS
            if strategy.name is not StrategyName.FEDAVG:
                metrics = METRICS.model_copy(update={"reach": 0.1 * (index + 1), "first_loss": 1.0 + index})
            update = Update(
                hospital=key.address,
                job=JOB,
                round=round_,
                base=base,
                digest=digest,
                samples=10 + index,
                metrics=digests.of_json(metrics.model_dump(mode="json")),
            )
            handed_in = LedgerUpdate(
                update=update,
                signature=signing.sign(update, DOMAIN, key),
                metrics=metrics,
                reason=None,
                transaction="0x",
                block=1,
            )
            if key is not rejected:
                contributions.append(Contribution(key.address, digest, 10 + index))
            if is_merkle:
                collected.append(handed_in)
                continue
            job.signed.append(handed_in)
            job.emit(
                EventName.UPDATE_RECORDED,
                round_,
                hospital=key.address,
                digest=digest,
                samples=10 + index,
                metrics=update.metrics,
            )
            if key is rejected:
                job.emit(EventName.UPDATE_REJECTED, round_, hospital=update.hospital, reason=7)
        if is_merkle:
            job.commit(round_, collected, KEYS[1].address if rejected else None)
        target = store / "folded"
        ordered = in_order(contributions)
        made_by = strategies.make(strategy)
        facts = facts_of(job, round_, ordered, strategy)
        recipe = Recipe(Architecture.RESNET18, round_, strategy, facts=facts, adapter=over[round_])
        files, samples = (
            [TensorFile.open(job.path(each.digest)) for each in ordered],
            [each.samples for each in ordered],
        )
        start = TensorFile.open(job.path(base))
        known = start.header.metadata.get(STATE)
        before = None if known is None else TensorFile.open(job.path(known))
        if isinstance(made_by, Stateful):
            digest = remember(files, samples, recipe, store / "state", start, before)
            assert job.put((store / "state").read_bytes()) == digest
            recipe = replace(recipe, state=digest)
        key = None
        if isinstance(made_by, Noised):
            recipe = replace(recipe, noise=noising.write_key(store / "key"))
            assert job.put((store / "key").read_bytes()) == recipe.noise
            key = noising.read_key(TensorFile.open(store / "key"))
        fold(files, samples, recipe, target, start, before=before, noise=key)
        base = job.put(target.read_bytes())
        target.unlink()
        job.emit(
            EventName.ROUND_CLOSED,
            round_,
            globalDigest=base,
            contributions=of_contributions(contributions),
            count=len(contributions),
        )
    job.emit(EventName.MODEL_PUBLISHED, 2, digest=base)
    return job


def test_a_true_job_verifies(tmp_path: Path) -> None:
    verdict = finished(tmp_path).verify()
    assert verdict.ok, verdict.findings
    assert (verdict.rounds, verdict.updates, verdict.signatures, verdict.rejected) == (2, 5, 5, 1)


@pytest.mark.parametrize("encoding", ["float16", "int8+zstd", "topk:0.5"])
def test_a_job_with_encoded_updates_verifies_and_its_base_counts(tmp_path: Path, encoding: str) -> None:
    job = finished(tmp_path, encoding=encoding)
    verdict = job.verify()
    assert verdict.ok, verdict.findings
    base = next(each.update.base for each in job.signed if each.update.round == 2)
    job.path(base).unlink()
    assert {(each.round, each.digest) for each in job.verify().findings} >= {(2, base)}


WHOLE = [
    *({"name": name} for name in ("fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold", "fednova", "qfedavg")),
    *({"name": name} for name in ("norm_clipping", "geometric_median", "krum", "multi_krum", "bulyan")),
    *({"name": "centred_clipping"}, {"name": "fltrust", "root": KEYS[0].address}),
    {"name": "dp_fedavg", "radius": 0.5, "noise": 1.0},
    *({"name": "median", "mixing": mixing} for mixing in ("nearest_neighbours", "bucketing")),
    {"name": "multi_krum", "mixing": "nearest_neighbours", "hostile": 0.4},
]


@pytest.mark.parametrize("spec", WHOLE, ids=lambda spec: "+".join(map(str, spec.values()))[:40])
def test_a_job_verifies_whatever_its_strategy(tmp_path: Path, spec: dict[str, Any]) -> None:
    job = finished(tmp_path, strategy=Strategy.model_validate(spec))
    verdict = job.verify()
    assert verdict.ok, verdict.findings
    # The model says what it was made of, and the base was read for it.
    second = next(each.update.base for each in job.signed if each.update.round == 2)
    job.path(second).unlink()
    assert {(each.round, each.digest) for each in job.verify().findings} >= {(2, second)}


def test_what_a_strategy_remembers_is_verified_too(tmp_path: Path) -> None:
    job = finished(tmp_path, strategy=Strategy(name=StrategyName.FEDADAM))
    first = TensorFile.open(job.path(str(job.events[3 + 2].arguments["globalDigest"])))
    state = job.path(first.header.metadata[STATE])
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    assert {each.round for each in job.verify().findings} == {2}
    state.unlink()
    assert {each.round for each in job.verify().findings} == {2}


def test_facts_that_nobody_signed_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator who gives one hospital more weight than its own word does."""
    true_of = RoundFacts.of

    def favouring(*given: Any) -> RoundFacts:
        made = true_of(*given)
        return made.model_copy(update={"reach": (made.reach[0] / 5, *made.reach[1:])})

    with monkeypatch.context() as patch:
        patch.setattr(RoundFacts, "of", favouring)
        job = finished(tmp_path, strategy=Strategy(name=StrategyName.FEDNOVA))
    assert ["other facts" in each.what for each in job.verify().findings] == [True, True]


def over_trunk(store: Path, kind: str = "lora:8", seed: int = 99) -> Adapter:
    return Adapter(Job(store).put(tensors(seed)), kind)


def test_a_job_of_adapters_verifies_and_its_trunk_counts(tmp_path: Path) -> None:
    said = over_trunk(tmp_path)
    job = finished(tmp_path, over=(said, said, said))
    verdict = job.verify()
    assert verdict.ok, verdict.findings
    job.path(said.trunk).write_bytes(b"other")
    assert [(each.round, each.digest) for each in job.verify().findings] == [(0, said.trunk)]
    job.path(said.trunk).unlink()
    assert [(each.round, each.digest) for each in job.verify().findings] == [(0, said.trunk)]


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("change", ["trunk", "kind", "none"])
def test_an_adapter_whose_trunk_was_swapped_is_found(tmp_path: Path, at: int, change: str) -> None:
    """Folded again it is the same: a coordinator may write what it will into a model's file."""
    said = over_trunk(tmp_path)
    other = {"trunk": over_trunk(tmp_path, seed=98), "kind": over_trunk(tmp_path, "norms"), "none": None}[change]
    over = [other if number >= at else said for number in range(3)]
    job = finished(tmp_path, over=over)
    assert [(each.round, "another adapter" in each.what) for each in job.verify().findings] == [(at, True)]


def test_a_job_that_was_none_of_adapters_and_becomes_one_is_found(tmp_path: Path) -> None:
    job = finished(tmp_path, over=(None, None, over_trunk(tmp_path)))
    assert [(each.round, "another adapter" in each.what) for each in job.verify().findings] == [(2, True)]


@pytest.mark.parametrize("metadata", [{TRUNK: "ab" * 32}, {TRUNK: "x", ADAPTER: "norms"}])
def test_an_initial_model_that_is_half_an_adapter_is_found(tmp_path: Path, metadata: dict[str, str]) -> None:
    job = finished(tmp_path)
    initial = job.put(tensors(0, metadata))
    job.events = [
        each.model_copy(update={"arguments": each.arguments | {"base": initial}})
        if (each.name, each.round) == (EventName.ROUND_OPENED, 1)
        else each
        for each in job.events
    ]
    assert (0, True) in [(each.round, "cannot be an adapter" in each.what) for each in job.verify().findings]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_of_a_file_is_found_and_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    job = finished(tmp_path_factory.mktemp("store"))
    folded = {str(e.arguments["globalDigest"]): e.round for e in job.events if e.name is EventName.ROUND_CLOSED}
    places: list[tuple[str, int, str | None]] = [
        *((item.update.digest, item.update.round, item.update.hospital) for item in job.signed),
        *((digest, round_, None) for digest, round_ in folded.items()),
    ]
    places.append((str(job.events[0].arguments["base"]), 0, None))
    digest, round_, hospital = data.draw(st.sampled_from(places))
    content = bytearray(job.path(digest).read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    job.path(digest).write_bytes(content)
    verdict = job.verify()
    assert not verdict.ok
    assert (round_, hospital, digest) in [(f.round, f.hospital, f.digest) for f in verdict.findings]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"signature": "0x" + "11" * 65}, "signature"),
        ({"metrics": METRICS.model_copy(update={"loss": 0.1})}, "metrics"),
    ],
)
def test_a_changed_record_is_found(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    job = finished(tmp_path)
    job.signed[3] = job.signed[3].model_copy(update=change)
    (finding,) = job.verify().findings
    assert words in finding.what
    assert (finding.round, finding.hospital) == (2, job.signed[3].update.hospital)


@pytest.mark.parametrize("spelling", ["v of EIP-155", "v from 0", "high s"])
def test_a_signature_in_a_form_that_the_contract_refuses(tmp_path: Path, spelling: str) -> None:
    """Each recovers to the hospital all the same: of one signature there must not be two."""
    job = finished(tmp_path)
    raw = bytearray.fromhex(job.signed[0].signature[2:])
    if spelling == "high s":
        order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
        raw[32:64] = (order - int.from_bytes(raw[32:64], "big")).to_bytes(32, "big")
        raw[64] = 55 - raw[64]
    else:
        raw[64] += 128 if spelling == "v of EIP-155" else -27
    update = job.signed[0].update
    turned = "0x" + raw.hex()
    if spelling != "high s":
        assert raw[64] not in (27, 28)
    else:
        assert signing.signer(update, DOMAIN, turned) == update.hospital
    job.signed[0] = job.signed[0].model_copy(update={"signature": turned})
    (finding,) = job.verify().findings
    assert (finding.round, finding.hospital) == (1, update.hospital)


def test_a_signer_who_is_no_hospital_any_more(tmp_path: Path) -> None:
    job = finished(tmp_path)
    granted = [RoleChanged(0, index, key.address, True) for index, key in enumerate(KEYS)]
    closed = next(event.block for event in job.events if event.name is EventName.ROUND_CLOSED)
    for revoked, rounds in ((closed, [2]), (1, [1, 2])):
        roles = RoleHistory([*granted, RoleChanged(revoked, 1, KEYS[0].address, False)])
        verdict = Verifier(DOMAIN, FolderSource(tmp_path), lambda *_: None).verify(
            JOB, job.events, job.signed, roles=roles
        )
        assert [(each.round, each.hospital) for each in verdict.findings] == [(n, KEYS[0].address) for n in rounds]


def test_without_files_only_the_records_are_checked(tmp_path: Path) -> None:
    job = finished(tmp_path)
    steps: list[float] = []
    verdict = Verifier(DOMAIN, None, lambda done, _: steps.append(done)).verify(JOB, job.events, job.signed)
    assert (verdict.ok, verdict.rounds, verdict.signatures, verdict.bytes_read) == (True, 0, 5, 0)
    assert steps == sorted(steps)
    assert steps[-1] == 1


def test_a_broken_lineage_names_round_and_hospital(tmp_path: Path) -> None:
    job = finished(tmp_path)
    again = next(event for event in job.events if event.name is EventName.UPDATE_RECORDED)
    job.events.insert(2, again)
    finding = job.verify().findings[0]
    assert (finding.round, finding.hospital) == (1, again.arguments["hospital"])


def test_a_missing_signature_and_a_missing_file_are_found(tmp_path: Path) -> None:
    job = finished(tmp_path)
    gone = job.signed.pop(0)
    job.path(gone.update.digest).unlink()
    assert [finding.digest for finding in job.verify().findings] == [gone.update.digest] * 2


def test_another_average_under_a_right_digest_is_found(tmp_path: Path) -> None:
    """The coordinator stores and closes on a model that is not the average: consistent everywhere but in its making."""
    job = finished(tmp_path)
    model = safetensors.numpy.load(job.path(str(job.events[-1].arguments["digest"])).read_bytes())
    header = TensorFile.open(job.path(str(job.events[-1].arguments["digest"]))).header.metadata
    model["w"][0] += 1
    forged = job.put(safetensors.numpy.save(model, metadata=dict(header)))
    for index in (-2, -1):
        event = job.events[index]
        key = "globalDigest" if event.name is EventName.ROUND_CLOSED else "digest"
        job.events[index] = event.model_copy(update={"arguments": {**event.arguments, key: forged}})
    (finding,) = job.verify().findings
    assert finding.round == 2
    assert "folded again" in finding.what


@pytest.mark.parametrize("index", range(11))
def test_a_dropped_event_is_found(tmp_path: Path, index: int) -> None:
    job = finished(tmp_path)
    job.events.pop(index)
    assert not job.verify().ok


def test_nothing_follows_a_publication(tmp_path: Path) -> None:
    job = finished(tmp_path)
    assert len(job.events) == 11
    job.events.append(job.events[-1])
    assert not job.verify().ok


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_argument_of_an_event_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    job = finished(tmp_path_factory.mktemp("store"))
    index = data.draw(st.integers(0, len(job.events) - 1))
    event = job.events[index]
    key = data.draw(st.sampled_from([name for name in sorted(event.arguments) if name not in {"deadline", "reason"}]))
    old = event.arguments[key]
    new: str | int
    if isinstance(old, int):
        new = old + 1
    else:
        position = data.draw(st.integers(2, len(old) - 1))
        new = old[:position] + ("0" if old[position] != "0" else "1") + old[position + 1 :]
    if key == "quorum":
        return  # a higher quorum that is still met changes nothing that was done
    job.events[index] = event.model_copy(update={"arguments": {**event.arguments, key: new}})
    assert not job.verify().ok


@pytest.mark.parametrize("order", [(1, 0), (0, 2, 1)])
def test_events_in_an_order_the_contract_never_emits(tmp_path: Path, order: tuple[int, ...]) -> None:
    events = finished(tmp_path).events
    shuffled = [events[8 if index == 2 else index] for index in order]
    with pytest.raises(BrokenLineage):
        rebuild(shuffled)


@pytest.mark.parametrize("name", ["UpdateProven", "UpdateDisputed"])
def test_what_others_say_of_an_update_changes_no_lineage(tmp_path: Path, name: str) -> None:
    events = finished(tmp_path).events
    remark = events[-1].model_copy(update={"name": EventName(name), "arguments": {"index": 0}})
    assert rebuild([*events, remark]) == rebuild(events)


def test_a_job_that_is_not_there(tmp_path: Path) -> None:
    verdict = Verifier(DOMAIN, FolderSource(tmp_path), lambda *_: None).verify(JOB, [], [])
    assert not verdict.ok
