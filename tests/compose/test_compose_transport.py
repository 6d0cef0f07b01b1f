"""What leaves a machine, on the wire of a real deployment: TLS or nothing, and each service's user at the broker."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Sequence

import httpx
import pytest

from .conftest import Stack

YEAR = 31536000


def test_every_answer_tells_browsers_to_come_over_tls_alone(stack: Stack) -> None:
    with httpx.Client(base_url=stack.url, verify=stack.trust) as http:
        paths = ("/", "/jobs", "/nothing-here", "/healthz", "/api/nothing", "/api/auth/healthz", "/api/auth/metrics")
        for path in paths:
            answer = http.get(path)
            told = answer.headers["Strict-Transport-Security"]
            assert int(told.split(";")[0].removeprefix("max-age=")) >= YEAR, path
            assert answer.headers["X-Content-Type-Options"] == "nosniff", path
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"], path
        assert http.post("/api/auth/v1/challenges", content=b"x" * 2**17).headers["X-Frame-Options"] == "DENY"


def test_plain_http_shows_people_the_way_and_programs_an_error(stack: Stack) -> None:
    plain = stack.url.replace("https://", "http://")
    page = httpx.get(f"{plain}/jobs?a=1")
    assert (page.status_code, page.headers["Location"]) == (308, f"{stack.url}/jobs?a=1")
    called = httpx.get(f"{plain}/api/chain/v1/contract", headers={"Authorization": "Bearer x"})
    assert (called.status_code, called.json()["code"]) == (400, "https_required")
    assert called.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_current_tls_is_spoken_and_nobody_else_is_believed(stack: Stack, version: ssl.TLSVersion) -> None:
    host, port = stack.environment["CONCILIA_PUBLIC_HOST"].split(":")
    trust = stack.trust
    trust.minimum_version = trust.maximum_version = version
    with socket.create_connection((host, int(port))) as line, trust.wrap_socket(line, server_hostname=host) as secured:
        spoken = secured.version()
        cipher = secured.cipher()
    assert spoken == version.name.replace("_", ".")
    assert cipher is not None
    assert "GCM" in cipher[0] or "CHACHA20" in cipher[0]
    with socket.create_connection((host, int(port))) as line, pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(line, server_hostname=host)


def test_old_tls_is_not(stack: Stack) -> None:
    """The error is the server's word, an alert: a client that could not speak it would fail by itself."""
    host, port = stack.environment["CONCILIA_PUBLIC_HOST"].split(":")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with socket.create_connection((host, int(port))) as line, pytest.raises(ssl.SSLError, match="alert"):
        old.wrap_socket(line, server_hostname=host)


# ---------------------------------------------------------------------------------------------------------- the broker

ASK = """
import json, sys, redis
answers = []
for url, calls in json.load(sys.stdin):
    try:
        client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=5)
        client.ping()
    except redis.RedisError as error:
        answers.append(f"{type(error).__name__}")
        continue
    for call in calls:
        try:
            client.execute_command(*call)
            answers.append("done")
        except redis.exceptions.NoPermissionError:
            answers.append("refused")
        except redis.RedisError as error:
            answers.append(f"{type(error).__name__}")
print(json.dumps(answers))
"""


def ask(stack: Stack, asked: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> list[str]:
    """What Redis says to each call, asked within its network."""
    given = json.dumps(asked).replace("'", "'\\''")
    shell = f"printf '%s' '{given}' | python -c '{ASK}'"
    answers: list[str] = json.loads(stack.inside("auth", "sh", "-c", shell))
    return answers


def test_the_broker_speaks_to_nobody_in_the_clear_or_without_a_name(stack: Stack) -> None:
    trusted = "ssl_ca_certs=/run/secrets/ca.pem"
    password = (stack.folder / "secrets" / "redis_chain").read_text()
    urls = [
        f"redis://chain:{password}@redis:6379/0",
        f"rediss://chain:{password}@redis:6379/0",  # public authorities did not sign it
        f"rediss://redis:6379/0?{trusted}",
        f"rediss://chain:wrong@redis:6379/0?{trusted}",
        f"rediss://default:{password}@redis:6379/0?{trusted}",
    ]
    answers = ask(stack, [(url, [["PING"]]) for url in urls])
    assert answers[:2] == ["ConnectionError", "ConnectionError"]
    assert set(answers[2:]) == {"AuthenticationError"}
    assert ask(stack, [(f"rediss://chain:{password}@redis:6379/0?{trusted}", [["PING"]])]) == ["done"]


NODES_QUEUE = "node.0x0:tasks"
OF_OTHERS = {
    "auth": ("concilia:ledger", "aggregator", NODES_QUEUE, "_kombu.binding.aggregator"),
    "chain": ("concilia:auth:session:x", "aggregator", NODES_QUEUE, "concilia:lock:x", "concilia:job:x"),
    "aggregator": ("concilia:auth:session:x", "concilia:auth:broker", "concilia:auth:nonce:x"),
}


@pytest.mark.parametrize("service", OF_OTHERS)
def test_a_services_user_does_nothing_with_what_is_anothers(stack: Stack, service: str) -> None:
    password = (stack.folder / "secrets" / f"redis_{service}").read_text()
    forbidden = [
        ["FLUSHALL"],
        ["CONFIG", "GET", "*"],
        ["SHUTDOWN", "NOSAVE"],
        ["KEYS", "*"],
        ["MONITOR"],
        ["CLIENT", "KILL", "TYPE", "normal"],
        ["ACL", "LIST"],
        ["ACL", "GETUSER", "auth"],
        ["PUBLISH", "x", "y"],
        *([["ACL", "SETUSER", "thief", "on"], ["ACL", "DELUSER", "x"]] if service != "auth" else []),
        *(call for key in OF_OTHERS[service] for call in (["GET", key], ["SET", key, "x"], ["LPUSH", key, "x"])),
        *(
            call
            for key in OF_OTHERS[service]
            for call in (["DEL", key], ["HGETALL", key], ["XADD", key, "*", "a", "b"])
        ),
    ]
    url = f"rediss://{service}:{password}@redis:6379/0?ssl_ca_certs=/run/secrets/ca.pem"
    answers = ask(stack, [(url, forbidden)])
    assert [call for call, answer in zip(forbidden, answers, strict=True) if answer != "refused"] == []


# -------------------------------------------------------------------------------------------------------- the databases

ENTER = """
import os, psycopg, sys
try:
    psycopg.connect(f"postgresql://aggregator@postgres/aggregator?{sys.argv[1]}",
                    password=open("/run/secrets/db_aggregator").read(), connect_timeout=5).close()
    print("entered")
except psycopg.Error as error:
    print(" ".join(str(error).split()))
"""


def test_a_database_is_entered_over_tls_alone_and_is_known_for_what_it_is(stack: Stack) -> None:
    def enter(how: str) -> str:
        return stack.inside("aggregator", "python", "-c", ENTER, how).strip()

    assert enter("sslmode=verify-full&sslrootcert=/run/secrets/ca.pem") == "entered"
    assert "no encryption" in enter("sslmode=disable")
    assert "certificate verify failed" in enter("sslmode=verify-full&sslrootcert=/etc/ssl/certs/ca-certificates.crt")
