"""A job's event stream from the API as it is started: real Redis, real HTTP, readers that are cut off and come back."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import jwt
import pytest
import redis
from concilia_aggregator import main, rounds
from concilia_aggregator.changes import Changes
from concilia_aggregator.positions import Position
from concilia_aggregator.store import Store
from concilia_kit import database
from concilia_kit.tokens import ALGORITHM, ISSUER
from concilia_kit.wire.chain import STREAM, EventName, LedgerEvent
from concilia_kit.wire.changes import Change, RoundChange, job_stream
from concilia_kit.wire.jobs import JobSpec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eth_account import Account
from jwt.algorithms import OKPAlgorithm

JOB, OTHER = "a" * 64, "b" * 64
READER = Account.create().address
MOST_STREAMS = 3


class Neighbours(ThreadingHTTPServer):
    """The auth service's keys and the chain service's word on roles."""

    daemon_threads = True

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.roles = ["auditor"]
        self.readers: set[str] = set()
        super().__init__(("127.0.0.1", 0), _Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def headers(self, seconds: float = 600, reader: str = READER) -> dict[str, str]:
        self.readers.add(reader)
        claims = {"sub": reader, "aud": "aggregator", "iss": ISSUER, "roles": ["auditor"], "iat": time.time()}
        token = jwt.encode({**claims, "exp": time.time() + seconds}, self.key, ALGORITHM, {"kid": "k"})
        return {"Authorization": f"Bearer {token}"}


class _Answer(BaseHTTPRequestHandler):
    server: Neighbours

    def do_GET(self) -> None:
        if self.path == "/.well-known/jwks.json":
            public = OKPAlgorithm.to_jwk(self.server.key.public_key(), as_dict=True)
            answer: Any = {"keys": [{**public, "kid": "k", "alg": ALGORITHM}]}
        else:
            answer = {"roles": dict.fromkeys(self.server.readers, self.server.roles)}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silent."""


class Event(NamedTuple):
    name: str
    id: str
    data: Any


class Api:
    """The process, and what tests do with it."""

    def __init__(self, process: subprocess.Popen[str], url: str, neighbours: Neighbours, redis_url: str) -> None:
        self.process = process
        self.neighbours = neighbours
        self.http = httpx.Client(base_url=url, timeout=20)
        self.redis = redis.Redis.from_url(redis_url)
        self.changes = Changes(redis_url)

    @contextlib.contextmanager
    def stream(self, last: str | None = None, seconds: float = 600, job: str = JOB) -> Iterator[httpx.Response]:
        headers = {**self.neighbours.headers(seconds), **({} if last is None else {"Last-Event-ID": last})}
        with self.http.stream("GET", f"/v1/jobs/{job}/stream", headers=headers) as response:
            yield response

    @contextlib.contextmanager
    def follow(self, last: str | None = None, seconds: float = 600) -> Iterator[Iterator[Event]]:
        """A job's events; waits where as many streams as can be are still being let go of."""
        while True:
            with self.stream(last, seconds) as response:
                if response.status_code == 200:
                    yield events(response)
                    return
            assert response.status_code == 503, response.text
            time.sleep(0.01)

    def tell(self, number: int) -> None:
        self.changes(JOB, Change.ROUND, RoundChange(round=number))

    def record(self, number: int, job: str = JOB) -> None:
        event = LedgerEvent(
            name=EventName.UPDATE_RECORDED,
            job=job,
            round=1,
            block=number,
            log_index=0,
            transaction="0x",
            arguments={},
        )
        self.redis.xadd(STREAM, {"event": event.model_dump_json()})


def events(response: httpx.Response) -> Iterator[Event]:
    """The events of an answer; a stream that stays silent for long is a failure, which only its pings would not be."""
    fields: dict[str, str] = {}
    pings = 0
    for line in response.iter_lines():
        pings = pings + 1 if line.startswith(":") else pings if not line else 0
        assert pings < 4, "what was waited for did not come"
        if not line:
            if "data" in fields:
                yield Event(fields["event"], fields["id"], json.loads(fields["data"]))
            fields = {}
            continue
        name, _, value = line.partition(": ")
        fields[name] = value


