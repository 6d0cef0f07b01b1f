"""Roles of this moment: fresh, stale and unknown; and tokens that they narrow."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import pytest
from concilia_kit import http, standing
from concilia_kit.problems import MEDIA_TYPE, NotFound, Unavailable
from concilia_kit.roles import Role
from concilia_kit.standing import CurrentRoles, CurrentRoll
from concilia_kit.wire.chain import AccountRoles, Roll
from hypothesis import given
from hypothesis import strategies as st

ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
OTHER = "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"


@dataclass
class ChainDouble:
    """The chain service's members as it shows them, and a clock. `trouble` takes the place of an answer."""

    held: dict[str, frozenset[Role]] = field(default_factory=dict)
    trouble: Callable[[], httpx.Response] | None = None
    asked: Counter[str] = field(default_factory=Counter)
    now: float = 1000.0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        address = request.url.path.removeprefix("/v1/members/").removesuffix("/roles")
        assert request.method == "GET"
        assert request.url.path == f"/v1/members/{address}/roles"
        self.asked[address] += 1
        if self.trouble is not None:
            return self.trouble()
        return told(address, self.held.get(address, frozenset()))

    def roles(self, fresh: float = 1.0, stale: float = 60.0) -> CurrentRoles:
        chain = http.client("http://chain", transport=httpx.MockTransport(self))
        return CurrentRoles(chain, fresh, stale, clock=lambda: self.now, wall=lambda: self.now)


def told(address: str, roles: frozenset[Role]) -> httpx.Response:
    answer = AccountRoles(address=address, roles=tuple(sorted(roles)), block=7)
    return httpx.Response(200, content=answer.model_dump_json())


def refused() -> httpx.Response:
    raise httpx.ConnectError("nobody is there")


def hangs() -> httpx.Response:
    raise httpx.ReadTimeout("no answer")


def unknown() -> httpx.Response:
    document = NotFound("no such route").document()
    return httpx.Response(404, json=document, headers={"Content-Type": MEDIA_TYPE})


TROUBLES = [
    refused,
    hangs,
    unknown,
    lambda: httpx.Response(503),
    lambda: httpx.Response(200, content=b"<html>"),
    lambda: httpx.Response(200, json={"address": ADDRESS, "roles": ["emperor"], "block": 1}),
    lambda: told(OTHER, frozenset({Role.ADMIN})),
]


@pytest.fixture
def chain() -> ChainDouble:
    return ChainDouble()


def test_standing_asks_once_while_an_answer_is_fresh_and_then_anew(chain: ChainDouble) -> None:
    roles = chain.roles()
    chain.held[ADDRESS] = frozenset({Role.CLINICIAN, Role.AUDITOR})
    assert roles(ADDRESS) == {Role.CLINICIAN, Role.AUDITOR}
    chain.held[ADDRESS] = frozenset({Role.AUDITOR})
    chain.now += 1.0
    assert roles(ADDRESS) == {Role.CLINICIAN, Role.AUDITOR}
    assert chain.asked[ADDRESS] == 1
    chain.now += 0.01
    assert roles(ADDRESS) == {Role.AUDITOR}
    assert chain.asked[ADDRESS] == 2


def test_standing_keeps_addresses_apart(chain: ChainDouble) -> None:
    roles = chain.roles()
    chain.held[ADDRESS] = frozenset({Role.ADMIN})
    assert roles(ADDRESS) == {Role.ADMIN}
    assert roles(OTHER) == frozenset()


@pytest.mark.parametrize("trouble", TROUBLES)
def test_standing_of_the_last_answer_counts_for_a_while(
    chain: ChainDouble, trouble: Callable[[], httpx.Response]
) -> None:
    roles = chain.roles()
    chain.held[ADDRESS] = frozenset({Role.HOSPITAL})
    roles(ADDRESS)
    chain.trouble = trouble
    chain.now += 60.0
    assert roles(ADDRESS) == {Role.HOSPITAL}
    chain.now += 0.01
    with pytest.raises(Unavailable) as raised:
        roles(ADDRESS)
    assert raised.value.problem_code == "roles_unavailable"
    chain.trouble = None
    chain.now += 1.01
    assert roles(ADDRESS) == {Role.HOSPITAL}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_standing_of_an_address_never_told_is_unavailable(
    chain: ChainDouble, trouble: Callable[[], httpx.Response]
) -> None:
    chain.trouble = trouble
    with pytest.raises(Unavailable):
        chain.roles()(ADDRESS)


