"""What the aggregator counts on of a ledger: one suite for the chain service on an EVM and for the tests' double."""

from __future__ import annotations

import importlib.util
import secrets
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import anyio.from_thread
import anyio.to_thread
import httpx
import pytest
from concilia_aggregator.ledger import ChainLedger, Ledger
from concilia_kit.digests import Contribution, of_contributions
from concilia_kit.http import raise_for_problem
from concilia_kit.problems import Problem
from concilia_kit.roles import Role
from concilia_kit.wire.chain import (
    LedgerRound,
    Publication,
    Reason,
    Rejection,
    RoundClosure,
    RoundOpening,
    RoundStatus,
)
from eth_account import Account
from eth_account.signers.local import LocalAccount


class World(Protocol):
    """A ledger, and those who do on it what is not the aggregator's."""

    ledger: Ledger

    def hospital(self) -> str: ...

    def dismiss(self, hospital: str) -> None: ...

    def submit(self, opening: RoundOpening, hospital: str) -> None: ...


class Bridge(httpx.BaseTransport):
    """Calls of a synchronous client, from a thread, to an application in the event loop."""

    def __init__(self, consortium: Any) -> None:
        self._to = consortium

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        headers = {"Content-Type": "application/json", **self._to.headers(Role.COORDINATOR)}
        path = request.url.raw_path.decode()
        ask = partial(self._to.http.request, request.method, path, content=request.read(), headers=headers)
        answer = anyio.from_thread.run(ask)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


class RealWorld:
    """The chain service on an EVM; to be used from a thread."""

    def __init__(self, consortium: Any) -> None:
        self._consortium = consortium
        self._accounts: dict[str, LocalAccount] = {}
        self.ledger: Ledger = ChainLedger(httpx.Client(transport=Bridge(consortium), base_url="http://chain"))

    def hospital(self) -> str:
        account = anyio.from_thread.run(self._consortium.hospital)
        self._accounts[account.address] = account
        return str(account.address)

    def dismiss(self, hospital: str) -> None:
        raise_for_problem(anyio.from_thread.run(self._consortium.change, Role.HOSPITAL, hospital, False))

    def submit(self, opening: RoundOpening, hospital: str) -> None:
        submission = self._consortium.submission(self._accounts[hospital], opening)
        raise_for_problem(anyio.from_thread.run(self._consortium.submit, submission))


class DoubleWorld:
    """The double of the aggregator's tests."""

    def __init__(self) -> None:
        path = Path(__file__).parents[2] / "unit" / "aggregator" / "conftest.py"
        spec = importlib.util.spec_from_file_location("aggregator_doubles", path)
        assert spec is not None
        assert spec.loader is not None
        doubles = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
        spec.loader.exec_module(doubles)
        self._double = doubles.MemoryLedger()
        self.ledger: Ledger = self._double

    def hospital(self) -> str:
        address = str(Account.create().address)
        self._double.members.add(address)
        return address

    def dismiss(self, hospital: str) -> None:
        self._double.members.remove(hospital)

    def submit(self, opening: RoundOpening, hospital: str) -> None:
        self._double.submit(opening.job, opening.round, hospital, secrets.token_hex(32))


def opened(world: World, **changes: Any) -> RoundOpening:
    fields = {
        "job": secrets.token_hex(32),
        "round": 1,
        "base": secrets.token_hex(32),
        "deadline": int(time.time()) + 600,
        "quorum": 1,
        **changes,
    }
    opening = RoundOpening.model_validate(fields)
    for _ in range(2):
        world.ledger.open(opening)
    return opening


def read(world: World, opening: RoundOpening) -> LedgerRound:
    found = world.ledger.round(opening.job, opening.round)
    assert found is not None
    return found


def closure(recorded: LedgerRound, **changes: Any) -> RoundClosure:
    accepted = [
        Contribution(item.update.hospital, item.update.digest, item.update.samples) for item in recorded.accepted()
    ]
    fields = {
        "global_digest": "ab" * 32,
        "contributions": of_contributions(accepted),
        "count": len(accepted),
        **changes,
    }
    return RoundClosure.model_validate(fields)


def refused(what: Callable[[], None], code: str | None = None) -> None:
    with pytest.raises(Problem) as caught:
        what()
    assert 400 <= caught.value.problem_status < 500
    assert code is None or caught.value.problem_code == code


def hospitals_come_and_go(world: World) -> None:
    ours = {world.hospital(), world.hospital()}
    assert ours <= world.ledger.hospitals()
    gone = ours.pop()
    world.dismiss(gone)
    assert gone not in world.ledger.hospitals()
    assert world.ledger.round("ee" * 32, 1) is None


