"""Signing keys: one maker, private files, rotation without a restart, clear refusals."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from concilia_auth import keys
from concilia_auth.errors import KeyFileError
from concilia_auth.keys import KeyRing
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.pem"))


def test_auth_keys_first_key_is_private_and_kept(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "keys"
    keys.ensure(directory, NOW)
    (name,) = names(directory)
    assert name.startswith("20261124T120000Z-")
    assert (directory / name).stat().st_mode & 0o777 == 0o600
    before = (directory / name).read_bytes()
    keys.ensure(directory, NOW)
    assert names(directory) == [name]
    assert (directory / name).read_bytes() == before
    assert not list(directory.glob(".new-*"))


def test_auth_keys_replicas_that_start_together_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Event()

    def replica() -> None:
        start.wait()
        keys.ensure(tmp_path / "keys", NOW)

    replicas = [context.Process(target=replica) for _ in range(8)]
    for process in replicas:
        process.start()
    start.set()
    for process in replicas:
        process.join()
    assert [process.exitcode for process in replicas] == [0] * 8
    assert len(names(tmp_path / "keys")) == 1


def test_auth_keys_publish_the_public_half_only(tmp_path: Path) -> None:
    keys.create(tmp_path, "only")
    current = KeyRing(tmp_path).current()
    (entry,) = current.published["keys"]
    assert set(entry) == {"kty", "crv", "x", "kid", "use", "alg"}
    assert (entry["kty"], entry["crv"], entry["kid"], entry["use"], entry["alg"]) == (
        "OKP",
        "Ed25519",
        "only",
        "sig",
        "EdDSA",
    )


def test_auth_keys_rotate_without_a_restart(tmp_path: Path) -> None:
    keys.create(tmp_path, "2026a")
    ring = KeyRing(tmp_path)
    first = ring.current()
    assert ring.current() is first
    keys.create(tmp_path, "2026b")
    assert ring.current().signing.id == "2026b"
    assert [entry["kid"] for entry in ring.current().published["keys"]] == ["2026a", "2026b"]
    (tmp_path / "2026a.pem").unlink()
    assert [entry["kid"] for entry in ring.current().published["keys"]] == ["2026b"]


def test_auth_keys_a_new_key_is_published_before_it_signs(tmp_path: Path) -> None:
    keys.create(tmp_path, "2026a")
    began = time.time()
    now = [began]
    ring = KeyRing(tmp_path, settle_seconds=10, clock=lambda: now[0])
    assert ring.current().signing.id == "2026a", "there is no other"
    keys.create(tmp_path, "2026b")
    assert ring.current().signing.id == "2026a", "the older one, though it has not lain here for long either"
    now[0] = began + 9
    keys.create(tmp_path, "2026c")
    os.utime(tmp_path / "2026c.pem", (1, 1))  # as `mv` leaves it
    assert ring.current().signing.id == "2026a"
    assert [entry["kid"] for entry in ring.current().published["keys"]] == ["2026a", "2026b", "2026c"]
    now[0] = began + 20
    assert ring.current().signing.id == "2026c"
    assert ring.current() is ring.current()
    (tmp_path / "2026c.pem").unlink()
    assert ring.current().signing.id == "2026b"


def test_auth_keys_a_new_key_signs_at_once_where_it_is_the_only_one(tmp_path: Path) -> None:
    keys.create(tmp_path, "stolen")
    ring = KeyRing(tmp_path, settle_seconds=3600)
    ring.current()
    (tmp_path / "stolen.pem").unlink()
    keys.create(tmp_path, "new")
    assert ring.current().signing.id == "new"
    assert [entry["kid"] for entry in ring.current().published["keys"]] == ["new"]


def test_auth_keys_a_public_half_is_published_and_never_signs(tmp_path: Path) -> None:
    keys.create(tmp_path, "a")
    keys.create(tmp_path, "b")
    ring = KeyRing(tmp_path)
    retired = ring.current()
    public = retired.signing.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "b.pem").write_bytes(public)
    assert ring.current().signing.id == "a"
    assert ring.current().published == retired.published


def test_auth_keys_a_key_of_openssl_is_read(tmp_path: Path) -> None:
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "made-outside.pem"], check=True)
    assert keys.read(tmp_path).signing.id == "made-outside"


def test_auth_keys_a_broken_key_does_not_stop_who_runs(tmp_path: Path) -> None:
    keys.create(tmp_path, "a")
    ring = KeyRing(tmp_path)
    good = ring.current()
    (tmp_path / "b.pem").write_text("half a k")
    assert ring.current() is good
    with pytest.raises(KeyFileError, match=r"b\.pem is no unencrypted Ed25519 key"):
        KeyRing(tmp_path).current()


def test_auth_keys_refuses_other_keys_and_places(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="has no private key"):
        keys.read(tmp_path)
    curve = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "p256.pem").write_bytes(curve)
    with pytest.raises(KeyFileError, match="is no Ed25519 key"):
        keys.read(tmp_path)
    with pytest.raises(KeyFileError, match="cannot hold signing keys"):
        keys.ensure(tmp_path / "p256.pem", NOW)
    with pytest.raises(KeyFileError, match="cannot be read"):
        keys.read(tmp_path / "absent")


def test_auth_keys_ignores_files_that_are_no_keys(tmp_path: Path) -> None:
    keys.create(tmp_path, "a")
    (tmp_path / ".hidden.pem").write_text("x")
    (tmp_path / "notes.txt").write_text("x")
    assert keys.read(tmp_path).signing.id == "a"


def test_auth_imports_no_torch() -> None:
    code = "import sys, concilia_auth.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ.copy()).returncode == 0