def test_standing_does_not_hammer_a_chain_service_that_fails(chain: ChainDouble) -> None:
    roles = chain.roles()
    chain.held[ADDRESS] = frozenset({Role.HOSPITAL})
    roles(ADDRESS)
    chain.trouble = hangs
    chain.now += 2
    for _ in range(20):
        assert roles(ADDRESS) == {Role.HOSPITAL}
    assert chain.asked[ADDRESS] == 2
    for _ in range(20):
        with pytest.raises(Unavailable):
            roles(OTHER)
    assert chain.asked[OTHER] == 1


def test_standing_remembers_so_many_addresses_and_no_more(chain: ChainDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "_CAPACITY", 3)
    roles = chain.roles()
    addresses = [f"0x{number:040x}" for number in range(1, 5)]
    for address in addresses:  # digits alone: their EIP-55 checksum is themselves
        roles(address)
    assert len(roles._known) == 3
    chain.trouble = refused
    for address in addresses[1:]:
        assert roles(address) == frozenset()
    with pytest.raises(Unavailable):  # the oldest is forgotten
        roles(addresses[0])


def test_standing_answer_that_comes_late_does_not_undo_a_later_one(chain: ChainDouble) -> None:
    """A question of before a revocation, answered after one of after it."""
    chain.held[ADDRESS] = frozenset({Role.ADMIN})
    asked, answer = threading.Event(), threading.Event()

    def slow() -> httpx.Response:
        chain.trouble = None
        asked.set()
        assert answer.wait(10)
        return told(ADDRESS, frozenset({Role.ADMIN}))

    chain.trouble = slow
    roles = chain.roles()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(roles, ADDRESS)
        assert asked.wait(10)
        chain.held[ADDRESS] = frozenset()
        chain.now += 0.5
        assert roles(ADDRESS) == frozenset()
        answer.set()
        assert late.result(10) == frozenset()
    assert roles(ADDRESS) == frozenset()


_roles = st.frozensets(st.sampled_from(Role))
_steps = st.lists(st.tuples(st.floats(0, 90), st.none() | _roles), min_size=1, max_size=30)


@given(_steps)
def test_standing_is_never_older_than_it_may_be(steps: list[tuple[float, frozenset[Role] | None]]) -> None:
    """Whatever happens (None: the chain service is away), roles told were the ledger's within the last 60 s, and
    where the chain service has not failed for a second, within that second."""
    chain = ChainDouble()
    roles = chain.roles()
    history: list[tuple[float, frozenset[Role]]] = [(chain.now, frozenset())]
    failed = float("-inf")
    for pause, state in steps:
        chain.now += pause
        chain.trouble = refused if state is None else None
        failed = chain.now if state is None else failed
        if state is not None:
            chain.held[ADDRESS] = state
            history.append((chain.now, state))
        age = 60.0 if chain.now - failed <= 1.0 else 1.0
        try:
            said = roles(ADDRESS)
        except Unavailable:
            continue
        since = [held for at, held in history if at > chain.now - age]
        before = [held for at, held in history if at <= chain.now - age][-1:]
        assert said in since + before


def test_standing_is_asked_again_for_a_token_that_is_newer_than_what_is_known() -> None:
    chain = ChainDouble()
    roles = chain.roles()
    assert roles(ADDRESS) == frozenset()
    chain.held[ADDRESS] = frozenset({Role.CLINICIAN})
    assert roles(ADDRESS) == frozenset()
    assert roles(ADDRESS, as_of=chain.now + 0.5) == {Role.CLINICIAN}
    chain.now += 0.6
    assert roles(ADDRESS, as_of=chain.now - 0.1) == {Role.CLINICIAN}
    asked = chain.asked[ADDRESS]
    assert roles(ADDRESS, as_of=chain.now - 0.1) == {Role.CLINICIAN}
    assert chain.asked[ADDRESS] == asked


