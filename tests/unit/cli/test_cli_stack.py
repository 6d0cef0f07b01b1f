"""Where a stack's processes listen and what they are told, with pages and without."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from concilia.connection import UsageError
from concilia.stack import demo
from concilia.stack.enrolment import enrol, make_keys
from concilia.stack.front_door.settings import FrontSettings
from concilia.stack.layout import Layout, Process, Site
from concilia_kit import keystore
from concilia_kit.roles import Role
from concilia_kit.sealing import StoreKey
from eth_account import Account
from eth_account.signers.local import LocalAccount

SITES = [Site("one", "collection:one"), Site("two", "collection:two")]
ADMIN = "0x00000000000000000000000000000000000000aD"


def processes(layout: Layout) -> dict[str, Process]:
    return {process.name: process for process in layout.processes(ADMIN, Path("/data"), SITES, 1)}


def ports(started: Mapping[str, Process]) -> list[int]:
    return [int(value) for each in started.values() for name, value in each.environment.items() if name[-5:] == "_PORT"]


@pytest.mark.parametrize("pages", [None, Path("frontend/dist")])
def test_every_port_is_somebodys_and_known(tmp_path: Path, pages: Path | None) -> None:
    layout = Layout(tmp_path, 9000, pages)
    started = processes(layout)
    known = layout.ports(len(SITES))
    assert sorted([*ports(started), layout.port_of("redis")]) == sorted(known)
    assert len(known) == 7 + (pages is not None)
    assert ("front" in known.values()) is ("front-door" in started) is (pages is not None)


def test_nodes_alone_are_told_what_is_declared(tmp_path: Path) -> None:
    layout, declared = Layout(tmp_path, 9000), tmp_path / "chest.json"
    for given, told in ((None, {}), (declared, {"node-0": str(declared), "node-1": str(declared)})):
        started = layout.processes(ADMIN, Path("/data"), SITES, 1, given)
        named = {
            each.name: value
            for each in started
            for name, value in each.environment.items()
            if name.endswith("CLASSIFICATION")
        }
        assert named == told


def test_the_store_of_a_sealed_stack_has_a_key_that_no_other_process_is_told(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "demo", 9000, sealed=True)
    make_keys(layout, len(SITES))
    assert layout.sealing_key.stat().st_mode & 0o777 == 0o600
    key = StoreKey.read(layout.sealing_key).id
    make_keys(layout, len(SITES))
    assert StoreKey.read(layout.sealing_key).id == key  # never another one over a store
    told = {each.name for each in processes(layout).values() if str(layout.sealing_key) in each.environment.values()}
    assert told == {"model", "aggregator"}
    plain = processes(Layout(tmp_path, 9000)).values()
    assert not [name for each in plain for name in each.environment if "SEALING" in name]


def test_without_pages_people_sign_in_at_auth(tmp_path: Path) -> None:
    started = processes(Layout(tmp_path, 9000))
    auth = started["auth"].environment
    assert auth["CONCILIA_AUTH_DOMAIN"] == "127.0.0.1:9001"
    assert auth["CONCILIA_AUTH_URI"] == "http://127.0.0.1:9001"
    assert not [name for each in started.values() for name in each.environment if name.endswith("ROOT_PATH")]


def test_with_pages_people_sign_in_at_the_front_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = tmp_path / "dist"
    pages.mkdir()
    (tmp_path / "headers.json").write_text('{"Referrer-Policy": "no-referrer"}')
    layout = Layout(tmp_path, 9000, pages)
    started = processes(layout)
    assert next(reversed(started)) == "front-door"  # started last, stopped first
    auth = started["auth"].environment
    assert auth["CONCILIA_AUTH_DOMAIN"] == "127.0.0.1:9006"
    assert auth["CONCILIA_AUTH_URI"] == "http://127.0.0.1:9006" == layout.url("front")
    roots = {name: value for each in started.values() for name, value in each.environment.items() if "ROOT" in name}
    assert roots == {
        f"CONCILIA_{name.upper()}_ROOT_PATH": f"/api/{name}" for name in ("auth", "model", "aggregator", "chain")
    }
    door = started["front-door"]
    for name, value in door.environment.items():
        monkeypatch.setenv(name, value)
    settings = FrontSettings()  # type: ignore[call-arg]  # all of it comes from the environment
    assert settings.pages == pages
    assert (settings.auth_url, settings.chain_url) == (layout.url("auth"), layout.url("chain"))
    assert door.ready_url == f"http://127.0.0.1:{settings.port}/healthz"


def test_pages_that_were_not_built_are_said_so(tmp_path: Path) -> None:
    pages = tmp_path / "frontend" / "dist"
    layout = Layout(tmp_path / "demo", 9000, pages)
    with pytest.raises(UsageError, match="make pages"):
        demo._require_pages(layout)
    pages.mkdir(parents=True)
    (pages / "index.html").touch()
    with pytest.raises(UsageError, match="make pages"):
        demo._require_pages(layout)
    (pages.parent / "headers.json").write_text("{}")
    demo._require_pages(layout)
    demo._require_pages(Layout(tmp_path, 9000))


class _Granted:
    """Takes what an administrator signs."""

    def __init__(self) -> None:
        self.roles: dict[str, Role] = {}

    def change_role(self, role: Role, address: str, *, granted: bool, deadline: int) -> None:
        assert granted
        self.roles[address] = role


def test_everybody_gets_a_key_and_their_role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(path: Path, password: Path) -> LocalAccount:  # a second a key, if they were encrypted
        assert password == path.with_suffix(".password")
        return Account.from_key(hashlib.sha256(str(path).encode()).digest())

    monkeypatch.setattr(keystore, "ensure", quick)
    layout = Layout(tmp_path, 9000)
    addresses = make_keys(layout, nodes=1)
    assert len(set(addresses.values())) == len(addresses) == 7
    granted = _Granted()
    enrol(granted, addresses)  # type: ignore[arg-type]  # the one method that it needs
    assert {name: granted.roles.get(address) for name, address in addresses.items()} == {
        "admin": None,
        "chain": None,
        "clinician": Role.CLINICIAN,
        "auditor": Role.AUDITOR,
        "aggregator": Role.COORDINATOR,
        "model": Role.AUDITOR,
        "node-0": Role.HOSPITAL,
    }
