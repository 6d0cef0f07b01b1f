"""Verifications in the background: one a job, taken up again after a death, never left running, no file left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from concilia_aggregator import main, rounds
from concilia_aggregator.artifacts import Downloads
from concilia_aggregator.errors import JobNotFound, VerificationNotFound
from concilia_aggregator.leases import lease
from concilia_aggregator.ledger import ChainLedger
from concilia_aggregator.store import Store
from concilia_aggregator.tables import VerificationRow
from concilia_aggregator.verification import examiner as background
from concilia_aggregator.verification import roles
from concilia_aggregator.verification.examiner import MOST_ATTEMPTS, Examiner
from concilia_aggregator.verification.records import Superseded, Verifications, shown
from concilia_aggregator.verification.sources import FolderSource
from concilia_aggregator.verification.verifier import ArtifactSource, Verifier
from concilia_kit import database, signing
from concilia_kit.problems import Unavailable
from concilia_kit.roles import Role
from concilia_kit.wire.chain import EventPage, LedgerEvent, LedgerUpdate, RecordedEvent
from concilia_kit.wire.changes import Change
from concilia_kit.wire.jobs import JobSpec
from concilia_kit.wire.verification import Verification, VerificationState

from .conftest import address
from .test_aggregator_verifier import DOMAIN, JOB, KEYS, Job, finished

CALLER = address(7)
OTHER = "b" * 64


def role_event(place: int, account: str, name: str = "RoleGranted", role: Role = Role.HOSPITAL) -> RecordedEvent:
    """As the chain service tells it; all within block 0, before the job."""
    return RecordedEvent(
        name=name,
        job=None,
        round=None,
        account=account,
        block=0,
        log_index=place,
        transaction="0x" + "22" * 32,
        at=None,
        arguments={"role": role.identifier.hex(), "account": account, "sender": account},
    )


class Ledger:
    """`Records` of one job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.error: Exception | None = None
        self.roles = [role_event(index, key.address) for index, key in enumerate(KEYS)]

    def domain(self) -> signing.Domain:
        return DOMAIN

    def events(self, job: str) -> list[LedgerEvent]:
        if self.error:
            raise self.error
        return self.job.events if job == JOB else []

    def signed(self, job: str) -> list[LedgerUpdate]:
        return self.job.signed if job == JOB else []

    def role_events(self) -> list[RecordedEvent]:
        return self.roles


