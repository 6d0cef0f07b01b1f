"""What leaves a machine goes over TLS, and a node knows whom it speaks to: real handshakes, a real Redis behind one."""

from __future__ import annotations

import http.server
import os
import signal
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import kombu.exceptions
import pytest
import redis
from celery import Celery
from concilia.certificates import keep
from concilia.connection import Connection, Endpoints, UsageError
from concilia_client_node.__main__ import begin
from concilia_client_node.broker import TRANSPORT
from concilia_client_node.redelivery import transport_options
from concilia_client_node.settings import NodeSettings
from concilia_kit import http as kit_http
from concilia_kit import queue
from concilia_kit.streaming import LINE_ERRORS, Line
from concilia_kit.wire.queues import OWN_QUEUE, keys_of, queue_of
from concilia_kit.wire.training import TRAIN_TASK
from pydantic import ValidationError

from tests.security.tls_relay import relay

HOSPITAL = "0x" + 20 * "aA"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment's certificates; `past` ended yesterday, and `elsewhere` is for another host."""
    folder = tmp_path_factory.mktemp("ours")
    now = datetime.now(UTC)
    keep(folder, {"past": ["127.0.0.1"]}, now - timedelta(days=398))
    keep(folder, {"server": ["127.0.0.1"], "elsewhere": ["elsewhere.example"]}, now)
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody else's certificates, for the same address."""
    folder = tmp_path_factory.mktemp("theirs")
    keep(folder, {"server": ["127.0.0.1"]}, datetime.now(UTC))
    return folder


@pytest.fixture
def imposters(ours: Path, theirs: Path) -> list[Path]:
    return [theirs / "server.pem", ours / "elsewhere.pem", ours / "past.pem"]


# ---------------------------------------------------------------------------------------------------------- by HTTPS


class _Greeting(http.server.BaseHTTPRequestHandler):
    heard: list[str]

    def do_GET(self) -> None:
        self.heard.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[tuple[int, list[str]]]:
    """A service's port, and the paths that it was asked for."""
    handler = type("Handler", (_Greeting,), {"heard": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], handler.heard
        server.shutdown()


def ask(client: httpx.Client) -> bytes:
    """By the client, and by the connection for large bodies that is made from it."""
    answer = client.get("/asked").content
    with Line(client, lambda: None) as line:
        line.ask("GET", "/asked", {})
        return answer + b"".join(line.body())


def test_a_client_believes_the_authority_that_it_was_given(service: tuple[int, list[str]], ours: Path) -> None:
    with relay(service[0], ours / "server.pem") as port:
        trusting = kit_http.authorities(ours / "ca.pem")
        with kit_http.client(f"https://127.0.0.1:{port}", authorities=trusting) as client:
            assert ask(client) == b"okok"


def test_a_node_believes_the_authority_in_its_environment(
    service: tuple[int, list[str]], ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ours / "ca.pem"))
    kit_http._authorities.cache_clear()
    try:
        with relay(service[0], ours / "server.pem") as port, kit_http.client(f"https://127.0.0.1:{port}") as client:
            assert ask(client) == b"okok"
    finally:
        kit_http._authorities.cache_clear()