def test_standing_does_not_hammer_a_chain_service_that_does_not_answer() -> None:
    chain = ChainDouble(held={ADDRESS: frozenset({Role.CLINICIAN})})
    roles = chain.roles()
    assert roles(ADDRESS) == {Role.CLINICIAN}
    chain.trouble, chain.now = refused, chain.now + 0.5
    for _ in range(5):
        assert roles(ADDRESS, as_of=chain.now) == {Role.CLINICIAN}
    assert chain.asked[ADDRESS] == 2


# Everybody's roles together


@dataclass
class RollDouble:
    """The chain service's roll as it shows it, with its entity tag, and a clock."""

    held: dict[str, frozenset[Role]] = field(default_factory=dict)
    trouble: Callable[[], httpx.Response] | None = None
    statuses: list[int] = field(default_factory=list)
    now: float = 1000.0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("GET", "/v1/roles")
        answer = self.trouble() if self.trouble is not None else self._answer(request)
        self.statuses.append(answer.status_code)
        return answer

    def _answer(self, request: httpx.Request) -> httpx.Response:
        content = Roll(roles={address: tuple(sorted(held)) for address, held in self.held.items()}).model_dump_json()
        tag = f'"{hash(content)}"'
        if request.headers.get("If-None-Match") == tag:
            return httpx.Response(304)
        return httpx.Response(200, content=content, headers={"ETag": tag})

    def roles(self, fresh: float = 1.0, stale: float = 60.0) -> CurrentRoll:
        chain = http.client("http://chain", transport=httpx.MockTransport(self))
        return CurrentRoll(chain, fresh, stale, clock=lambda: self.now, wall=lambda: self.now)


def test_roll_is_asked_for_once_for_everybody_and_told_again_only_where_it_changed() -> None:
    chain = RollDouble(held={ADDRESS: frozenset({Role.ADMIN})})
    roles = chain.roles()
    assert roles.at_once(ADDRESS) is None
    assert (roles(ADDRESS), roles(OTHER), roles.at_once(ADDRESS)) == ({Role.ADMIN}, frozenset(), {Role.ADMIN})
    chain.now += 1.01
    assert roles.at_once(ADDRESS) is None
    assert roles(OTHER) == frozenset()
    chain.held[OTHER] = frozenset({Role.HOSPITAL})
    chain.now += 1.01
    assert (roles(ADDRESS), roles(OTHER)) == ({Role.ADMIN}, {Role.HOSPITAL})
    assert chain.statuses == [200, 304, 200]


@pytest.mark.parametrize(
    "trouble", [refused, hangs, unknown, lambda: httpx.Response(200, json={"roles": {"0x": ["x"]}})]
)
def test_roll_of_the_last_answer_counts_for_a_while(trouble: Callable[[], httpx.Response]) -> None:
    chain = RollDouble(held={ADDRESS: frozenset({Role.HOSPITAL})})
    roles = chain.roles()
    roles(ADDRESS)
    chain.trouble = trouble
    chain.now += 60.0
    assert roles(ADDRESS) == {Role.HOSPITAL}
    assert roles.at_once(ADDRESS) == {Role.HOSPITAL}
    chain.now += 0.01
    assert roles.at_once(ADDRESS) is None
    with pytest.raises(Unavailable):
        roles(ADDRESS)


def test_roll_is_asked_for_again_for_a_token_that_is_newer() -> None:
    chain = RollDouble()
    roles = chain.roles()
    assert roles(ADDRESS) == frozenset()
    chain.held[ADDRESS] = frozenset({Role.CLINICIAN})
    assert roles.at_once(ADDRESS, as_of=chain.now + 0.5) is None
    assert roles(ADDRESS, as_of=chain.now + 0.5) == {Role.CLINICIAN}


def test_roll_is_asked_for_by_one_of_many() -> None:
    chain = RollDouble(held={ADDRESS: frozenset({Role.ADMIN})})
    asked, answer = threading.Event(), threading.Event()

    def slow() -> httpx.Response:
        chain.trouble = None
        asked.set()
        assert answer.wait(10)
        return chain._answer(httpx.Request("GET", "http://chain/v1/roles"))

    chain.trouble = slow
    roles = chain.roles()
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(roles, ADDRESS) for _ in range(8)]
        assert asked.wait(10)
        answer.set()
        assert {each.result(10) for each in waiting} == {frozenset({Role.ADMIN})}
    assert chain.statuses == [200]