class World:
    """A finished job, its artifacts in a folder, and an examiner that is asked to look by hand."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        engine = database.engine(f"sqlite:///{folder}/aggregator.db")
        database.migrate(engine, main.MIGRATIONS)
        store = Store(engine)
        for job in (JOB, OTHER):
            store.add_job(job, JobSpec(name="j", initial="0" * 64), rounds.begin("0" * 64), CALLER)
        (folder / "artifacts").mkdir()
        self.job = finished(folder / "artifacts")
        self.ledger = Ledger(self.job)
        self.told: list[Verification] = []
        self.verifications = Verifications(engine, store, self._tell)
        self.redis = redis.Redis.from_url(redis_url)
        self.work = folder / "work"
        self.source: ArtifactSource = FolderSource(self.job.store)

    def _tell(self, job: str, change: Change, what: Any) -> None:
        assert change is Change.VERIFICATION
        assert what.job == job
        self.told.append(what)

    def examiner(self) -> Examiner:
        return Examiner(self.verifications, self.ledger, self.source, self.redis, self.work)

    def ask(self, job: str = JOB) -> VerificationRow:
        return self.verifications.ask(job, CALLER)[0]

    def outcome(self, row: VerificationRow) -> Verification:
        assert not self.work.exists() or not list(self.work.iterdir()), "something was left on disk"
        return shown(self.verifications.get(row.id))


@pytest.fixture
def world(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(background, "_NOTE_SECONDS", 0.0)
    return World(tmp_path, redis_url)


def test_a_sound_job_is_verified_with_progress(world: World) -> None:
    row = world.ask()
    assert shown(row).state is VerificationState.QUEUED
    world.examiner().look()
    outcome = world.outcome(row)
    assert outcome.state is VerificationState.DONE
    assert outcome.verdict is not None
    assert outcome.verdict.ok, outcome.verdict.findings
    assert outcome.finished_at is not None
    assert outcome.finished_at >= outcome.asked_at
    fractions = [item.fraction for item in world.told]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert len(set(fractions)) > 5
    assert [item.state for item in world.told[:2]] == [VerificationState.QUEUED, VerificationState.RUNNING]
    assert world.told[-1] == outcome


def test_a_tampered_file_is_found_and_the_stream_is_spared_the_findings(world: World) -> None:
    update = world.job.signed[0].update
    path = world.job.path(update.digest)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    row = world.ask()
    world.examiner().look()
    verdict = world.outcome(row).verdict
    assert verdict is not None
    assert not verdict.ok
    assert {(item.round, item.hospital, item.digest) for item in verdict.findings} == {
        (update.round, update.hospital, update.digest)
    }
    last = world.told[-1].verdict
    assert last is not None
    assert (last.ok, last.findings) == (False, ())


def test_files_over_the_network_leave_nothing_behind(world: World) -> None:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = world.job.path(self.path.rsplit("/", 1)[-1])
            content = path.read_bytes() if path.exists() else b"{}"
            self.send_response(200 if path.exists() else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    gone, changed = (world.job.signed[number].update for number in (2, 0))
    world.job.path(gone.digest).unlink()
    content = bytearray(world.job.path(changed.digest).read_bytes())
    content[-1] ^= 1
    world.job.path(changed.digest).write_bytes(content)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever).start()
        with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}") as client:
            world.source = Downloads(client)
            row = world.ask()
            world.examiner().look()
        server.shutdown()
    verdict = world.outcome(row).verdict
    assert verdict is not None
    found = {(item.hospital, item.digest): item.what for item in verdict.findings if item.hospital}
    assert set(found) == {(gone.hospital, gone.digest), (changed.hospital, changed.digest)}
    assert "cannot be had" in found[gone.hospital, gone.digest]
    assert "has another digest" in found[changed.hospital, changed.digest]


def test_a_signer_who_was_no_hospital_is_found(world: World) -> None:
    """Expelled before the job; that it was made a clinician since is another role."""
    hospital = KEYS[0].address
    world.ledger.roles += [role_event(8, hospital, "RoleRevoked"), role_event(9, hospital, role=Role.CLINICIAN)]
    row = world.ask()
    world.examiner().look()
    verdict = world.outcome(row).verdict
    assert verdict is not None
    assert [(each.round, each.hospital) for each in verdict.findings] == [(1, hospital), (2, hospital)]
    assert all("did not hold the hospital role" in each.what for each in verdict.findings)


def test_role_events_are_asked_for_by_name_page_by_page() -> None:
    told = [role_event(place, KEYS[0].address, name) for place, name in enumerate(["RoleGranted", "RoleRevoked"] * 3)]
    asked: list[list[str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/events"
        asked.append(request.url.params.get_list("name"))
        start = int(request.url.params.get("before", 0))
        more = str(start + 2) if start + 2 < len(told) else None
        page = EventPage(events=tuple(told[::-1][start : start + 2]), before=more)
        return httpx.Response(200, content=page.model_dump_json())

    chain = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://chain")
    found = ChainLedger(chain).role_events()
    assert found == told[::-1]
    assert asked == [["RoleGranted", "RoleRevoked"]] * 3
    history = roles.history(found)
    assert not history.held(KEYS[0].address, 0, 6)
    assert history.held(KEYS[0].address, 0, 5)


def test_a_job_that_the_ledger_does_not_know(world: World) -> None:
    row = world.ask(OTHER)
    world.examiner().look()
    verdict = world.outcome(row).verdict
    assert verdict is not None
    assert not verdict.ok


def test_one_at_a_time_for_a_job(world: World) -> None:
    answers: list[tuple[VerificationRow, bool]] = []
    threads = [threading.Thread(target=lambda: answers.append(world.verifications.ask(JOB, CALLER))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(is_new for _, is_new in answers) == [False] * 5 + [True]
    assert len({row.id for row, _ in answers}) == 1
    assert world.verifications.ask(OTHER, CALLER)[1]
    world.examiner().look()
    second, is_new = world.verifications.ask(JOB, CALLER)
    assert is_new
    assert [row.id for row in world.verifications.of(JOB)] == [second.id, answers[0][0].id]


def test_what_is_not_there(world: World) -> None:
    with pytest.raises(JobNotFound):
        world.verifications.ask("c" * 64, CALLER)
    with pytest.raises(JobNotFound):
        world.verifications.of("c" * 64)
    with pytest.raises(VerificationNotFound):
        world.verifications.get("0" * 32)


def test_what_another_worker_holds_is_left_alone(world: World) -> None:
    row = world.ask()
    with lease(world.redis, f"verification:{row.id}") as held:
        assert held
        world.examiner().look()
        assert world.outcome(row).state is VerificationState.QUEUED
    world.examiner().look()
    assert world.outcome(row).state is VerificationState.DONE


def test_a_worker_that_died_is_followed_by_another(world: World) -> None:
    dead = world.verifications.note(world.verifications.take(world.ask()), 0.4, "halfway")
    left = world.work / f"{dead.id}-1"
    left.mkdir(parents=True)
    (left / "download").write_bytes(b"half a file")
    world.examiner().look()
    outcome = world.outcome(dead)
    assert outcome.state is VerificationState.DONE
    assert all(item.fraction >= 0.4 for item in world.told[2:]), "never back"
    with pytest.raises(Superseded):
        world.verifications.note(dead, 0.5, "late")
    with pytest.raises(Superseded):
        world.verifications.fail(dead, "late")
    assert world.outcome(dead) == outcome


def test_a_verification_that_ends_workers_is_given_up(world: World) -> None:
    row = world.ask()
    for _ in range(MOST_ATTEMPTS):
        row = world.verifications.take(row)
    world.examiner().look()
    outcome = world.outcome(row)
    assert outcome.state is VerificationState.FAILED
    assert outcome.detail
    assert world.verifications.unfinished() == []


def test_a_worker_that_is_told_to_stop_leaves_it_to_the_next(world: World) -> None:
    row = world.ask()
    stopping = world.examiner()
    plain = world.source.fetch

    class Stopping:
        def fetch(self, digest: str, folder: Path) -> Path:
            stopping._ending.set()
            return plain(digest, folder)

    stopping._source = Stopping()
    stopping.look()
    assert (world.outcome(row).state, world.verifications.get(row.id).attempts) == (VerificationState.QUEUED, 0)
    world.examiner().look()
    assert world.outcome(row).state is VerificationState.DONE


@pytest.mark.parametrize(
    ("error", "detail"),
    [(Unavailable("the chain is away"), "the chain is away"), (RuntimeError("secret"), "an unexpected error")],
)
def test_what_cannot_be_told_is_no_verdict(world: World, error: Exception, detail: str) -> None:
    world.ledger.error = error
    row = world.ask()
    world.examiner().look()
    outcome = world.outcome(row)
    assert (outcome.state, outcome.verdict) == (VerificationState.FAILED, None)
    assert outcome.detail.startswith(detail)


def test_a_store_that_does_not_answer_is_no_finding(tmp_path: Path) -> None:
    class Away:
        def fetch(self, digest: str, folder: Path) -> Path:
            raise Unavailable("away")

    job = finished(tmp_path)
    with pytest.raises(Unavailable):
        Verifier(DOMAIN, Away(), lambda *_: None).verify(JOB, job.events, job.signed)


def test_the_thread_takes_up_what_is_asked_for(world: World, poll: Callable[[Callable[[], bool]], None]) -> None:
    examiner = world.examiner()
    with pytest.raises(RuntimeError):
        examiner.check()
    examiner.start()
    examiner.check()
    row = world.ask()
    poll(lambda: shown(world.verifications.get(row.id)).state is VerificationState.DONE)
    examiner.stop(10)
    assert not examiner.is_alive()


@pytest.fixture
def poll() -> Callable[[Callable[[], bool]], None]:
    def wait(condition: Callable[[], bool]) -> None:
        for _ in range(600):
            if condition():
                return
            threading.Event().wait(0.05)
        pytest.fail("it did not happen within 30 s")

    return wait