def test_a_node_that_is_named_no_authority_believes_the_public_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose sets an empty name where nobody gave one, by which OpenSSL alone would believe nobody."""
    monkeypatch.setenv("SSL_CERT_FILE", "")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("concilia_client_node.__main__.logs.configure", lambda *_: None)
    begin(settings())
    assert "SSL_CERT_FILE" not in os.environ


def test_nothing_is_said_to_an_imposter(service: tuple[int, list[str]], ours: Path, imposters: list[Path]) -> None:
    trusting = kit_http.authorities(ours / "ca.pem")
    for certificate in imposters:
        with relay(service[0], certificate) as port:
            for believing in (trusting, None):
                with kit_http.client(f"https://127.0.0.1:{port}", authorities=believing) as client:
                    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                        client.get("/asked")
                    with Line(client, lambda: None) as line, pytest.raises(ssl.SSLCertVerificationError) as refused:
                        line.ask("GET", "/asked", {})
                    assert isinstance(refused.value, LINE_ERRORS)
    assert service[1] == []


def test_the_command_line_takes_an_authority_from_its_connection_file(tmp_path: Path, ours: Path) -> None:
    def endpoints(ca_file: Path) -> Endpoints:
        urls = dict.fromkeys(("auth_url", "model_url", "chain_url", "aggregator_url"), "https://127.0.0.1:1")
        (tmp_path / "concilia.json").write_text(
            Endpoints(**urls, keystore=Path("k"), password_file=Path("p"), ca_file=ca_file).model_dump_json()
        )
        return Endpoints.read(tmp_path / "concilia.json")

    (tmp_path / "ca.pem").write_bytes((ours / "ca.pem").read_bytes())
    Connection(endpoints(Path("ca.pem"))).close()
    (tmp_path / "ca.pem").write_text("none")
    for wrong in ("ca.pem", "missing.pem"):
        with pytest.raises(UsageError, match="no certificates that could be read"):
            Connection(endpoints(Path(wrong)))


# ------------------------------------------------------------------------------------------------------ by the broker


def node(url: str) -> Celery:
    """Celery as a node has it, but for its user."""
    worker = queue.application("client-node", url)
    worker.conf.update(
        broker_transport=TRANSPORT,
        broker_transport_options={
            **transport_options(keys_of(HOSPITAL), OWN_QUEUE, "p"),
            "credentials": redis.UsernamePasswordCredentialProvider("default", ""),
        },
    )
    return worker


def taken(url: str) -> Any:
    with node(url) as worker, worker.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0.0)
        message = connection.default_channel.basic_get(OWN_QUEUE)
        message.ack()
        return message.headers["task"]


def test_tasks_come_over_tls(redis_url: str, ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with relay(int(redis_url.rsplit(":", 1)[1].split("/")[0]), ours / "server.pem") as port:
        url = f"rediss://127.0.0.1:{port}/0"
        for sender in (f"{url}?ssl_ca_certs={ours / 'ca.pem'}", redis_url):
            with queue.application("aggregator", sender) as aggregator:
                aggregator.send_task(TRAIN_TASK, kwargs={"task": {}}, queue=queue_of(HOSPITAL))
        assert taken(f"{url}?ssl_ca_certs={ours / 'ca.pem'}") == TRAIN_TASK
        monkeypatch.setenv("SSL_CERT_FILE", str(ours / "ca.pem"))
        assert taken(url) == TRAIN_TASK


def test_a_broker_that_is_another_is_told_nothing(
    redis_url: str, ours: Path, imposters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kombu by itself would verify nothing, and with a transport of another name than its own not even use TLS."""
    target = int(redis_url.rsplit(":", 1)[1].split("/")[0])
    monkeypatch.setenv("SSL_CERT_FILE", str(ours / "ca.pem"))
    for certificate in imposters:
        with relay(target, certificate) as port:
            url = f"rediss://127.0.0.1:{port}/0"
            with pytest.raises(kombu.exceptions.OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
                taken(url)
            refused = pytest.raises(kombu.exceptions.OperationalError, match="CERTIFICATE_VERIFY_FAILED")
            with queue.application("aggregator", url) as aggregator, refused:
                aggregator.send_task(TRAIN_TASK, queue=queue_of(HOSPITAL), retry=False)
            with redis.Redis.from_url(url) as client, pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY"):
                client.ping()


# ---------------------------------------------------------------------------------------------------- what is refused

URLS = {
    "broker_url": "rediss://broker.example:6379/0",
    **dict.fromkeys(("auth_url", "model_url", "chain_url", "aggregator_url"), "https://front.example/api"),
}


def settings(**changes: Any) -> NodeSettings:
    folder = Path("folder")
    given = {"port": 1, "keystore": folder, "password_file": folder, "data": folder, "directory": folder}
    return NodeSettings(**{**given, **URLS, **changes})


@pytest.mark.parametrize("name", URLS)
@pytest.mark.parametrize("host", ["front.example", "10.0.0.5", "127.0.0.1.example", "[2001:db8::1]"])
def test_a_node_speaks_to_no_other_machine_in_the_clear(name: str, host: str) -> None:
    clear = f"{'redis' if name == 'broker_url' else 'http'}://{host}:80/0"
    with pytest.raises(ValidationError, match="another machine"):
        settings(**{name: clear})
    assert settings(**{name: clear}, plaintext=True)


@pytest.mark.parametrize("name", URLS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.0.0.9"])
def test_this_machine_may_be_spoken_to_as_it_is(name: str, host: str) -> None:
    assert settings(**{name: f"{'redis' if name == 'broker_url' else 'http'}://{host}:80/0"})


@pytest.mark.parametrize("wish", ["none", "optional"])
def test_a_node_cannot_be_told_to_believe_anybody(wish: str) -> None:
    with pytest.raises(ValidationError, match="always verified"):
        settings(broker_url=f"rediss://broker.example:6379/0?ssl_cert_reqs={wish}")
