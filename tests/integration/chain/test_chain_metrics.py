"""What is measured of real transactions on the EVM within the process."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from concilia_chain.errors import ChainUnavailable
from concilia_kit.wire.chain import Receipt
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def samples(consortium: Any) -> Samples:
    text = (await consortium.http.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(found: Samples, name: str, **labels: str) -> float:
    return found.get((f"concilia_{name}", frozenset(labels.items())), 0.0)


async def test_confirmed_repeated_and_refused_calls(consortium: Any) -> None:
    opening = consortium.opening()
    receipt = Receipt.model_validate((await consortium.post("/v1/rounds", opening)).json())
    assert (await consortium.post("/v1/rounds", opening)).status_code == 200
    assert (await consortium.post("/v1/rounds", consortium.opening(round=7))).status_code == 409
    found = await samples(consortium)
    for outcome in ("confirmed", "repeated", "refused"):
        assert of(found, "transactions_total", function="openRound", outcome=outcome) == 1, outcome
    assert of(found, "transaction_gas_sum", function="openRound") == receipt.gas > 21_000
    assert of(found, "transaction_gas_count", function="openRound") == 1
    assert of(found, "transaction_seconds_count", function="openRound") == 1
    spent = of(found, "transaction_seconds_sum", function="openRound")
    assert abs(spent - (receipt.confirmed_at - receipt.received_at).total_seconds()) < 1e-5


async def test_a_call_that_does_not_get_through_has_failed(consortium: Any, monkeypatch: Any) -> None:
    def away(*_: Any) -> None:
        raise ChainUnavailable("nobody there")

    monkeypatch.setattr(consortium.app.state.service._relay, "gas", away)
    assert (await consortium.post("/v1/rounds", consortium.opening())).status_code == 503
    found = await samples(consortium)
    assert of(found, "transactions_total", function="openRound", outcome="failed") == 1
    assert of(found, "transaction_seconds_count", function="openRound") == 0


async def test_the_follower_is_shown_beside_the_chain(consortium: Any) -> None:
    await consortium.open()
    head = consortium.client.eth.block_number
    for _ in range(200):
        found = await samples(consortium)
        if of(found, "chain_block") == head and of(found, "follower_lag_blocks") == 0:
            break
        await asyncio.sleep(0.02)
    assert of(found, "chain_block") == head > 0
    assert of(found, "follower_lag_blocks") == 0
    assert of(found, "follower_idle_seconds") >= 0


async def test_a_node_that_is_away_does_not_hold_a_scrape_up(consortium: Any, monkeypatch: Any) -> None:
    follower = consortium.app.state.reading._follower
    asked: list[int] = []

    def away() -> int:
        asked.append(1)
        raise ConnectionError

    monkeypatch.setattr(consortium.app.state.service._ledger, "head", away)
    while not asked:  # what was under way has ended
        await asyncio.sleep(0.02)
    before = follower.standing()
    while len(asked) < 4:
        await asyncio.sleep(0.02)
    found = await samples(consortium)
    assert of(found, "chain_block") == before.head
    assert of(found, "follower_idle_seconds") > before.idle_seconds


async def test_nothing_of_a_job_or_a_hospital_becomes_a_label(consortium: Any) -> None:
    hospital = await consortium.hospital()
    opening = await consortium.open()
    await consortium.submit(consortium.submission(hospital, opening))
    await consortium.get(f"/v1/jobs/{opening.job}")
    await consortium.http.get(f"/v1/members/{hospital.address}")
    await consortium.http.get(f"/{secrets.token_hex(32)}")
    text = (await consortium.http.get("/metrics")).text.lower()
    assert 'function="submitupdates"' in text
    assert opening.job not in text
    assert hospital.address.lower()[2:] not in text
