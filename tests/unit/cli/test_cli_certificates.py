"""The deployment's own authority, judged by OpenSSL: strict verification, in handshakes without a network."""

from __future__ import annotations

import json
import os
import ssl
import stat
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from concilia.app import app
from concilia.certificates import (
    RENEWAL,
    SERVER_LIFE,
    CertificateError,
    Signed,
    authority,
    keep,
    server,
)
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from typer.testing import CliRunner

NOW = datetime.now(UTC)
HOSTS = ("127.0.0.1", "localhost", "front.example")
SERVERS = {"front-door": HOSTS, "redis": ("redis",)}


def shake(folder: Path, name: str, host: str, trusted: Path, flags: ssl.VerifyFlags = ssl.VERIFY_X509_STRICT) -> str:
    """The protocol that a client who trusts that authority and a server with that certificate agree on."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= flags
    client.load_verify_locations(trusted)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname=host), server_side.wrap_bio(up, down, server_side=True)]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return str(ends[0].version())


@pytest.mark.parametrize("host", HOSTS)
def test_a_client_that_trusts_the_authority_believes_the_server(tmp_path: Path, host: str) -> None:
    keep(tmp_path, SERVERS, NOW)
    assert shake(tmp_path, "front-door", host, tmp_path / "ca.pem") == "TLSv1.3"


def test_another_name_and_another_authority_are_refused(tmp_path: Path) -> None:
    keep(tmp_path / "a", SERVERS, NOW)
    keep(tmp_path / "b", SERVERS, NOW)
    for name, host, trusted in (
        ("redis", "localhost", "a"),
        ("front-door", "evil.example", "a"),
        ("redis", "redis", "b"),
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(tmp_path / "a", name, host, tmp_path / trusted / "ca.pem")


def test_a_stolen_servers_key_signs_nobody(tmp_path: Path) -> None:
    keep(tmp_path, SERVERS, NOW)
    stolen = Signed(
        x509.load_pem_x509_certificate((tmp_path / "redis.pem").read_bytes()),
        load_pem_private_key((tmp_path / "redis.key").read_bytes(), None),  # type: ignore[arg-type]
    )
    forged = server(stolen, ["front.example"], NOW)
    chain = forged.certificate.public_bytes(Encoding.PEM) + stolen.certificate.public_bytes(Encoding.PEM)
    (tmp_path / "forged.pem").write_bytes(chain)
    key = forged.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "forged.key").write_bytes(key)
    with pytest.raises(ssl.SSLCertVerificationError, match="invalid CA certificate"):
        shake(tmp_path, "forged", "front.example", tmp_path / "ca.pem", ssl.VERIFY_DEFAULT)


def test_nobody_but_its_owner_reads_the_authoritys_key(tmp_path: Path) -> None:
    keep(tmp_path, SERVERS, NOW)
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o400


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    assert [each.name for each in keep(tmp_path, SERVERS, NOW)] == ["ca.pem", "front-door.pem", "redis.pem"]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert keep(tmp_path, SERVERS, NOW + SERVER_LIFE - RENEWAL - timedelta(hours=2)) == []
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_ends_soon_or_lacks_a_host_is_made_anew(tmp_path: Path) -> None:
    keep(tmp_path, SERVERS, NOW)
    more = {**SERVERS, "redis": ("redis", "broker.example")}
    (renewed,) = keep(tmp_path, more, NOW)
    assert (renewed.name, renewed.is_renewed) == ("redis.pem", True)
    assert shake(tmp_path, "redis", "broker.example", tmp_path / "ca.pem")
    later = NOW + SERVER_LIFE - RENEWAL + timedelta(hours=2)
    assert [each.name for each in keep(tmp_path, SERVERS, later)] == ["front-door.pem", "redis.pem"]
    assert all(each.until > later + RENEWAL for each in keep(tmp_path, SERVERS, later + SERVER_LIFE))


def test_another_authoritys_certificate_is_left_alone(tmp_path: Path) -> None:
    """An operator's own: neither its end nor its names are ours to judge."""
    keep(tmp_path, SERVERS, NOW)
    other = server(authority(NOW - SERVER_LIFE), ["elsewhere.example"], NOW - SERVER_LIFE)
    (tmp_path / "front-door.pem").unlink()
    (tmp_path / "front-door.pem").write_bytes(other.certificate.public_bytes(Encoding.PEM))
    assert keep(tmp_path, SERVERS, NOW) == []


def test_a_stop_between_the_two_files_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, SERVERS, NOW)
    real, written = os.fchmod, []

    def stop_at_the_second(descriptor: int, mode: int) -> None:
        written.append(mode)
        if len(written) == 2:
            raise KeyboardInterrupt
        real(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, SERVERS, NOW + SERVER_LIFE)
    monkeypatch.undo()
    assert [each.name for each in keep(tmp_path, SERVERS, NOW)] == ["front-door.pem"]
    assert shake(tmp_path, "front-door", "localhost", tmp_path / "ca.pem")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("hosts", [[], [""], ["a" * 64], ["bad..example"], ["a b"], ["*"]])
def test_what_is_no_host_is_refused(tmp_path: Path, hosts: Sequence[str]) -> None:
    with pytest.raises(CertificateError):
        keep(tmp_path, {"redis": hosts}, NOW)


def test_without_the_authoritys_key_it_says_what_to_bring(tmp_path: Path) -> None:
    keep(tmp_path, {"redis": ["redis"]}, NOW)
    (tmp_path / "ca.key").unlink()
    answer = CliRunner().invoke(app, ["certificates", str(tmp_path), "front-door=localhost"])
    assert answer.exit_code == 2
    assert "ca.key is missing" in " ".join(answer.output.split())


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    run = CliRunner()
    first = run.invoke(app, ["certificates", str(tmp_path), "front-door=127.0.0.1,localhost", "--json"])
    assert set(json.loads(first.output)) == {"ca.pem", "front-door.pem"}
    assert run.invoke(app, ["certificates", str(tmp_path), "front-door=localhost"]).output == ""
    for wrong in ("front-door", "ca=localhost", "../x=localhost", "front-door="):
        assert run.invoke(app, ["certificates", str(tmp_path / "new"), wrong]).exit_code == 2
