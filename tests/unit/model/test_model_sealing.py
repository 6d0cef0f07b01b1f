"""A store whose files are sealed: what lies on the disk, other keys, and files that are sealed anew."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_kit import keystore, storedfile
from concilia_kit.sealing import MAGIC, NO_KEYS, OVERHEAD, Keyring, SealingKeyUnknown, StoreKey
from concilia_model.artifacts import DirectoryStore
from concilia_model.errors import ArtifactTooLarge, NoSpace
from concilia_model.integrity import SCRUB_AGAIN_SECONDS, Found
from concilia_model.upkeep import DirectoryUpkeep

from tests.unit.model.bench import Bench

Make = Callable[..., tuple[str, bytes]]
OLD, NEW = StoreKey.new(), StoreKey.new()


def shows(folder: Path, content: bytes) -> list[str]:
    """Files in a folder in which a stretch of 16 bytes of the content lies."""
    stretches = {content[at : at + 16] for at in range(len(content) - 15)}
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            there = path.read_bytes()
            if any(there[at : at + 16] in stretches for at in range(len(there) - 15)):
                found.append(path.name)
    return found


@pytest.fixture
def varied(safetensors: Make) -> tuple[str, bytes]:
    return safetensors({"w": np.linspace(-1, 1, 20_000, dtype=np.float32)}, {"note": "a hospital's own words"})


@pytest.fixture
def under(tmp_path: Path, engine: Any) -> Callable[..., Bench]:
    return lambda keys, now=1000.0: Bench(tmp_path / "store", engine, keys, now=now, max_bytes=2**20)


# what lies on the disk


def test_nothing_of_the_content_lies_on_the_disk(under: Any, tmp_path: Path, varied: tuple[str, bytes]) -> None:
    digest, content = varied
    bench = under(Keyring(NEW))
    with bench.files.resume("a" * 32) as part:
        part.write([content[:30_001], content[30_001:60_000]])
    assert bench.files.received("a" * 32) == 60_000
    bench.put(digest, content)
    with bench.files.create() as coming:
        coming.write([memoryview(content)])
        assert len(list((tmp_path / "store").rglob("*/*"))) == 3
        assert shows(tmp_path / "store", content) == []
    path = bench.files.path(digest)
    path.write_bytes(path.read_bytes()[:-1])
    assert not bench.integrity.inspect(digest, Found.SCRUB)
    assert bench.upkeep.quarantined().bytes == len(content) - 1
    assert shows(tmp_path / "store", content) == []
    plain = under(NO_KEYS)
    with plain.files.create() as coming:  # the look itself works
        coming.write([content])
        assert len(shows(tmp_path / "store", content)) == 1


def test_the_same_bytes_lie_differently_each_time(under: Any, varied: tuple[str, bytes]) -> None:
    bench = under(Keyring(NEW))
    first = bench.put(*varied).read_bytes()
    second = bench.put(*varied).read_bytes()
    assert first[:16] == second[:16] == MAGIC + NEW.id
    assert first[16:OVERHEAD] != second[16:OVERHEAD]
    assert sum(a == b for a, b in zip(first[OVERHEAD:], second[OVERHEAD:], strict=True)) < len(first) / 100
    assert bench.content(varied[0]) == varied[1]


def test_sizes_are_of_the_content(tmp_path: Path, varied: tuple[str, bytes]) -> None:
    digest, content = varied
    store = DirectoryStore(tmp_path, len(content), 0, Keyring(NEW))  # which takes so many bytes and not one more
    store.prepare()
    with store.create(len(content)) as coming:
        coming.write([content])
        assert coming.size == len(content)
        coming.commit()
    assert store.path(digest).stat().st_size == len(content) + OVERHEAD
    assert DirectoryUpkeep(tmp_path, Keyring(NEW)).hash(digest, lambda _: None).size == len(content)
    with store.scratch() as made:
        made.write_bytes(store.path(digest).read_bytes())
        store.adopt(made, digest)
    with store.create() as coming, pytest.raises(ArtifactTooLarge):
        coming.write([content, b"x"])


# uploads over a change of keys


@pytest.mark.parametrize(
    ("before", "after", "stays"),
    [
        (NO_KEYS, NO_KEYS, True),
        (Keyring(OLD), Keyring(OLD), True),
        (Keyring(OLD), Keyring(NEW, [OLD]), True),
        (Keyring(OLD), Keyring(None, [OLD]), True),
        (NO_KEYS, Keyring(NEW), False),  # what comes from now on is sealed, and a file is sealed as a whole
        (Keyring(OLD), Keyring(NEW), False),
        (Keyring(OLD), NO_KEYS, False),
    ],
)
def test_an_upload_over_a_change_of_keys(
    tmp_path: Path, before: Keyring, after: Keyring, stays: bool, varied: tuple[str, bytes]
) -> None:
    digest, content = varied
    store = DirectoryStore(tmp_path, 2**20, 0, before)
    store.prepare()
    with store.resume("a" * 32) as part:
        part.write([content[:1001]])
    store = DirectoryStore(tmp_path, 2**20, 0, after)
    came = 1001 if stays else 0
    assert store.received("a" * 32) == came
    with store.resume("a" * 32) as part:
        assert (part.size, part.digest()) == (came, hashlib.sha256(content[:came]).hexdigest())
        part.write([content[came:2003]])
    with store.resume("a" * 32) as part:  # in this process, which knows the hash
        part.write([content[2003:]])
        assert part.digest() == digest
        assert part.header().metadata == {"note": "a hospital's own words"}
        part.commit()
    with store.open(digest) as file:
        assert b"".join(file.pieces()) == content
        assert (file.seal is None) == (after.current is None and (before.current is None or not stays))


@pytest.mark.parametrize("length", [0, 1, 8, 31])
def test_a_header_that_was_cut_short_is_begun_anew(tmp_path: Path, length: int) -> None:
    store = DirectoryStore(tmp_path, 2**20, 0, Keyring(NEW))
    store.prepare()
    (tmp_path / "uploads" / "x").write_bytes(NEW.seal(bytes(16)).header[:length])
    assert store.received("x") == 0
    with store.resume("x") as part:
        part.write([b"abc"])
    assert store.received("x") == 3
    assert (tmp_path / "uploads" / "x").stat().st_size == OVERHEAD + 3


def test_a_disk_that_is_full_at_the_first_byte_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    store = DirectoryStore(tmp_path, 2**20, 0, Keyring(NEW))
    store.prepare()

    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NoSpace):
        store.create()
    assert list((tmp_path / "incoming").iterdir()) == []


# other keys


async def test_a_file_under_a_key_that_is_not_there(
    serve: Any, settings: Any, tmp_path: Path, varied: tuple[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    digest, content = varied
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.write_text(secrets.token_hex(32))
    old = settings.model_copy(update={"sealing_key_file": str(first), "sealing_keys_before": ""})
    async with serve(old) as service:
        assert (await service.put(digest, content, service.alice)).status_code == 201
        initial = {"architecture": "mobilenet_v2", "weights": "file", "file": digest, "seed": 1}
    lay = (old.directory / digest[:2] / digest).read_bytes()
    for given in ("", str(second)):
        async with serve(old.model_copy(update={"sealing_key_file": given})) as service:
            for ask in (
                service.http.get(f"/v1/artifacts/{digest}", headers=service.alice),
                service.http.post(f"/v1/artifacts/{digest}/check", headers=service.alice),
                service.http.post("/v1/initial-models", json=initial, headers=service.admin),
            ):
                answer = await ask
                assert (answer.status_code, answer.json()["code"]) == (503, "sealing_key_unknown")
                assert answer.json()["key"] == StoreKey.read(first).id.hex()
            assert (await service.http.get(f"/v1/artifacts/{digest}/info", headers=service.alice)).status_code == 200
            assert (await service.put(digest, content, service.alice)).status_code == 200
        assert (old.directory / digest[:2] / digest).read_bytes() == lay
    assert StoreKey.read(first).id.hex() in capsys.readouterr().out
    both = {"sealing_key_file": str(second), "sealing_keys_before": str(first)}
    async with serve(old.model_copy(update=both)) as service:
        answer = await service.http.get(f"/v1/artifacts/{digest}", headers=service.alice)
        assert (answer.status_code, answer.content) == (200, content)
        part = await service.http.get(f"/v1/artifacts/{digest}", headers={**service.alice, "Range": "bytes=333-70000"})
        assert (part.status_code, part.content) == (206, content[333:70001])


def test_the_scrub_leaves_a_file_whose_key_is_not_there(
    under: Any, varied: tuple[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    digest, content = varied
    path = under(Keyring(OLD)).put(digest, content)
    lay = path.read_bytes()
    for keys in (NO_KEYS, Keyring(NEW)):
        bench = under(keys, now=1000 + 2 * SCRUB_AGAIN_SECONDS)
        bench.store.checked(digest, 1000)
        assert [bench.integrity.scrub() for _ in range(2)] == [True, False]
        assert path.read_bytes() == lay
        assert bench.upkeep.quarantined().files == 0
        assert bench.store.removed(digest) is None
    said = capsys.readouterr().out
    assert said.count(OLD.id.hex()) == 2
    assert said.count("artifact sealed under an unknown key") == 2


def test_a_flipped_byte_and_a_cut_header_are_found(under: Any, safetensors: Make) -> None:
    bench = under(Keyring(NEW))
    made = [safetensors({"w": np.full(3000, value, np.float32)}) for value in range(5)]
    paths = [bench.put(*each) for each in made]
    for path, place in ((paths[1], 5000), (paths[2], 20), (paths[3], 3)):  # content, salt, magic
        lay = bytearray(path.read_bytes())
        lay[place] ^= 1
        path.write_bytes(lay)
    paths[4].write_bytes(paths[4].read_bytes()[:20])
    bench.now += SCRUB_AGAIN_SECONDS + 1
    assert [bench.integrity.scrub() for _ in range(6)] == [True] * 5 + [False]
    assert [path.exists() for path in paths] == [True, False, False, False, False]
    assert bench.upkeep.quarantined().files == 4


def test_the_service_does_not_begin_with_a_key_that_is_none(tmp_path: Path) -> None:
    """In a process of its own: it sets up logging for all of it."""
    (tmp_path / "sealing").write_text("not a key")
    keystore.create(tmp_path / "key.json", tmp_path / "password")
    given = {
        "PORT": "1",
        "DIRECTORY": str(tmp_path / "store"),
        "DATABASE_URL": f"sqlite:///{tmp_path / 'model.db'}",
        "AUTH_URL": "http://auth.invalid",
        "CHAIN_URL": "http://chain.invalid",
        "KEYSTORE": str(tmp_path / "key.json"),
        "PASSWORD_FILE": str(tmp_path / "password"),
        "SEALING_KEY_FILE": str(tmp_path / "sealing"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "concilia_model"],
        env={**os.environ, **{f"CONCILIA_MODEL_{name}": value for name, value in given.items()}},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert "openssl rand -hex 32" in done.stderr


# sealed anew


@pytest.mark.parametrize("before", [NO_KEYS, Keyring(OLD)])
def test_what_is_plain_or_under_an_older_key_is_sealed_anew(
    under: Any, tmp_path: Path, before: Keyring, varied: tuple[str, bytes]
) -> None:
    digest, content = varied
    path = under(before).put(digest, content)
    bench = under(Keyring(NEW, [OLD]), now=1000 + SCRUB_AGAIN_SECONDS + 1)
    with bench.files.open(digest) as reading:
        assert [bench.integrity.scrub() for _ in range(2)] == [True, False]
        assert b"".join(reading.pieces()) == content  # whoever has it open reads it to its end
    assert path.read_bytes().startswith(MAGIC + NEW.id)
    assert storedfile.digest_of(path, Keyring(NEW)) == digest
    assert list((tmp_path / "store" / "incoming").iterdir()) == []
    lay = path.read_bytes()
    bench.now += SCRUB_AGAIN_SECONDS + 1
    assert bench.integrity.scrub()
    assert path.read_bytes() == lay  # once
    assert bench.integrity._metrics.resealed._value.get() == 1


def test_without_a_current_key_nothing_is_sealed_anew(under: Any, varied: tuple[str, bytes]) -> None:
    path = under(Keyring(OLD)).put(*varied)
    lay = path.read_bytes()
    assert not under(Keyring(None, [OLD])).upkeep.reseal(varied[0], lambda _: None)
    assert path.read_bytes() == lay


def test_bytes_that_are_others_are_not_sealed_anew(under: Any, tmp_path: Path, varied: tuple[str, bytes]) -> None:
    path = under(NO_KEYS).put(*varied)
    path.write_bytes(varied[1][:-1] + b"x")
    assert not under(Keyring(NEW)).upkeep.reseal(varied[0], lambda _: None)
    assert path.read_bytes() == varied[1][:-1] + b"x"
    assert list((tmp_path / "store" / "incoming").iterdir()) == []


class _Killed(BaseException):
    pass


def test_one_that_is_stopped_leaves_the_file_as_it_was(under: Any, tmp_path: Path, varied: tuple[str, bytes]) -> None:
    path = under(NO_KEYS).put(*varied)

    def stop(_size: int) -> None:
        raise _Killed

    with pytest.raises(_Killed):
        under(Keyring(NEW)).upkeep.reseal(varied[0], stop)
    assert path.read_bytes() == varied[1]
    assert list((tmp_path / "store" / "incoming").iterdir()) == []


def test_a_file_that_is_deleted_while_it_is_sealed_anew_stays_deleted(
    under: Any, tmp_path: Path, varied: tuple[str, bytes]
) -> None:
    path = under(NO_KEYS).put(*varied)
    bench = under(Keyring(NEW))
    with pytest.raises(FileNotFoundError):
        bench.upkeep.reseal(varied[0], lambda _: bench.upkeep.delete(varied[0], lambda: True) and None)
    assert not path.exists()
    assert list((tmp_path / "store" / "incoming").iterdir()) == []


def test_deletes_and_new_seals_in_any_order_lose_and_raise_nothing(
    under: Any, tmp_path: Path, varied: tuple[str, bytes]
) -> None:
    """A file is there or not as the last delete or bring says, however they meet what seals it anew."""
    digest, content = varied
    bench = under(Keyring(NEW))
    plain = DirectoryUpkeep(tmp_path / "store", Keyring(NEW))
    stop = threading.Event()

    def reseal() -> None:
        while not stop.is_set():
            with contextlib.suppress(FileNotFoundError):
                plain.reseal(digest, lambda _: None)

    resealing = threading.Thread(target=reseal)
    resealing.start()
    try:
        for _ in range(150):
            place = tmp_path / "store" / digest[:2] / digest
            place.parent.mkdir(exist_ok=True)
            aside = tmp_path / "store" / "incoming" / "brought"
            aside.write_bytes(content)
            aside.replace(place)
            assert bench.content(digest) == content
            assert bench.upkeep.delete(digest, lambda: True)
            assert not bench.files.exists(digest)
    finally:
        stop.set()
        resealing.join()
    assert not bench.files.exists(digest)


def test_an_unknown_key_is_no_reason_to_seal_anew(under: Any, varied: tuple[str, bytes]) -> None:
    path = under(Keyring(OLD)).put(*varied)
    with pytest.raises(SealingKeyUnknown):
        under(Keyring(NEW)).upkeep.reseal(varied[0], lambda _: None)
    assert path.read_bytes().startswith(MAGIC + OLD.id)
