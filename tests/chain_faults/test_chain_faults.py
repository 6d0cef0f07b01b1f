"""A hundred hospitals' updates reach the ledger once each, through every fault that chains, networks and machines have.

Each test is one fault with a gateway's process, a chain and a round of its own. `World.conclude` says what holds after
every one of them: on the chain a hundred records with the digests that were posted, none twice; the gateway tells the
same; every hospital has its receipt; the relay's nonces are without gap, and nothing of it waits or was reverted.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from .anvil_node import GWEI, until
from .conftest import Make
from .fault_world import CONFIRMATIONS, Posting, World
from .rpc_proxy import FaultyNode, Moment

pytestmark = [pytest.mark.integration, pytest.mark.slow]

OUTAGE_SECONDS = 60.0
EARLY = 40
"""Hospitals that post before the fault, where others are to post while it lasts."""


def test_no_fault_batches_of_100(make: Make) -> None:
    with make(BATCH_UPDATES="100") as world:
        world.post()
        world.conclude()


def test_no_fault_batches_of_20(world: World) -> None:
    world.post()
    world.conclude()


def test_node_down_for_60_seconds(world: World) -> None:
    world.post(world.hospitals[:EARLY])
    until(world.recorded, 20, "a first record")
    world.proxy.down()
    world.post(world.hospitals[EARLY:])
    _elapse(OUTAGE_SECONDS)
    world.proxy.up()
    world.conclude()


def test_answer_to_a_broadcast_lost(world: World) -> None:
    lost = world.proxy.at_broadcast(1, Moment.AFTER, lambda: None)
    world.post()
    until(lost.is_set, 20, "an answer is lost")
    world.conclude()


@pytest.mark.parametrize("which", ["the_last", "all"])
def test_dropped_from_the_pool(world: World, which: str) -> None:
    world.miner.pause()
    world.post()
    waiting = until(world.pool, 20, "a transaction in the pool")
    for each in waiting[-1:] if which == "the_last" else reversed(waiting):
        world.anvil.rpc("anvil_dropTransaction", each["hash"])
    world.miner.resume()
    world.conclude()


def test_no_block_for_long_then_a_dearer_one(world: World) -> None:
    world.miner.pause()
    world.post()
    first, second = until(world.proxy.bumps, 20, "a transaction is sent again at a higher fee")[0]
    assert second.max_fee * 10 >= first.max_fee * 11, "nodes take a replacement only for a tenth more"
    world.miner.base_fee = 30 * GWEI
    world.miner.resume()
    world.conclude()
    assert max(each.max_fee for each in world.proxy.broadcasts) >= 30 * GWEI


def test_too_dear_for_a_while(make: Make) -> None:
    cap = 10
    with make(MAX_FEE_GWEI=str(cap)) as world:
        world.miner.pause()
        world.miner.base_fee = 30 * GWEI
        world.post()
        until(world.proxy.broadcasts.copy, 20, "a broadcast")
        world.miner.resume()
        until(
            lambda: world.anvil.rpc("eth_getBlockByNumber", "latest", False)["baseFeePerGas"] == hex(30 * GWEI), 5, ""
        )
        seen = world.anvil.head()
        until(lambda: world.anvil.head() > seen + 20, 20, "twenty blocks that are too dear")
        assert world.recorded() == []
        world.miner.base_fee = 2 * GWEI
        world.conclude()
        assert max(each.max_fee for each in world.proxy.broadcasts) <= cap * GWEI


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("blocks", ["with_them", "without_them"])
def test_reorganisation(world: World, depth: int, blocks: str) -> None:
    lost = _record_some(world, depth)
    raw = {each.transaction: each.raw for each in world.proxy.broadcasts}
    kept = [[raw[each], depth - 1] for each in lost] if blocks == "with_them" else []
    world.anvil.rpc("anvil_reorg", depth, kept)
    world.post(world.hospitals[EARLY:])
    world.miner.resume()
    world.conclude()


@pytest.mark.parametrize("broadcast", [1, 2])
@pytest.mark.parametrize("moment", [Moment.BEFORE, Moment.AFTER], ids=["before_the_broadcast", "before_recording_it"])
def test_killed(world: World, moment: Moment, broadcast: int) -> None:
    killed = world.proxy.at_broadcast(broadcast, moment, world.gateway.kill)
    world.post()
    until(killed.is_set, 30, f"broadcast {broadcast}")
    world.gateway.start()
    world.conclude()


def test_second_gateway_by_mistake(make: Make, free_port: Callable[[], int]) -> None:
    # Long enough for the first to renew it on a machine that is busy: else the second would take over, and rightly.
    with make(LEASE_SECONDS="15") as world:
        world.post(world.hospitals[:EARLY])
        second = world.gateway.twin(free_port())
        try:
            second.launch()
            world.post(world.hospitals[EARLY:])
            until(lambda: second.exit_code() is not None, 30, "the second gateway gives up")
        finally:
            second.kill()
        assert second.exit_code() not in {0, -9}
        (line,) = [line for line in second.said().splitlines() if not line.startswith("{")]  # but for its log
        assert line.startswith("concilia-chain: "), line
        assert world.gateway.exit_code() is None, world.gateway.said()
        world.conclude()


def test_first_gateway_hangs_and_a_second_takes_over(world: World, free_port: Callable[[], int]) -> None:
    first, other_way = world.gateway, FaultyNode(free_port(), world.anvil.url)
    # With its node, and so without renewing its lease; what it signed arrives when another sends already.
    hangs = world.proxy.at_broadcast(1, Moment.LATE, world.proxy.hang)
    world.post(world.hospitals[:EARLY])
    until(hangs.is_set, 20, "a broadcast")
    world.gateway = first.twin(free_port(), RPC_URL=other_way.url)
    try:
        world.gateway.start()
        until(world.recorded, 20, "the second gateway records")
        world.proxy.go_on()
        world.post(world.hospitals[EARLY:])
        world.conclude()
    finally:
        world.gateway.kill()
        first.kill()
        other_way.stop()


@pytest.mark.parametrize("state", ["with_the_first_records", "before_the_round"])
def test_chain_restarted_from_an_older_state(world: World, state: str) -> None:
    go_back = world.before_round
    first, second, others = world.hospitals[: EARLY // 2], world.hospitals[EARLY // 2 : EARLY], world.hospitals[EARLY:]
    until(world.post(first).done, 20, "first records")
    if state == "with_the_first_records":
        go_back = world.snapshot()
    until(world.post(second).done, 20, "records that are to vanish")
    world.miner.pause()
    world.proxy.down()
    go_back()
    assert len(world.recorded()) == (len(first) if state == "with_the_first_records" else 0)
    world.proxy.up()
    world.post(others)
    world.miner.resume()
    world.conclude()


def test_killed_while_the_node_is_down_then_reorganised(world: World) -> None:
    _record_some(world, 2)
    world.proxy.down()
    world.gateway.kill()
    world.post(world.hospitals[EARLY:])
    world.gateway.launch()
    world.anvil.rpc("anvil_reorg", 2, [])
    world.proxy.up()
    world.miner.resume()
    world.gateway.start()
    world.conclude()


@pytest.mark.parametrize("seed", [1, 2])
def test_any_faults_in_any_order(world: World, seed: int) -> None:
    chance = random.Random(seed)
    wave = len(world.hospitals) // 5
    with world.gateway.supervised():
        for first in range(0, len(world.hospitals), wave):
            posting = world.post(world.hospitals[first : first + wave])
            _any_fault(world, chance)
            # The next fault meets what this one left: at times something is done, at times nothing is.
            if chance.random() < 0.5:
                _await_receipt(world, posting)
        world.conclude()


def _await_receipt(world: World, posting: Posting) -> None:
    until(lambda: posting.receipts, 30, world.told)


def _any_fault(world: World, chance: random.Random) -> None:
    """One of the faults above, at a moment that chance names; blocks are made again when this returns."""
    if chance.random() < 0.5:
        until(lambda: world.recorded() or world.pool(), 20, "something is sent")
    match chance.choice(["kill", "outage", "drop", "reorganise", "kill at a broadcast", "lose an answer", "dear"]):
        case "kill":
            world.gateway.kill()
        case "outage":
            world.proxy.down()
            _elapse(3)
            world.proxy.up()
        case "drop":
            world.anvil.rpc("anvil_dropAllTransactions")
        case "reorganise":
            world.miner.pause()
            world.anvil.rpc("anvil_reorg", chance.randint(1, CONFIRMATIONS), [])
            world.miner.resume()
        case "kill at a broadcast":
            world.proxy.at_broadcast(1, chance.choice([Moment.BEFORE, Moment.AFTER]), world.gateway.kill)
        case "lose an answer":
            world.proxy.at_broadcast(1, chance.choice([Moment.BEFORE, Moment.AFTER]), lambda: None)
        case "dear":
            world.miner.base_fee = chance.randint(1, 100) * GWEI


def _record_some(world: World, depth: int) -> list[str]:
    """Have some updates recorded and answered in the newest block but `depth` - 1, and no block come after.

    Returns the relay's transactions of that block.
    """
    world.miner.pause()
    before = world.mined()
    posting = world.post(world.hospitals[:EARLY])
    until(world.pool, 20, "a transaction in the pool")
    world.miner.mine(depth)
    until(lambda: posting.receipts, 20, "a hospital has its receipt")
    return world.mined()[len(before) :]


def _elapse(seconds: float) -> None:
    """A fault that lasts: its length is what is tested."""
    threading.Event().wait(seconds)
