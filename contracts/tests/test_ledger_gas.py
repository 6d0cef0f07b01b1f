"""What an update costs, against the figures checked in; CONCILIA_GAS_SNAPSHOT=write writes them anew."""

import json
import os
from dataclasses import replace

import pytest
from eth_account.signers.local import LocalAccount
from web3 import Web3

from contracts.tests.ledger_harness import ROOT, Chain, Ledger, account, digest

SNAPSHOT = ROOT / "gas-snapshot.json"
BATCHES = (1, 10, 100)
COMMITMENTS = (10, 100, 1_000)
# The goals of the design, at which a round of a large consortium stays affordable on a public chain.
MOST_PER_UPDATE = 15_000
MOST_PER_COMMITTED_UPDATE = 150


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, int]]:
    """Gas of first batches of 1, 10 and 100 in rounds of their own, and of what the coordinator sends around them.

    On a chain of its own, since the zeros in addresses and signatures change the price of the calldata.
    """
    ledger = Ledger(Chain())
    signers = [account(number) for number in range(max(BATCHES))]
    ledger.enrol(*(signer.address for signer in signers))
    gas: dict[str, dict[str, int]] = {"coordinator": {}, "submitUpdates": {}}
    base = digest("base")
    for size in BATCHES:
        job = digest(f"job of {size}")
        opened = ledger.send("openRound", job, 1, base, ledger.chain.now + 3600, 1)
        receipt = ledger.submit(*(ledger.update(signer, job, base) for signer in signers[:size]))
        gas["submitUpdates"][str(size)] = receipt["gasUsed"]
    rejected = ledger.send("rejectUpdate", job, 1, signers[0].address, 8)
    closed = ledger.send("closeRound", job, 1, digest("global"), digest("contributions"), max(BATCHES) - 1)
    published = ledger.send("publishModel", job, digest("global"))
    steps = {"openRound": opened, "rejectUpdate": rejected, "closeRound": closed, "publishModel": published}
    gas["merkle"] = merkle_mode(ledger, signers)
    gas["coordinator"] = {name: receipt["gasUsed"] for name, receipt in sorted(steps.items())}
    return gas


def merkle_mode(ledger: Ledger, signers: list[LocalAccount]) -> dict[str, int]:
    """Gas of Merkle rounds of 10, 100 and 1,000: the tree of one right update among made-up ones costs as any."""
    made_up = [Web3.to_checksum_address(f"0x{number:040x}") for number in range(2**64, 2**64 + max(COMMITMENTS))]
    ledger.enrol(*made_up[len(signers) :])  # the ledger takes no more updates than it has hospitals
    base, gas = digest("base"), {}
    for size in COMMITMENTS:
        job = digest(f"Merkle job of {size}")
        opened = ledger.send("openMerkleRound", job, 1, base, ledger.chain.now + 3600, 1)
        own = ledger.update(signers[0], job, base)
        others = [replace(own, hospital=address) for address in made_up[-size + 1 :]]
        committed = ledger.committed(own, *others)
        gas[f"commitUpdates {size}"] = ledger.send(*committed.commitment())["gasUsed"]
        at = list(committed.updates).index(own)
        gas[f"proveUpdate {size}"] = ledger.send("proveUpdate", *committed.shown(at))["gasUsed"]
        gas[f"disputeUpdate {size}"] = ledger.send("disputeUpdate", *committed.shown(0))["gasUsed"]
        gas[f"rejectCommitted {size}"] = ledger.send("rejectCommitted", *committed.shown(0), 8)["gasUsed"]
    gas["openMerkleRound"] = opened["gasUsed"]
    return dict(sorted(gas.items()))


def test_gas_is_what_the_snapshot_says(measured: dict[str, dict[str, int]]) -> None:
    if os.environ.get("CONCILIA_GAS_SNAPSHOT") == "write":
        SNAPSHOT.write_text(json.dumps(measured, indent=2) + "\n")
    stored = json.loads(SNAPSHOT.read_text())
    assert {group: set(figures) for group, figures in stored.items()} == {
        group: set(figures) for group, figures in measured.items()
    }
    for group, figures in measured.items():
        assert figures == {name: pytest.approx(stored[group][name], rel=0.01) for name in figures}


def test_a_batch_of_a_hundred_meets_the_goal(measured: dict[str, dict[str, int]]) -> None:
    assert measured["submitUpdates"]["100"] / 100 <= MOST_PER_UPDATE


def test_a_commitment_of_a_thousand_meets_the_goal(measured: dict[str, dict[str, int]]) -> None:
    assert measured["merkle"]["commitUpdates 1000"] / 1_000 <= MOST_PER_COMMITTED_UPDATE
