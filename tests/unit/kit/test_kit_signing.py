"""Digests, signatures, keystores: what is signed is what is checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from concilia_kit import digests, keystore, signing
from concilia_kit.digests import Contribution
from concilia_kit.roles import Role
from concilia_kit.signing import Domain, RoleChange, Update
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

LEDGER = Path(__file__).parents[3] / "contracts" / "build" / "ConciliaLedger.json"
DOMAIN = Domain(chain_id=1337, contract="0x" + "11" * 20)
KEY = Account.from_key("0x" + "01" * 32)
UPDATE = Update(
    hospital=KEY.address, job="a" * 64, round=1, base="b" * 64, digest="c" * 64, samples=10, metrics="d" * 64
)


def test_a_signature_recovers_to_its_signer() -> None:
    assert signing.signer(UPDATE, DOMAIN, signing.sign(UPDATE, DOMAIN, KEY)) == KEY.address
    change = RoleChange(role=Role.HOSPITAL, account=KEY.address, granted=True, nonce=0, deadline=1)
    assert signing.signer(change, DOMAIN, signing.sign(change, DOMAIN, KEY)) == KEY.address


_digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
_addresses = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())


@given(
    st.builds(
        Update,
        hospital=_addresses,
        job=_digests,
        round=st.integers(1, 2**32 - 1),
        base=_digests,
        digest=_digests,
        samples=st.integers(0, 2**64 - 1),
        metrics=_digests,
    ),
    st.builds(Domain, chain_id=st.integers(1, 2**64), contract=_addresses),
)
def test_an_update_is_encoded_as_the_general_encoder_does(update: Update, domain: Domain) -> None:
    message = {
        name: bytes.fromhex(value) if name in ("job", "base", "digest", "metrics") else value
        for name, value in update.model_dump().items()
    }
    assert update.signable(domain) == encode_typed_data(domain.typed(), {"Update": signing._UPDATE}, message)


@pytest.mark.parametrize(
    "change",
    [
        {"job": "e" * 64},
        {"round": 2},
        {"base": "e" * 64},
        {"digest": "e" * 64},
        {"samples": 11},
        {"metrics": "e" * 64},
        {"hospital": "0x" + "22" * 20},
    ],
)
def test_every_member_is_signed(change: dict[str, Any]) -> None:
    signature = signing.sign(UPDATE, DOMAIN, KEY)
    assert signing.signer(UPDATE.model_copy(update=change), DOMAIN, signature) != KEY.address


@pytest.mark.parametrize(
    "domain", [Domain(chain_id=1, contract=DOMAIN.contract), Domain(chain_id=1337, contract="0x" + "12" * 20)]
)
def test_a_signature_is_good_for_one_contract_on_one_chain(domain: Domain) -> None:
    assert signing.signer(UPDATE, domain, signing.sign(UPDATE, DOMAIN, KEY)) != KEY.address


@pytest.mark.parametrize("signature", ["0x00", "0x" + "00" * 65, "0x" + "ff" * 65])
def test_malformed_signatures(signature: str) -> None:
    with pytest.raises(ValueError, match="malformed"):
        signing.signer(UPDATE, DOMAIN, signature)


def test_role_identifiers_are_the_contracts() -> None:
    assert Role.ADMIN.identifier == bytes(32)
    abi = {item.get("name"): item for item in json.loads(LEDGER.read_text())["abi"]}
    for role in Role:
        assert f"{role.name}_ROLE" in abi
        assert role.identifier == (bytes(32) if role is Role.ADMIN else keccak(text=role.name))


contributions = st.lists(
    st.builds(
        Contribution,
        st.integers(0, 2**160 - 1).map(lambda n: f"0x{n:040x}"),
        st.binary(min_size=32, max_size=32).map(bytes.hex),
        st.integers(0, 2**64 - 1),
    ),
    max_size=6,
    unique_by=lambda item: item.hospital,
)


@given(contributions, st.randoms())
def test_the_contribution_list_has_one_order(items: list[Contribution], random: Any) -> None:
    expected = hashlib.sha256(
        b"".join(
            bytes.fromhex(item.hospital[2:]) + bytes.fromhex(item.digest) + item.samples.to_bytes(8, "big")
            for item in sorted(items, key=lambda item: bytes.fromhex(item.hospital[2:]))
        )
    ).hexdigest()
    random.shuffle(items)
    assert digests.of_contributions(items) == expected


def test_canonical_json_ignores_the_order_of_members() -> None:
    assert digests.of_json({"a": 1.0, "b": 2}) == digests.of_json({"b": 2, "a": 1.0})
    assert digests.of_json({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()


def test_a_keystore_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path, password = tmp_path / "k" / "key.json", tmp_path / "k" / "key.password"
    account = keystore.create(path, password)
    assert path.stat().st_mode & 0o077 == 0
    assert password.stat().st_mode & 0o077 == 0
    assert account.key.hex().removeprefix("0x") not in path.read_text()
    assert keystore.load(path, password).address == account.address
    assert keystore.ensure(path, password).address == account.address
    with pytest.raises(keystore.KeystoreError, match="not overwritten"):
        keystore.create(path, tmp_path / "other")
    password.write_text("wrong")
    with pytest.raises(keystore.KeystoreError, match="does not open"):
        keystore.load(path, password)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 3}', json.dumps({"crypto": {}, "version": 9})])
def test_a_file_that_is_no_keystore(tmp_path: Path, content: str) -> None:
    (tmp_path / "k").write_text(content)
    (tmp_path / "p").write_text("x")
    with pytest.raises(keystore.KeystoreError):
        keystore.load(tmp_path / "k", tmp_path / "p")
    with pytest.raises(keystore.KeystoreError, match="missing"):
        keystore.load(tmp_path / "none", tmp_path / "p")


@pytest.mark.parametrize("address", ["0x12", "12" * 20, "0x" + "zz" * 20])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValidationError):
        UPDATE.model_validate({**UPDATE.model_dump(), "hospital": address})
