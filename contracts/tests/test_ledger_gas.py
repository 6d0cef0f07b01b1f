"""What an update costs, against the figures checked in; CONCILIA_GAS_SNAPSHOT=write writes them anew."""

import json
import os

import pytest

from contracts.tests.ledger_harness import ROOT, Chain, Ledger, account, digest

SNAPSHOT = ROOT / "gas-snapshot.json"
BATCHES = (1, 10, 100)
# The goal of the design, at which a round of a large consortium stays affordable on a public chain.
MOST_PER_UPDATE = 15_000


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
    gas["coordinator"] = {name: receipt["gasUsed"] for name, receipt in sorted(steps.items())}
    return gas


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