@pytest.fixture
def api(tmp_path: Path, redis_url: str, free_port: Callable[[], int]) -> Iterator[Api]:
    password, keystore, log = tmp_path / "password", tmp_path / "key.json", tmp_path / "log"
    password.write_text("secret")
    keystore.write_text(json.dumps(Account.encrypt(Account.create().key, "secret", kdf="pbkdf2", iterations=1)))
    database_url, port = f"sqlite:///{tmp_path}/aggregator.db", free_port()
    engine = database.engine(database_url)
    database.migrate(engine, main.MIGRATIONS)
    store = Store(engine)
    for job in (JOB, OTHER):
        store.add_job(job, JobSpec(name="j", initial="0" * 64), rounds.begin("0" * 64), READER)
    neighbours = Neighbours()
    threading.Thread(target=neighbours.serve_forever, daemon=True).start()
    settings = {
        "PORT": str(port),
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "DIRECTORY": str(tmp_path / "work"),
        "KEYSTORE": str(keystore),
        "PASSWORD_FILE": str(password),
        "MAX_STREAMS": str(MOST_STREAMS),
        "LOG_LEVEL": "INFO",
        **dict.fromkeys(("AUTH_URL", "MODEL_URL", "CHAIN_URL"), neighbours.url),
    }
    environment = {**os.environ, **{f"CONCILIA_AGGREGATOR_{name}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "concilia_aggregator", "api"]
    with log.open("w") as stderr, subprocess.Popen(command, env=environment, stderr=stderr, text=True) as process:
        made = Api(process, f"http://127.0.0.1:{port}", neighbours, redis_url)
        try:
            for _ in range(300):
                assert process.poll() is None, log.read_text()
                with contextlib.suppress(httpx.ConnectError):
                    made.http.get("/healthz")
                    break
                time.sleep(0.1)
            yield made
        finally:
            process.terminate()
            process.wait(20)
            made.http.close()
            neighbours.shutdown()
            neighbours.server_close()
    assert "Traceback" not in log.read_text(), log.read_text()


def test_a_view_and_then_what_happens(api: Api) -> None:
    api.tell(1)
    api.record(1)
    with api.stream() as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert (response.headers["Cache-Control"], response.headers["X-Accel-Buffering"]) == ("no-store", "no")
        told = events(response)
        first = next(told)
        assert (first.name, first.data["id"], first.data["paused"]) == ("snapshot", JOB, False)
        api.record(7, job=OTHER)
        api.record(8)
        ledger = next(told)
        assert (ledger.name, ledger.data["block"], ledger.data["job"]) == ("ledger", 8, JOB)
        api.tell(9)
        assert next(told)[::2] == ("round", {"round": 9})


@pytest.mark.parametrize("seed", range(3))
def test_a_reader_that_is_cut_off_at_any_point_misses_and_repeats_nothing(api: Api, seed: int) -> None:
    rng = random.Random(seed)
    total = 150
    with api.follow() as told:
        last = next(told).id

    def happen() -> None:
        for number in range(total):
            api.tell(number)
            api.record(number, job=rng.choice([JOB, OTHER]))
            time.sleep(rng.random() * 0.004)
        api.tell(total)

    writer = threading.Thread(target=happen)
    writer.start()
    seen: list[Event] = []
    cuts = 0
    while not seen or seen[-1].data != {"round": total}:
        with api.follow(last) as told:
            for event in told:
                seen.append(event)
                last = event.id
                if rng.random() < 0.15 or event.data == {"round": total}:
                    break
        cuts += 1
    writer.join()
    assert cuts > 10
    assert [event.data["round"] for event in seen if event.name == "round"] == [*range(total), total]
    entries: Any = api.redis.xrange(STREAM)
    stored = [json.loads(fields[b"event"]) for _, fields in entries]
    assert [event.data for event in seen if event.name == "ledger"] == [item for item in stored if item["job"] == JOB]
    assert {event.name for event in seen} == {"round", "ledger"}


def test_redis_connections_that_break_lose_nothing(api: Api) -> None:
    with api.follow() as told:
        last = next(told).id
    for number in range(5):
        with api.follow(last) as told:
            api.redis.client_kill_filter(_type="normal", skipme=True)
            assert list(told) == []  # whoever reads comes back
        api.tell(number)
        with api.follow(last) as told:
            event = next(told)
            assert event.data == {"round": number}
            last = event.id


def test_who_cannot_go_on_gets_the_view_again(api: Api) -> None:
    with api.follow() as told:
        before = next(told).id
        for number in range(3):
            api.tell(number)
        first, second, third = (next(told).id for _ in range(3))
    for place, expected in ((before, 0), (first, 1), (second, 2)):
        with api.follow(place) as told:
            assert next(told).data == {"round": expected}
    api.redis.xtrim(job_stream(JOB), minid=Position(*second.split("_")).job, approximate=False)
    with api.follow(second) as told:
        assert next(told).data == {"round": 2}
    for place in (first, "nonsense", f"9{third}", f"{third}9", "0-0_99999999999999999999-0"):
        with api.follow(place) as told:
            event = next(told)
            assert event.name == "snapshot", place
            assert event.id == third
    api.redis.delete(job_stream(JOB))  # a Redis that lost its data
    with api.follow(third) as told:
        assert next(told).name == "snapshot"


def test_a_stream_ends_with_the_callers_roles(api: Api) -> None:
    with api.follow() as told:
        next(told)
        api.neighbours.roles = []
        assert list(told) == []
    assert api.http.get(f"/v1/jobs/{JOB}", headers=api.neighbours.headers()).json()["code"] == "role_missing"


def test_a_stream_ends_with_its_token(api: Api) -> None:
    with api.follow(seconds=2) as told:
        next(told)
        assert list(told) == []


def test_only_so_many_readers(api: Api) -> None:
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(api.follow()) for _ in range(MOST_STREAMS)]
        assert [next(told).name for told in readers] == ["snapshot"] * MOST_STREAMS
        with api.stream() as refused:
            refused.read()
        assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
        assert int(refused.headers["Retry-After"]) > 0
        assert api.http.get("/healthz").status_code == 200
    with api.follow() as told:
        assert next(told).name == "snapshot"


def test_who_may_not_read(api: Api) -> None:
    assert api.http.get(f"/v1/jobs/{JOB}/stream").json()["code"] == "unauthorized"
    with api.stream(job="c" * 64) as response:
        response.read()
        assert (response.status_code, response.json()["code"]) == (404, "job_not_found")
    with api.stream(last="0-0_0-0", job="c" * 64) as response:
        assert response.status_code == 404
    api.neighbours.roles = []
    stranger = api.neighbours.headers(reader=Account.create().address)  # of whom nothing is remembered
    answer = api.http.get(f"/v1/jobs/{JOB}/stream", headers=stranger)
    assert (answer.status_code, answer.json()["code"]) == (403, "role_missing")


def test_a_process_that_is_told_to_stop_ends_its_streams(api: Api) -> None:
    with api.follow() as told:
        next(told)
        api.process.send_signal(signal.SIGTERM)
        assert list(told) == []  # ended, not broken off
    assert api.process.wait(3) in (0, -signal.SIGTERM)
