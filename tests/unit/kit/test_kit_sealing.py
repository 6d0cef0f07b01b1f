"""Sealed files: NIST's own vectors as oracle, every offset, and keys that are not the one."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_kit import storedfile, tensorfile
from concilia_kit.sealing import (
    MAGIC,
    NO_KEYS,
    OVERHEAD,
    KeyFileError,
    Keyring,
    Seal,
    SealingKeyUnknown,
    StoreKey,
)
from concilia_kit.storedfile import StoredFile
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.tensorheader import MAX_HEADER
from hypothesis import given
from hypothesis import strategies as st

KEYS = Keyring(StoreKey.new())


def sealed(path: Path, content: bytes, keys: Keyring = KEYS) -> Path:
    seal = keys.seal()
    assert seal is not None
    path.write_bytes(seal.header + seal.at(0)(content))
    return path


# NIST SP 800-38A, F.5.5 (CTR-AES256.Encrypt), whose first counter block is not 0: so many blocks on.
NIST_KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
NIST_COUNTER = int("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 16)
NIST_PLAIN = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
NIST_SEALED = bytes.fromhex(
    "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
)


def test_the_cipher_is_the_one_that_nist_describes() -> None:
    seal = Seal(b"", NIST_KEY)
    assert seal.at(NIST_COUNTER * 16)(NIST_PLAIN) == NIST_SEALED
    assert seal.at(NIST_COUNTER * 16 + 21)(NIST_SEALED[21:]) == NIST_PLAIN[21:]


def test_the_form_does_not_change() -> None:
    seal = StoreKey(bytes(range(32))).seal(bytes(range(16)))
    assert (
        seal.header.hex(),
        seal.at(0)(b"what was sealed stays readable").hex(),
    ) == (
        "434e435345414c3183076ea60d18f664000102030405060708090a0b0c0d0e0f",
        "162812eec0c64ae73929060d998e27f1aad8412654139f85848ac84a9893",
    )


def test_no_tensor_file_begins_like_a_sealed_one() -> None:
    assert len(MAGIC) == 8
    assert int.from_bytes(MAGIC, "little") > 2**30 * MAX_HEADER


@given(
    content=st.binary(max_size=300),
    cuts=st.lists(st.integers(0, 300), max_size=5),
    begin=st.integers(0, 320),
    count=st.integers(0, 320),
)
def test_any_read_of_any_appended_parts_is_the_content(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cuts: list[int], begin: int, count: int
) -> None:
    seal = KEYS.seal()
    assert seal is not None
    path = tmp_path_factory.mktemp("sealed") / "file"
    places = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    parts = (seal.at(first)(content[first:last]) for first, last in itertools.pairwise(places))
    path.write_bytes(seal.header + b"".join(parts))
    with StoredFile.open(path, KEYS) as file:
        assert file.size == len(content) == storedfile.size_of(path)
        assert file.read(begin, count) == content[begin : begin + count]
        assert b"".join(file.pieces(begin, begin + count)) == content[begin : begin + count]
        assert b"".join(file.pieces(begin)) == content[begin:]
    assert storedfile.digest_of(path, KEYS) == hashlib.sha256(content).hexdigest()


def test_pieces_are_bounded(tmp_path: Path) -> None:
    content = os.urandom(2 * storedfile.PIECE + 5)
    with StoredFile.open(sealed(tmp_path / "large", content), KEYS) as file:
        pieces = list(file.pieces(3))
    assert b"".join(pieces) == content[3:]
    assert max(map(len, pieces)) == storedfile.PIECE


def test_the_same_content_lies_differently_each_time_and_shows_nothing(tmp_path: Path) -> None:
    content = np.linspace(-1, 1, 50_000, dtype=np.float32).tobytes()
    one, other = (sealed(tmp_path / name, content).read_bytes() for name in ("one", "other"))
    stretches = {content[at : at + 16] for at in range(len(content) - 15)}
    for found in (one, other):
        assert not any(found[at : at + 16] in stretches for at in range(len(found) - 15))
    same = sum(a == b for a, b in zip(one[OVERHEAD:], other[OVERHEAD:], strict=True))
    assert same < len(content) / 100  # 1 in 256 by chance


@pytest.mark.parametrize("keys", [NO_KEYS, KEYS])
def test_a_file_that_is_not_sealed_is_read_as_it_lies(tmp_path: Path, keys: Keyring) -> None:
    path = tmp_path / "file"
    for content in (b"", b"short", MAGIC, MAGIC + b"\0" * 23, b"\0" * 100):
        path.write_bytes(content)
        with StoredFile.open(path, keys) as file:
            assert file.seal is None
            assert file.read(0, 200) == content
        assert storedfile.size_of(path) == len(content)


def test_keys_from_before_read_and_the_current_one_writes(tmp_path: Path) -> None:
    old, new = StoreKey.new(), StoreKey.new()
    path = sealed(tmp_path / "file", b"sealed before", Keyring(old))
    both = Keyring(new, [old])
    with StoredFile.open(path, both) as file:
        assert file.read(0, 100) == b"sealed before"
        assert not both.is_current(file.seal)
    assert not both.is_current(None)
    assert both.is_current(both.seal())
    assert both.seal().key_id == new.id  # type: ignore[union-attr]
    assert NO_KEYS.is_current(None)
    for keys in (NO_KEYS, Keyring(new), Keyring(None, [new])):
        with pytest.raises(SealingKeyUnknown, match=old.id.hex()) as caught:
            StoredFile.open(path, keys)
        assert (caught.value.problem_status, caught.value.document()["key"]) == (503, old.id.hex())
        with pytest.raises(SealingKeyUnknown):
            TensorFile.open(path, keys)
    assert storedfile.size_of(path) == 13  # which takes no key


def test_key_files(tmp_path: Path) -> None:
    secret = os.urandom(32)
    path = tmp_path / "key"
    name = StoreKey(secret).id
    written = [secret.hex(), secret.hex().upper() + "\n", base64.urlsafe_b64encode(secret).decode()]
    for text in (*written, written[-1].rstrip("=") + "\n"):
        path.write_text(text)
        assert StoreKey.read(path).id == name
    other = tmp_path / "other"
    other.write_text(os.urandom(32).hex())
    ring = Keyring.read(str(other), f"{path}, ")
    assert ring.of(StoreKey(secret).seal(bytes(16)).header) is not None
    assert Keyring.read("").current is None


@pytest.mark.parametrize(
    "text", ["", "secret", "ab" * 31, "zz" * 32, "+/" * 21, "ab" * 32, "00" * 32, "é" * 40, "A" * 5000]
)
def test_what_is_no_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(KeyFileError, match="openssl rand -hex 32"):
        StoreKey.read(path)
    with pytest.raises(KeyFileError, match="cannot be read"):
        StoreKey.read(tmp_path / "absent")


def test_a_key_is_not_shown() -> None:
    secret = os.urandom(32)
    key = StoreKey(secret)
    assert secret.hex() not in repr(key) + repr(Keyring(key))
    assert key.id not in secret


TENSORS: dict[str, Any] = {
    "a": np.linspace(0, 1, 300_001, dtype=np.float32).reshape(-1, 1),
    "b": np.arange(7, dtype=np.int64),
    "c": np.array([True, False]),
    "d": np.empty((0, 3), np.float16),
    "e": np.float64(3).reshape(()),
}


def test_sealed_tensors_are_the_same(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain", tmp_path / "sealed"
    digest = tensorfile.write(plain, TENSORS, {"x": "y"})
    assert tensorfile.write(path, TENSORS, {"x": "y"}, keys=KEYS) == digest
    assert path.stat().st_size == plain.stat().st_size + OVERHEAD
    assert storedfile.digest_of(path, KEYS) == digest
    ours, theirs = TensorFile.open(path, KEYS), TensorFile.open(plain, KEYS)
    assert (ours.is_sealed, theirs.is_sealed) == (True, False)
    assert ours.header == theirs.header
    for name in ours:
        assert ours.tensor(name).tobytes() == TENSORS[name].tobytes()
        assert ours.tensor(name).shape == TENSORS[name].shape
        assert not ours.tensor(name).flags.writeable or not TENSORS[name].size
    content = plain.read_bytes()
    assert b"".join(ours.raw()) == b"".join(theirs.raw()) == content
    assert b"".join(ours.raw(9)) == content[:9]
    assert ours.forget(5, 700) == theirs.forget(5, 700)
    ours.forget()
    assert ours.piece(np.dtype("<f4"), 400, 408).tobytes() == theirs.piece(np.dtype("<f4"), 400, 408).tobytes()


def test_without_a_store_a_sealed_file_is_said_to_be_sealed(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "sealed", TENSORS, keys=KEYS)
    with pytest.raises(MalformedFile, match="the file is sealed"):
        TensorFile.open(tmp_path / "sealed")


def test_a_sealed_file_that_is_cut_or_changed_is_no_tensor_file(tmp_path: Path) -> None:
    path = tmp_path / "sealed"
    tensorfile.write(path, TENSORS, keys=KEYS)
    whole = path.read_bytes()
    for content in (whole[:20], whole[:OVERHEAD], whole[: OVERHEAD + 5], whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(MalformedFile):
            TensorFile.open(path, KEYS)
    path.write_bytes(whole[:OVERHEAD] + bytes([whole[OVERHEAD] ^ 1]) + whole[OVERHEAD + 1 :])
    with pytest.raises(MalformedFile):
        TensorFile.open(path, KEYS)
