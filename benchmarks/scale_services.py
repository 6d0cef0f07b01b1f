"""The services of one consortium as processes on this machine, for any number of hospitals that are no processes.

The chain is an EVM within the chain service, as in `make demo`, or an Anvil beside it, whose CPU is then not the
service's own and which takes ten thousand members in a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import concilia_chain
import httpx
import psutil
import redis
from concilia.client import Client
from concilia.connection import Connection, Endpoints
from concilia.stack.enrolment import enrol, make_keys, write_connection
from concilia.stack.layout import Layout, Process
from concilia.stack.supervisor import Supervisor
from concilia.stack.supervisor import running as alive
from concilia_auth import keys
from concilia_auth.keys import SigningKey
from concilia_chain import contract_file
from concilia_kit.roles import Role
from web3 import Web3

from benchmarks.nodes import Node
from benchmarks.nodes import running as node_running

_CONTRACT = Path(concilia_chain.__file__).with_name("ConciliaLedger.json")
START_SECONDS = 120.0
NODE = "anvil"
"""The part that the EVM node plays."""
_SAMPLE_SECONDS = 0.25
_A_BLOCK = 150
"""Role grants in a block: a third of what Anvil's gas limit allows."""
_PLENTY = hex(10**21)  # wei


@dataclass(frozen=True)
class Cost:
    """What some work cost the processes: seconds, CPU seconds by part, bytes of memory by part at their highest."""

    seconds: float
    cpu: dict[str, float]
    peak: dict[str, int]
    wire: int
    """Bytes that went over the loopback interface."""

    def servers(self) -> dict[str, float]:
        """CPU seconds of all that is no EVM node's."""
        return {part: spent for part, spent in self.cpu.items() if part != NODE}


@dataclass(frozen=True)
class Services:
    """What runs: where it is, its administrator, the key that access tokens are signed with, and its EVM node."""

    layout: Layout
    admin: Client
    signing: SigningKey
    node: Node | None

    @property
    def redis_url(self) -> str:
        """The broker."""
        return f"redis://127.0.0.1:{self.layout.port_of('redis')}/0"

    async def cost(self, work: Awaitable[object]) -> Cost:
        """Do some work, and say what it cost."""
        processes = {name: psutil.Process(pid) for name, pid in alive(self.layout.directory).items()}
        if self.node is not None:
            processes[NODE] = _listening(self.node.url)
        peak: dict[str, int] = {}

        async def watch() -> None:
            while True:
                for name, process in processes.items():
                    peak[name] = max(peak.get(name, 0), process.memory_info().rss)
                await asyncio.sleep(_SAMPLE_SECONDS)

        watching = asyncio.create_task(watch())
        before, sent, began = _cpu(processes), _sent(), time.monotonic()
        try:
            await work
        finally:
            watching.cancel()
        after = _cpu(processes)
        spent = {name: after[name] - before[name] for name in processes}
        return Cost(time.monotonic() - began, spent, peak, _sent() - sent)

    def enrol(self, addresses: Sequence[str]) -> None:
        """Grant the hospital's role: by signed role changes, or on Anvil by the administrator, many in a block."""
        if self.node is None:
            deadline = int(time.time()) + 600
            for address in addresses:
                self.admin.change_role(Role.HOSPITAL, address, granted=True, deadline=deadline)
        else:
            _granted(self.node, self.admin.contract().address, self.admin.account.address, addresses)
        self._await_followed()

    def _await_followed(self) -> None:
        """Wait until the chain service has read every block so far. Raises `RuntimeError`."""
        if self.node is None:
            return
        head = int(self.node.ask("eth_blockNumber"), 16)
        deadline = time.monotonic() + START_SECONDS
        path = f"{self.layout.url('chain')}/v1/members/{self.admin.account.address}/roles"
        while httpx.get(path, timeout=30).json().get("block", 0) < head:
            if time.monotonic() > deadline:
                raise RuntimeError("the chain service does not come to the newest block")
            time.sleep(0.1)


@contextlib.contextmanager
def running(directory: Path, port: int, *, anvil: bool, settings: dict[str, str] | None = None) -> Iterator[Services]:
    """The services, ready and enrolled; gone afterwards. `settings` go to every process's environment.

    Raises `RuntimeError`, `StartFailed`.
    """
    directory.mkdir(parents=True)
    (directory / "keys").mkdir(mode=0o700)
    (directory / "redis").mkdir()
    layout = Layout(directory, port)
    with contextlib.ExitStack() as ending:
        node = ending.enter_context(node_running("anvil")) if anvil else None
        addresses = make_keys(layout, 0)
        write_connection(layout)
        if node is not None:
            for who in ("chain", "admin"):
                node.ask("anvil_setBalance", addresses[who], _PLENTY)
        processes = [
            _changed(each, node, settings or {}) for each in layout.processes(addresses["admin"], directory, [], 1)
        ]
        stack = Supervisor(layout)
        ending.callback(stack.stop)
        stack.start(processes)
        stack.await_ready(processes, START_SECONDS, lambda _: None)
        with contextlib.suppress(redis.RedisError):
            redis.Redis(port=layout.port_of("redis")).config_set("maxclients", 30_000)
        admin = Client(Connection(Endpoints.read(layout.connection_file)))
        ending.callback(admin.__exit__)
        enrol(admin, addresses)
        yield Services(layout, admin, keys.read(directory / "auth-keys").signing, node)


def _cpu(processes: Mapping[str, psutil.Process]) -> dict[str, float]:
    """User and system seconds of each so far."""
    times = {name: process.cpu_times() for name, process in processes.items()}
    return {name: spent.user + spent.system for name, spent in times.items()}


def _sent() -> int:
    return int(psutil.net_io_counters(pernic=True)["lo"].bytes_sent)


def _listening(url: str) -> psutil.Process:
    """The process of ours that listens at an address. Raises `RuntimeError`."""
    port = urlsplit(url).port
    for child in psutil.Process().children(recursive=True):
        if any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in child.net_connections()):
            return child
    raise RuntimeError(f"no process of ours listens on {port}")


def _changed(process: Process, node: Node | None, settings: dict[str, str]) -> Process:
    environment = {**process.environment, **settings}
    if process.name == "chain" and node is not None:
        environment["CONCILIA_CHAIN_RPC_URL"] = node.url
    return dataclasses.replace(process, environment=environment)


def _granted(node: Node, contract: str, admin: str, addresses: Sequence[str]) -> None:
    """`grantRole` for each address, from the administrator's own account."""
    ledger = Web3().eth.contract(address=Web3.to_checksum_address(contract), abi=contract_file.read(_CONTRACT).abi)
    node.ask("anvil_impersonateAccount", admin)
    nonce = int(node.ask("eth_getTransactionCount", admin, "latest"), 16)
    node.ask("evm_setAutomine", False)
    try:
        for at in range(0, len(addresses), _A_BLOCK):
            sent = []
            for address in addresses[at : at + _A_BLOCK]:
                data = ledger.encode_abi("grantRole", [Role.HOSPITAL.identifier, address])
                call = {"from": admin, "to": contract, "gas": hex(150_000), "data": data, "nonce": hex(nonce)}
                sent.append(node.ask("eth_sendTransaction", call))
                nonce += 1
            node.ask("evm_mine")
            node.receipts(sent)
    finally:
        node.ask("evm_setAutomine", True)
