"""The policy on a real store: what a sweep deletes, what it never does, that it gives way to whoever brings bytes."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_kit import database
from concilia_kit.problems import Unavailable
from concilia_kit.roles import Role
from concilia_kit.sealing import Keyring
from concilia_kit.tokens import Principal
from concilia_kit.wire.adapter import Adapter
from concilia_kit.wire.chain import LedgerJob, LedgerRound
from concilia_kit.wire.models import Artifact, StorageReport, StoredKind
from concilia_model.artifacts import DirectoryStore
from concilia_model.ledgerindex import LedgerIndex
from concilia_model.references import References
from concilia_model.retention import DAY, Policy
from concilia_model.service import ArtifactService
from concilia_model.settings import ModelSettings
from concilia_model.storage import StorageService
from concilia_model.store import MIGRATIONS, Removal, Removed, Store
from concilia_model.upkeep import DirectoryUpkeep
from pydantic import ValidationError

ALICE, BOB = "0x00000000000000000000000000000000000000A1", "0x00000000000000000000000000000000000000b0"
JOB, OTHER = "1" * 64, "2" * 64
START = 1_000_000.0


def file_of(text: str, trunk: str = "") -> tuple[str, bytes]:
    """A small safetensors file, an adapter over `trunk`, and its digest."""
    over = json.dumps({"__metadata__": Adapter(trunk, "norms").metadata()})[1:-1].encode() + b"," if trunk else b""
    header = b'{%b"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (over, len(text), len(text))
    content = len(header).to_bytes(8, "little") + header + text.encode()
    return hashlib.sha256(content).hexdigest(), content


def caller(address: str, *roles: Role) -> Principal:
    return Principal(address=address, roles=frozenset(roles))


HOSPITAL, ADMIN = caller(ALICE, Role.HOSPITAL), caller(BOB, Role.ADMIN)


@dataclass
class Room:
    """A store with its policy, on a clock that is told the time."""

    ledger: Any
    files: DirectoryStore
    upkeep: DirectoryUpkeep
    store: Store
    references: References
    index: LedgerIndex
    now: float = START

    def __post_init__(self) -> None:
        self.artifacts = ArtifactService(self.files, self.store, clock=lambda: self.now)

    def storage(self, updates: float | None = 30, orphans: float | None = 7) -> StorageService:
        days = Policy(*(None if value is None else value * DAY for value in (updates, orphans)))
        return StorageService(
            self.files, self.upkeep, self.store, self.references, self.index, days, clock=lambda: self.now
        )

    def bring(self, text: str, who: Principal = HOSPITAL, trunk: str = "") -> str:
        digest, content = file_of(text, trunk)
        with self.files.create() as incoming:
            incoming.write([content])
            self.artifacts.take(incoming, digest, who)
        return digest

    def round(self, number: int, base: str, updates: list[str], result: str | None, job: str = JOB) -> None:
        """A round of an hour: what was recorded in it, and what it ended with (None: it was aborted)."""
        say = self.ledger.say
        say("RoundOpened", job, number, self.now, base=base, deadline=int(self.now + 3600), quorum=1)
        for count, digest in enumerate(updates, start=1):
            say("UpdateRecorded", job, number, self.now + count, digest=digest, hospital=ALICE)
        if result is None:
            say("RoundAborted", job, number, self.now + 3600)
        else:
            say("RoundClosed", job, number, self.now + 3600, globalDigest=result, count=len(updates))
        self.now += 3600

    def there(self, *digests: str) -> list[bool]:
        return [self.files.exists(digest) for digest in digests]


@pytest.fixture
def room(tmp_path: Path, memory_ledger: Any, keys: Keyring) -> Iterator[Room]:
    engine = database.engine(f"sqlite:///{tmp_path / 'model.db'}")
    database.migrate(engine, MIGRATIONS)
    files = DirectoryStore(tmp_path / "store", 2**20, 0, keys)
    files.prepare()
    references = References(engine)
    upkeep = DirectoryUpkeep(tmp_path / "store", keys)
    yield Room(memory_ledger, files, upkeep, Store(engine), references, LedgerIndex(memory_ledger, references))
    engine.dispose()


def kinds(report: StorageReport) -> dict[StoredKind, int]:
    return {item.kind: item.files for item in report.stored if item.files}


def test_a_trunk_stays_for_an_adapter_over_it_that_does(room: Room) -> None:
    """One that hospitals brought themselves, which else would go: as an orphan, or as an update."""
    initial = room.bring("initial", ADMIN)
    room.round(1, initial, [], initial)
    room.now += 2 * DAY
    orphan, update = room.bring("brought by a hospital"), room.bring("an update")
    room.round(2, initial, [update], initial)
    lonely, claimed = room.bring("nothing goes over it"), room.bring("a hospital's adapter goes over it")
    kept = [room.bring(f"over {trunk[:8]}", ADMIN, trunk) for trunk in (orphan, update)]
    own = room.bring("its own", HOSPITAL, claimed)
    assert kinds(room.storage().report())[StoredKind.TRUNK] == 2
    room.now += 60 * DAY
    room.storage().sweep()
    assert room.there(orphan, update, *kept) == [True] * 4
    assert room.there(lonely, claimed, own) == [False] * 3


def test_a_trunk_of_which_an_adapter_comes_is_not_removed_meanwhile(room: Room) -> None:
    trunk = room.bring("weights")
    seen = room.store.brought_at(trunk)
    assert seen is not None
    room.now += 1
    room.bring("a hospital's word", HOSPITAL, trunk)
    assert room.store.brought_at(trunk) == seen
    room.bring("an administrator's", ADMIN, trunk)
    assert not room.store.remove(trunk, Removed(room.now, Removal.POLICY), seen)


def test_updates_go_after_their_job_and_everything_else_stays(room: Room) -> None:
    initial, first, last = (room.bring(text, ADMIN) for text in ("initial", "global one", "global two"))
    spare = room.bring("weights for a job to come", ADMIN)
    one, two, left = room.bring("update one"), room.bring("update two"), room.bring("update of a round given up")
    both = room.bring("an update that somebody made a model of")
    room.round(1, initial, [one, both], first)
    room.round(2, first, [left], None)
    room.round(3, first, [two], last)
    room.round(1, both, [], None, job=OTHER)
    room.ledger.say("ModelPublished", JOB, 3, room.now, digest=last)
    storage = room.storage()
    room.now += 29 * DAY
    assert storage.sweep() == 0
    report = storage.report()
    expected = {
        StoredKind.INITIAL: 2,
        StoredKind.GLOBAL: 2,
        StoredKind.SPARE: 1,
        StoredKind.UPDATE: 3,
    }
    assert (kinds(report), report.due_files) == (expected, 0)
    preview = storage.report(updates_days=28)
    assert {item.digest for item in preview.due} == {one, two, left}
    assert preview.due_bytes == sum(item.size for item in preview.due)
    room.now += DAY
    due = storage.report()
    assert (due.due_files, room.there(one, two, left)) == (3, [True] * 3)  # asking deletes nothing
    assert storage.sweep() == 3
    assert room.there(one, two, left) == [False] * 3
    assert room.there(initial, first, last, spare, both) == [True] * 5
    assert storage.sweep() == 0
    after = storage.report()
    assert (after.removed_files, after.removed_bytes, after.due_files) == (3, due.due_bytes, 0)
    assert room.store.artifact(one) is not None  # records stay


def test_updates_of_a_job_with_a_round_under_way_stay(room: Room) -> None:
    initial, result, update = room.bring("initial", ADMIN), room.bring("result", ADMIN), room.bring("update")
    room.round(1, initial, [update], result)
    room.ledger.say("RoundOpened", JOB, 2, room.now, base=result, deadline=int(room.now + 60), quorum=1)
    room.now += 400 * DAY
    assert room.storage().sweep() == 0
    room.ledger.say("RoundAborted", JOB, 2, room.now)
    room.now += 29 * DAY
    assert room.storage().sweep() == 0  # counted from the last that was said
    room.now += DAY
    assert room.storage().sweep() == 1


def test_for_ever_is_for_ever(room: Room) -> None:
    room.round(1, room.bring("initial", ADMIN), [room.bring("update")], room.bring("result", ADMIN))
    room.bring("an upload that came to nothing")
    room.now += 10_000 * DAY
    assert room.storage(None, None).sweep() == 0


def test_orphans_go_unless_a_round_may_still_record_them(room: Room) -> None:
    of_another_ledger = room.bring("older than all that this ledger says")
    room.now += 10
    initial = room.bring("initial", ADMIN)
    room.round(1, initial, [], None)
    orphan = room.bring("never recorded")
    room.now += 2 * DAY
    long = int(room.now + 20 * DAY)
    room.ledger.say("RoundOpened", OTHER, 1, room.now, base=initial, deadline=long, quorum=1)
    room.now += 3600
    for_the_round = room.bring("trained for the long round")
    storage = room.storage()
    room.now += 6 * DAY
    assert storage.sweep() == 1
    assert room.there(orphan, for_the_round) == [False, True]
    room.now += 13 * DAY
    assert storage.sweep() == 0  # older than a week, and may still be recorded
    room.now += 3 * DAY
    assert storage.sweep() == 1
    assert room.there(of_another_ledger, initial, for_the_round) == [True, True, False]


def test_an_orphan_that_is_brought_again_lives_another_week(room: Room) -> None:
    room.round(1, room.bring("initial", ADMIN), [], None)
    orphan = room.bring("never recorded")
    room.now += 6 * DAY
    assert room.artifacts.known(orphan, HOSPITAL) is not None
    room.now += 6 * DAY
    assert room.storage().sweep() == 0
    room.now += 2 * DAY
    assert room.storage().sweep() == 1
    assert room.artifacts.known(orphan, HOSPITAL) is None
    assert room.bring("never recorded") == orphan
    assert room.artifacts.info(orphan, HOSPITAL).digest == orphan
    assert room.storage().sweep() == 0


def test_updates_under_a_root_are_told_by_the_rounds_leaves(room: Room, ledger_job: Callable[..., LedgerJob]) -> None:
    initial, update = room.bring("initial", ADMIN), room.bring("update")
    recorded = ledger_job(JOB, initial, [(None, {ALICE: None})]).rounds[0]
    leaf = recorded.updates[0]
    leaves = (leaf.model_copy(update={"update": leaf.update.model_copy(update={"digest": update})}),)

    def tell(updates: tuple[Any, ...]) -> None:
        rounds: tuple[LedgerRound, ...] = (recorded.model_copy(update={"updates": updates}),)
        room.ledger.jobs[JOB] = LedgerJob(job=JOB, head=initial, published=False, rounds=rounds)

    room.ledger.say("RoundOpened", JOB, 1, room.now, base=initial, deadline=int(room.now + 60), quorum=1)
    room.now += 7200
    lost = room.bring("an upload of that time")
    room.ledger.say("UpdatesCommitted", JOB, 1, room.now, root="ee" * 32, count=2)
    room.ledger.say("RoundAborted", JOB, 1, room.now)
    tell(leaves)
    room.now += 30 * DAY
    assert room.storage().sweep() == 1
    # Of two updates one is told: nothing brought since that round began is taken for an orphan.
    assert room.there(update, lost) == [False, True]


def test_nothing_goes_without_the_ledger(room: Room) -> None:
    room.bring("initial", ADMIN)
    orphan = room.bring("never recorded")
    room.now += 30 * DAY
    assert room.storage().sweep() == 0  # an empty ledger says nothing of anybody
    room.ledger.away = True
    with pytest.raises(Unavailable):
        room.storage().sweep()
    report = room.storage().report()
    assert (report.ledger_read_at, report.due_files, room.there(orphan)) == (None, 0, [True])


def test_the_ledger_is_read_once_and_another_history_anew(room: Room) -> None:
    initial = room.bring("initial", ADMIN)
    for number in range(1, 5):
        room.round(number, initial, [], None)
    assert room.index.catch_up(room.now) == 8
    room.ledger.asked = 0
    assert room.index.catch_up(room.now) == 0
    assert room.ledger.asked == 1
    update = room.bring("update")
    room.round(5, initial, [update], None)
    assert room.index.catch_up(room.now) == 3
    # A reorganisation: the newest event is in another block now. All is read again, and what was learnt stays.
    last = room.ledger.said.pop()
    room.ledger.said.append(last.model_copy(update={"transaction": "0x" + "ff" * 32}))
    assert room.index.catch_up(room.now) == 11
    assert kinds(room.storage().report())[StoredKind.UPDATE] == 1
    room.ledger.said = [room.ledger.said[0].model_copy(update={"transaction": "0x" + "ee" * 32})]
    assert room.index.catch_up(room.now) == 1  # another chain
    assert kinds(room.storage().report())[StoredKind.UPDATE] == 1
    room.now += 400 * DAY
    assert room.storage().sweep() == 0  # nobody says any more that the update's round is over


def test_a_round_whose_end_was_dropped_is_under_way_again(room: Room) -> None:
    initial, result, update = room.bring("initial", ADMIN), room.bring("result", ADMIN), room.bring("update")
    room.round(1, initial, [update], result)
    room.index.catch_up(room.now)
    room.now += 400 * DAY
    end = room.ledger.said.pop()
    assert room.storage().sweep() == 0
    room.ledger.said.append(end)
    assert room.storage().sweep() == 1


@pytest.mark.parametrize("whole", [True, False], ids=["brought whole", "recorded after the sweep"])
@pytest.mark.parametrize("point", ["before the record is marked", "before the file moves", "when it is away"])
def test_a_sweep_gives_way_to_whoever_brings_the_bytes(
    room: Room, monkeypatch: pytest.MonkeyPatch, point: str, whole: bool
) -> None:
    room.round(1, room.bring("initial", ADMIN), [], None)
    orphan = room.bring("never recorded")
    room.now += 30 * DAY
    digest, content = file_of("never recorded")
    after: list[Callable[[], object]] = []

    def bring_it() -> None:
        if whole:
            room.bring("never recorded")
            return
        incoming = room.files.create()
        incoming.write([content])
        room.store.bring(digest, room.now)
        incoming.commit()
        incoming.close()
        made = Artifact(digest=digest, size=len(content), owner=ALICE, tensors=1)
        after.append(lambda: room.store.record(made, shared=False, now=room.now))

    remove, delete, still = room.store.remove, room.upkeep.delete, room.store.still_removed
    at = {
        "before the record is marked": "remove",
        "before the file moves": "delete",
        "when it is away": "still_removed",
    }
    steps: dict[str, tuple[object, Callable[..., bool]]] = {
        "remove": (room.store, remove),
        "delete": (room.upkeep, delete),
        "still_removed": (room.store, still),
    }
    owner, real = steps[at[point]]

    def interrupted(*given: Any) -> bool:
        monkeypatch.setattr(owner, at[point], real)
        bring_it()
        return real(*given)

    monkeypatch.setattr(owner, at[point], interrupted)
    room.storage().sweep()
    for step in after:
        step()
    assert digest == orphan
    with room.files.open(orphan) as file:
        assert file.read(0, 2**20) == content
    assert room.artifacts.info(orphan, HOSPITAL).digest == orphan
    assert room.store.removed(orphan) is None
    assert room.storage().report().removed_files == 0


def test_sweeps_and_uploads_at_the_same_time(room: Room) -> None:
    room.round(1, room.bring("initial", ADMIN), [], None)
    storage = room.storage()
    pause = random.Random(3)
    for number in range(40):
        room.now += 30 * DAY
        orphan = room.bring(f"never recorded {number}")
        room.now += 30 * DAY
        sweeping = [threading.Thread(target=storage.sweep) for _ in range(2)]
        for thread in sweeping:
            thread.start()
        threading.Event().wait(pause.random() * 0.01)
        if room.artifacts.known(orphan, HOSPITAL) is None:
            room.bring(f"never recorded {number}")
        for thread in sweeping:
            thread.join()
        assert room.artifacts.info(orphan, HOSPITAL).digest == orphan
        assert room.store.removed(orphan) is None


def test_a_sweep_that_was_killed_between_record_and_file_is_gone_on_with(room: Room) -> None:
    room.round(1, room.bring("initial", ADMIN), [], None)
    orphan = room.bring("never recorded")
    brought_at, room.now = room.now, room.now + DAY
    assert room.store.remove(orphan, Removed(room.now, Removal.POLICY), brought_at)
    room.storage().sweep()
    assert room.there(orphan) == [False]


def test_a_reader_keeps_what_it_has_open(room: Room) -> None:
    room.round(1, room.bring("initial", ADMIN), [], None)
    orphan = room.bring("never recorded")
    room.now += 30 * DAY
    with room.files.open(orphan) as file:
        assert room.storage().sweep() == 1
        assert hashlib.sha256(file.read(0, 2**20)).hexdigest() == orphan


@pytest.mark.parametrize(("said", "meant"), [("", None), ("0", None), ("30", 30.0), ("0.5", 0.5)])
def test_days_as_they_are_set(monkeypatch: pytest.MonkeyPatch, settings: Any, said: str, meant: float | None) -> None:
    given = settings.model_dump(include={"port", "directory", "database_url", "auth_url", "chain_url", "keystore"})
    for name in ("KEEP_UPDATES_DAYS", "KEEP_ORPHANS_DAYS"):
        monkeypatch.setenv(f"CONCILIA_MODEL_{name}", said)
    made = ModelSettings(**given, password_file=settings.password_file)
    assert (made.keep_updates_days, made.keep_orphans_days) == (meant, meant)
    monkeypatch.setenv("CONCILIA_MODEL_KEEP_UPDATES_DAYS", "-1")
    with pytest.raises(ValidationError):
        ModelSettings(**given, password_file=settings.password_file)


# over REST


async def test_what_was_removed_says_so(serve: Any, settings: Any, safetensors: Any) -> None:
    settings = settings.model_copy(update={"keep_updates_days": 1e-9, "keep_orphans_days": 1e-9})
    digest, content = safetensors({"w": np.arange(40, dtype=np.float32)})
    path = f"/v1/artifacts/{digest}"
    async with serve(settings) as service:
        await service.put(digest, content, service.alice)
        service.ledger.say("RoundOpened", JOB, 1, 5.0, base="9" * 64, deadline=6, quorum=1)
        service.ledger.say("UpdateRecorded", JOB, 1, 5.0, digest=digest, hospital=ALICE)
        service.ledger.say("RoundClosed", JOB, 1, 6.0, globalDigest="8" * 64, count=1)
        storage: StorageService = service.http._transport.app.state.services.storage
        assert storage.sweep() == 1
        for who in (service.alice, service.auditor):
            for asked in (path, f"{path}/info"):
                answer = await service.http.get(asked, headers=who)
                assert (answer.status_code, answer.json()["code"]) == (410, "artifact_removed")
                assert answer.json()["removed_at"].startswith("20")
                assert answer.json()["artifact"]["size"] == len(content)
        assert (await service.http.post(f"{path}/check", headers=service.auditor)).status_code == 410
        hidden = await service.http.get(path, headers=service.bob)
        assert (hidden.status_code, hidden.json()["code"]) == (404, "artifact_not_found")
        # Whoever has it brings it again.
        assert (await service.put(digest, content, service.alice)).status_code == 200
        assert (await service.http.get(path, headers=service.alice)).content == content


async def test_the_report(service: Any, safetensors: Any) -> None:
    digest, content = safetensors({"w": np.arange(40, dtype=np.float32)})
    await service.put(digest, content, service.alice)
    seal = service.keys.seal()
    (service.settings.directory / "uploads" / "half").write_bytes(
        bytes(100) if seal is None else seal.header + bytes(100)
    )
    for who, status in ((service.alice, 403), (service.clinician, 403), (service.auditor, 200), (service.admin, 200)):
        answer = await service.http.get("/v1/storage", headers=who)
        assert answer.status_code == status
    report = StorageReport.model_validate_json(answer.content)
    assert {item.kind.value: (item.files, item.bytes) for item in report.stored} == {
        **dict.fromkeys(("initial", "global", "trunk", "update", "spare", "quarantined"), (0, 0)),
        "orphan": (1, len(content)),
        "unfinished": (1, 100),
    }
    assert (report.keep_updates_days, report.keep_orphans_days) == (None, 7)
    assert report.free_bytes > 0
    asked = await service.http.get("/v1/storage?keep_updates_days=0", headers=service.admin)
    assert asked.status_code == 422
    text = (await service.http.get("/metrics")).text
    assert f'concilia_store_bytes{{kind="orphan"}} {float(len(content))}' in text
    assert "concilia_store_free_bytes " in text
