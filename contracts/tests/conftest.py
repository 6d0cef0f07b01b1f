from collections.abc import Iterator

import pytest
from eth_account.signers.local import LocalAccount

from contracts.tests.ledger_harness import Chain, Ledger, account

HOSPITALS = 3


@pytest.fixture(scope="session")
def deployed() -> Ledger:
    """One ledger for the whole run, with the hospitals enrolled."""
    ledger = Ledger(Chain())
    ledger.enrol(*(account(number).address for number in range(HOSPITALS)))
    return ledger


@pytest.fixture
def ledger(deployed: Ledger) -> Iterator[Ledger]:
    """The ledger as deployed: what a test did to the chain is undone after it."""
    snapshot = deployed.chain.tester.take_snapshot()
    yield deployed
    deployed.chain.tester.revert_to_snapshot(snapshot)


@pytest.fixture
def hospitals() -> tuple[LocalAccount, ...]:
    """The keys of the enrolled hospitals, which have the numbers from 1."""
    return tuple(account(number) for number in range(HOSPITALS))


@pytest.fixture
def stranger() -> LocalAccount:
    """A key whose account holds no role."""
    return account(10_000)
