"""What the service refuses, each with its own code, and none of it paid for."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from concilia_kit.roles import Role
from concilia_kit.signing import RoleChange, sign
from eth_account import Account


@pytest.fixture
def refused(consortium: Any) -> Callable[..., Awaitable[Any]]:
    """Await an answer that must be a contract's refusal, and see that no transaction was sent for it."""

    async def check(asking: Awaitable[Any], status: int, code: str, error: str, free: bool = True) -> dict[str, Any]:
        relay = (await consortium.get("/v1/members", role="coordinator")).json()[0]["address"]
        wealth = consortium.client.eth.get_balance(relay)
        answer = await asking
        assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["contract_error"] == error
        assert (consortium.client.eth.get_balance(relay) == wealth) == free
        arguments: dict[str, Any] = answer.json()["arguments"]
        return arguments

    return check


async def test_updates(consortium: Any, refused: Any) -> None:
    hospital, other = await consortium.hospital(), await consortium.hospital()
    opening = await consortium.open()

    def submit(*arguments: Any, **replaced: Any) -> Any:
        return consortium.submit(consortium.submission(*arguments, **replaced))

    forged = submit(hospital, opening, key=other)
    assert await refused(forged, 422, "invalid_signature", "InvalidSignature") == {"claimed": hospital.address}

    wrong = secrets.token_hex(32)
    arguments = await refused(submit(hospital, opening, base=wrong), 422, "base_mismatch", "BaseMismatch")
    assert arguments == {"expected": opening.base, "given": wrong}

    await refused(submit(hospital, opening, samples=0), 422, "no_samples", "NoSamples")
    await refused(submit(hospital, opening, digest="0" * 64), 422, "empty_value", "EmptyValue")
    await refused(submit(hospital, opening, round=2), 409, "round_not_open", "RoundNotOpen")

    stranger = Account.create()
    assert await refused(submit(stranger, opening), 403, "not_hospital", "NotHospital") == {"account": stranger.address}

    good = consortium.submission(hospital, opening)
    tampered = good.model_copy(update={"update": good.update.model_copy(update={"samples": 10**9})})
    await refused(consortium.submit(tampered), 422, "invalid_signature", "InvalidSignature")
    assert (await consortium.submit(good)).status_code == 201
    assert (await consortium.submit(good)).status_code == 200  # the same update: it is there
    twice = await refused(submit(hospital, opening), 409, "already_submitted", "AlreadySubmitted")
    assert twice == {"job": opening.job, "round": 1, "hospital": hospital.address}


async def test_an_update_after_the_deadline(consortium: Any, refused: Any) -> None:
    hospital = await consortium.hospital()
    deadline = int(time.time()) + 2
    opening = await consortium.open(deadline=deadline)
    while time.time() < deadline + 1:
        time.sleep(0.05)
    # No block came in between: the dry run must see the time of now and not of the last block.
    late = consortium.submit(consortium.submission(hospital, opening))
    # But Ganache dry-runs at the last block's time whatever it is asked: there the chain itself refuses, for a fee.
    free = "Ganache" not in consortium.client.client_version
    arguments = await refused(late, 409, "deadline_passed", "DeadlinePassed", free)
    assert arguments["deadline"] == deadline
    assert arguments["timestamp"] > deadline


async def test_metrics_that_were_not_signed(consortium: Any) -> None:
    hospital = await consortium.hospital()
    opening = await consortium.open()
    good = consortium.submission(hospital, opening)
    other = good.model_copy(update={"metrics": good.metrics.model_copy(update={"images": 7})})
    answer = await consortium.submit(other)
    assert (answer.status_code, answer.json()["code"]) == (422, "metrics_mismatch")


async def test_rounds(consortium: Any, refused: Any) -> None:
    def open_round(**replaced: Any) -> Any:
        return consortium.post("/v1/rounds", consortium.opening(**replaced))

    await refused(open_round(round=2), 409, "round_out_of_order", "RoundOutOfOrder")
    await refused(open_round(base="0" * 64), 422, "empty_value", "EmptyValue")
    await refused(open_round(deadline=int(time.time()) - 5), 409, "deadline_passed", "DeadlinePassed")

    opening = await consortium.open(quorum=2)
    path = f"/v1/rounds/{opening.job}/1"
    await refused(open_round(job=opening.job, round=2), 409, "previous_round_open", "PreviousRoundOpen")

    hospital = await consortium.hospital()
    assert (await consortium.submit(consortium.submission(hospital, opening))).status_code == 201
    closure = {"global_digest": secrets.token_hex(32), "contributions": secrets.token_hex(32), "count": 1}
    few = consortium.post(f"{path}/closure", closure)
    assert await refused(few, 409, "quorum_not_reached", "QuorumNotReached") == {"accepted": 1, "quorum": 2}
    miscounted = consortium.post(f"{path}/closure", {**closure, "count": 2})
    await refused(miscounted, 409, "contribution_count_mismatch", "ContributionCountMismatch")

    absent = consortium.post(f"{path}/rejections", {"hospital": consortium.admin.address, "reason": 1})
    await refused(absent, 404, "update_not_found", "UpdateNotFound")
    rejection = {"hospital": hospital.address, "reason": 1}
    assert (await consortium.post(f"{path}/rejections", rejection)).status_code == 201
    again = consortium.post(f"{path}/rejections", {**rejection, "reason": 2})
    await refused(again, 409, "already_rejected", "AlreadyRejected")

    assert (await consortium.post(f"{path}/abort", None)).status_code == 201
    gone = consortium.post(f"{path}/closure", closure)
    await refused(gone, 409, "round_not_open", "RoundNotOpen")
    early = consortium.post("/v1/publications", {"job": opening.job, "digest": opening.base})
    await refused(early, 409, "not_head", "NotHead")