def updates_are_recorded_each_by_itself(world: World) -> None:
    one, two = world.hospital(), world.hospital()
    opening = opened(world)
    assert not read(world, opening).merkle
    for hospital in (one, two):
        world.submit(opening, hospital)
    recorded = read(world, opening)
    assert {item.update.hospital for item in recorded.updates} == {one, two}
    assert (recorded.submitted, recorded.collected, recorded.root) == (2, (), None)
    refused(lambda: world.ledger.commit(opening.job, 1), "nothing_collected")
    refused(lambda: world.ledger.close(opening.job, 1, closure(recorded, count=1)), "contribution_count_mismatch")
    world.ledger.reject(opening.job, 1, Rejection(hospital=two, reason=Reason.NON_FINITE))
    left = read(world, opening)
    assert [item.update.hospital for item in left.accepted()] == [one]
    for _ in range(2):
        world.ledger.close(opening.job, 1, closure(left))
    assert (read(world, opening).status, read(world, opening).global_digest) == (RoundStatus.CLOSED, "ab" * 32)
    for _ in range(2):
        world.ledger.publish(Publication(job=opening.job, digest="ab" * 32))


def updates_are_collected_and_committed(world: World) -> None:
    some = [world.hospital() for _ in range(4)]
    *counted, late = some
    opening = opened(world, merkle=True)
    refused(lambda: world.ledger.commit(opening.job, 1), "nothing_collected")
    for hospital in counted:
        world.submit(opening, hospital)
    collected = read(world, opening)
    assert (collected.merkle, collected.submitted, collected.updates, collected.root) == (True, 0, (), None)
    assert set(collected.collected) == set(counted)
    refused(lambda: world.ledger.reject(opening.job, 1, Rejection(hospital=counted[0], reason=Reason.NON_FINITE)))
    refused(lambda: world.ledger.close(opening.job, 1, closure(collected, count=3)))
    for _ in range(2):
        world.ledger.commit(opening.job, 1)
    committed = read(world, opening)
    in_order = sorted(counted, key=lambda address: int(address, 16))
    assert [(item.index, item.update.hospital) for item in committed.updates] == list(enumerate(in_order))
    assert (committed.submitted, committed.collected, committed.root is None) == (3, (), False)
    refused(lambda: world.submit(opening, late), "already_committed")
    refused(lambda: world.ledger.reject(opening.job, 1, Rejection(hospital=late, reason=Reason.NON_FINITE)))
    world.ledger.reject(opening.job, 1, Rejection(hospital=in_order[1], reason=Reason.NORM_TOO_LARGE))
    left = read(world, opening)
    assert [item.update.hospital for item in left.accepted()] == [in_order[0], in_order[2]]
    refused(lambda: world.ledger.close(opening.job, 1, closure(left, count=3)), "contribution_count_mismatch")
    for _ in range(2):
        world.ledger.close(opening.job, 1, closure(left))
    assert read(world, opening).status is RoundStatus.CLOSED


def who_was_dismissed_is_not_committed(world: World) -> None:
    stays, goes = world.hospital(), world.hospital()
    opening = opened(world, merkle=True)
    for hospital in (stays, goes):
        world.submit(opening, hospital)
    world.dismiss(goes)
    world.ledger.commit(opening.job, 1)
    assert [item.update.hospital for item in read(world, opening).updates] == [stays]


def rounds_are_given_up_in_either_mode(world: World) -> None:
    hospital = world.hospital()
    for merkle in (False, True):
        opening = opened(world, merkle=merkle)
        world.submit(opening, hospital)
        for _ in range(2):
            world.ledger.abort(opening.job, 1)
        assert read(world, opening).status is RoundStatus.ABORTED
        refused(lambda given_up=opening: world.ledger.commit(given_up.job, 1))  # type: ignore[misc]
        refused(lambda given_up=opening: world.submit(given_up, hospital), "round_not_open")  # type: ignore[misc]


CASES = [
    hospitals_come_and_go,
    updates_are_recorded_each_by_itself,
    updates_are_collected_and_committed,
    who_was_dismissed_is_not_committed,
    rounds_are_given_up_in_either_mode,
]
named = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)


@named
async def test_the_chain_service(case: Callable[[World], None], consortium: Any) -> None:
    await anyio.to_thread.run_sync(case, RealWorld(consortium))


@named
def test_the_double(case: Callable[[World], None]) -> None:
    case(DoubleWorld())
