"""The faults' world, a new one for each test, and the table of what came of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak

from .anvil_node import ROOT, Anvil, Miner
from .fault_world import CONFIRMATIONS, KeyServer, World
from .gateway_process import Gateway
from .rpc_proxy import FaultyNode

HOSPITALS = 100
TABLE = ROOT / "var" / "chain-faults.txt"
HEAD = (
    f"{'fault':<58} {'records':>7} {'duplicates':>10} {'gaps':>4} {'transactions':>12} "
    f"{'gas/update':>10} {'reverted':>8} {'seconds':>7}"
)
ROW = "a row of the table"

Make = Callable[..., AbstractContextManager[World]]


@pytest.fixture(scope="session")
def hospitals() -> list[LocalAccount]:
    return [Account.from_key(keccak(text=f"hospital {number}")) for number in range(HOSPITALS)]


@pytest.fixture
def make(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    redis_url: str,
    free_port: Callable[[], int],
    hospitals: list[LocalAccount],
) -> Make:
    """A world with its round open; `environment` are settings of the gateway beside the usual ones."""

    @contextmanager
    def made(**environment: str) -> Iterator[World]:
        relay = Account.create()
        password, keystore = tmp_path / "password", tmp_path / "keystore.json"
        password.write_text("secret")
        # PBKDF2 with one iteration: the real cost, a second a start, is the keystore's test's business.
        keystore.write_text(json.dumps(Account.encrypt(relay.key, "secret", kdf="pbkdf2", iterations=1)))
        abi = json.loads((ROOT / "contracts" / "build" / "ConciliaLedger.json").read_text())["abi"]
        with ExitStack() as stack:
            anvil = Anvil(free_port())
            stack.callback(anvil.stop)
            anvil.rpc("anvil_setBalance", relay.address, hex(10**20))
            miner = Miner(anvil)
            stack.callback(miner.stop)
            proxy = FaultyNode(free_port(), anvil.url)
            stack.callback(proxy.stop)
            keys = KeyServer(free_port())
            stack.callback(keys.stop)
            settings = {
                "RPC_URL": proxy.url,
                "ADMIN_ADDRESS": anvil.rpc("eth_accounts")[0],
                "KEYSTORE": str(keystore),
                "PASSWORD_FILE": str(password),
                "DATABASE_URL": f"sqlite:///{tmp_path / 'chain.db'}",
                "REDIS_URL": redis_url,
                "AUTH_URL": keys.url,
                "POLL_SECONDS": "0.1",
                "RECEIPT_SECONDS": "10",
                "CONFIRMATIONS": str(CONFIRMATIONS),
                "BUMP_SECONDS": "2",
                "MAX_FEE_GWEI": "1000",
                "COALESCE_SECONDS": "0.05",
                "BATCH_UPDATES": "20",
                "LEASE_SECONDS": "3",
                "LOG_LEVEL": "WARNING",
            }
            named = {f"CONCILIA_CHAIN_{name}": value for name, value in (settings | environment).items()}
            gateway = Gateway(free_port(), tmp_path, named)
            stack.callback(gateway.kill)
            gateway.start()
            world = World(anvil, miner, proxy, gateway, keys, relay.address, hospitals)
            stack.callback(world.stop)
            world.enrol(abi)
            world.before_round = world.snapshot()
            world.open()
            try:
                yield world
            finally:
                _note(request, world)

    return made


@pytest.fixture
def world(make: Make) -> Iterator[World]:
    with make() as made:
        yield made


def _note(request: pytest.FixtureRequest, world: World) -> None:
    """One line for the table, also of a test that failed."""
    fault = request.node.name.removeprefix("test_").replace("_", " ")
    found = world.measured or world.measure()
    row = (
        f"{fault:<58} {found.records:>7} {found.duplicates:>10} {found.gaps:>4} {found.transactions:>12} "
        f"{found.gas // max(1, found.records):>10} {found.reverted:>8} {world.seconds:>7.1f}"
    )
    request.node.user_properties.append((ROW, row))


class Table:
    """Collects the rows, also from tests that ran in other processes, in the order in which the tests are written."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, str], str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, row in report.user_properties:
            if name == ROW:
                self._rows[report.location[1] or 0, report.nodeid] = str(row)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._rows:
            return
        lines = [HEAD, *(row for _, row in sorted(self._rows.items()))]
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text("\n".join([*lines, ""]))
        terminalreporter.section("the chain's faults, a hundred updates each")
        for line in lines:
            terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Table())
