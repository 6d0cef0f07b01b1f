"""Roles: one suite for the contract's roles over HTTP and for the double; and what a lost chain service looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import httpx
import pytest
from concilia_auth import chain
from concilia_auth.chain import ChainId, ChainRoles, Roles
from concilia_auth.errors import ChainUnavailable
from concilia_kit import http
from concilia_kit.problems import Problem
from concilia_kit.roles import Role

ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
STRANGER = "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"
Held = MutableMapping[str, frozenset[Role]]


@pytest.fixture
def chain_http(chain_service: Any) -> Iterator[httpx.Client]:
    with http.client(chain_service.url) as client:
        yield client


@pytest.fixture(params=["memory", "chain"])
def roles_and_held(request: pytest.FixtureRequest) -> tuple[Roles, Held]:
    if request.param == "memory":
        double = request.getfixturevalue("memory_roles")
        return double, double.held
    held = request.getfixturevalue("chain_service").held
    return ChainRoles(request.getfixturevalue("chain_http")), held


def test_auth_roles_are_those_held_now(roles_and_held: tuple[Roles, Held]) -> None:
    roles, held = roles_and_held
    assert roles.of(ADDRESS) == frozenset()
    held[ADDRESS] = frozenset({Role.HOSPITAL, Role.ADMIN})
    assert roles.of(ADDRESS) == {Role.ADMIN, Role.HOSPITAL}
    assert roles.of(STRANGER) == frozenset()
    held[ADDRESS] = frozenset({Role.AUDITOR})
    assert roles.of(ADDRESS) == {Role.AUDITOR}


def test_auth_chain_id_is_asked_once(chain_http: httpx.Client, chain_service: Any) -> None:
    chain_id = ChainId(chain_http)
    assert chain_service.contract_asked == 0
    assert [chain_id(), chain_id()] == [1337, 1337]
    assert chain_service.contract_asked == 1


def test_auth_chain_id_as_configured_is_not_asked(chain_http: httpx.Client, chain_service: Any) -> None:
    assert ChainId(chain_http, 5)() == 5
    assert chain_service.contract_asked == 0


def test_auth_chain_that_answers_for_another_address_is_not_believed(
    chain_http: httpx.Client, chain_service: Any
) -> None:
    chain_service.impostor = STRANGER
    with pytest.raises(ChainUnavailable, match="another address"):
        ChainRoles(chain_http).of(ADDRESS)


@pytest.mark.parametrize(
    "respond",
    [
        lambda _: httpx.Response(404, json={"code": "not_found", "detail": "no such path"}),
        lambda _: httpx.Response(200, json={"address": ADDRESS, "roles": ["king"], "hospital_number": 0, "nonce": 0}),
        lambda _: httpx.Response(200, text="<html>"),
    ],
)
def test_auth_chain_that_answers_nonsense_is_unavailable(respond: Callable[[httpx.Request], httpx.Response]) -> None:
    with http.client("http://chain", transport=httpx.MockTransport(respond)) as client:
        with pytest.raises(ChainUnavailable):
            ChainRoles(client).of(ADDRESS)
        with pytest.raises(ChainUnavailable):
            ChainId(client)()


def test_auth_chain_readiness(chain_http: httpx.Client, free_port: Callable[[], int]) -> None:
    chain.answer(chain_http)
    with http.client(f"http://127.0.0.1:{free_port()}") as nobody, pytest.raises(Problem):
        chain.answer(nobody)