async def test_a_published_job_takes_no_further_round(consortium: Any, refused: Any) -> None:
    hospital = await consortium.hospital()
    opening = await consortium.open()
    assert (await consortium.submit(consortium.submission(hospital, opening))).status_code == 201
    model = secrets.token_hex(32)
    closure = {"global_digest": model, "contributions": secrets.token_hex(32), "count": 1}
    assert (await consortium.post(f"/v1/rounds/{opening.job}/1/closure", closure)).status_code == 201
    assert (await consortium.post("/v1/publications", {"job": opening.job, "digest": model})).status_code == 201
    more = consortium.post("/v1/rounds", consortium.opening(job=opening.job, round=2, base=model))
    await refused(more, 409, "job_published", "JobPublished")


async def test_role_changes(consortium: Any, refused: Any) -> None:
    account = Account.create().address
    replayed = consortium.change(Role.HOSPITAL, account, nonce=7)
    arguments = await refused(replayed, 409, "invalid_account_nonce", "InvalidAccountNonce")
    assert arguments == {"account": consortium.admin.address, "currentNonce": 0}
    late = consortium.change(Role.HOSPITAL, account, deadline=int(time.time()) - 5)
    await refused(late, 409, "deadline_passed", "DeadlinePassed")

    impostor = Account.create()
    change = RoleChange(role=Role.ADMIN, account=account, granted=True, nonce=0, deadline=int(time.time()) + 60)
    signed = {"change": change.model_dump(mode="json"), "signature": sign(change, consortium.domain, impostor)}
    forged = consortium.http.post("/v1/role-changes", json={**signed, "admin": consortium.admin.address})
    await refused(forged, 422, "invalid_signature", "InvalidSignature")
    powerless = consortium.http.post("/v1/role-changes", json={**signed, "admin": impostor.address})
    arguments = await refused(powerless, 403, "access_control_unauthorized_account", "AccessControlUnauthorizedAccount")
    assert arguments == {"account": impostor.address, "neededRole": "0" * 64}


async def test_a_paused_ledger(consortium: Any, refused: Any) -> None:
    consortium.send(consortium.admin, "pause")
    await refused(consortium.post("/v1/rounds", consortium.opening()), 409, "enforced_pause", "EnforcedPause")
    consortium.send(consortium.admin, "unpause")
    await consortium.open()


async def test_a_relay_that_is_no_coordinator_any_more(consortium: Any, refused: Any) -> None:
    relay = (await consortium.get("/v1/members", role="coordinator")).json()[0]["address"]
    assert (await consortium.change(Role.COORDINATOR, relay, granted=False)).status_code == 201
    answer = await consortium.post("/v1/rounds", consortium.opening())
    assert (answer.status_code, answer.json()["code"]) == (403, "access_control_unauthorized_account")


@pytest.mark.parametrize(
    ("method", "path", "roles"),
    [
        ("POST", "/v1/rounds", (Role.HOSPITAL, Role.ADMIN)),
        ("POST", f"/v1/rounds/{'a' * 64}/1/closure", (Role.HOSPITAL,)),
        ("POST", f"/v1/rounds/{'a' * 64}/1/rejections", (Role.HOSPITAL,)),
        ("POST", f"/v1/rounds/{'a' * 64}/1/abort", (Role.HOSPITAL,)),
        ("POST", "/v1/publications", (Role.HOSPITAL,)),
        ("POST", "/v1/updates", (Role.CLINICIAN, Role.AUDITOR)),
        ("GET", f"/v1/jobs/{'a' * 64}", ()),
        ("GET", "/v1/transactions", ()),
    ],
)
async def test_those_without_the_role(consortium: Any, method: str, path: str, roles: tuple[Role, ...]) -> None:
    answer = await consortium.http.request(method, path, headers=consortium.headers(*roles))
    assert (answer.status_code, answer.json()["code"]) == (403, "role_missing")
    nobody = await consortium.http.request(method, path)
    assert (nobody.status_code, nobody.json()["code"]) == (401, "unauthorized")


async def test_every_route_but_the_public_ones_wants_a_token(consortium: Any) -> None:
    public = {
        *("/healthz", "/readyz", "/v1/contract", "/v1/role-changes", "/v1/rpc"),
        *("/v1/members/{address}", "/v1/members/{address}/roles", "/v1/roles"),
    }
    document = consortium.app.openapi()
    open_paths = {
        path
        for path, methods in document["paths"].items()
        if not all(each.get("security") for each in methods.values())
    }
    assert open_paths == public


@pytest.mark.parametrize(
    "path",
    ["/v1/members/0x12", "/v1/jobs/xyz", f"/v1/jobs/{'a' * 64}/rounds/0", f"/v1/jobs/{'a' * 64}/rounds/4294967296"],
)
async def test_malformed_paths(consortium: Any, path: str) -> None:
    answer = await consortium.get(path)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_what_the_ledger_does_not_know(consortium: Any) -> None:
    job = "a" * 64
    assert (await consortium.get(f"/v1/jobs/{job}")).json()["code"] == "job_unknown"
    assert (await consortium.get(f"/v1/jobs/{job}/rounds/1")).json()["code"] == "round_unknown"
    assert (await consortium.get(f"/v1/jobs/{job}/events")).json() == []
