"""The services as processes, with a job's worth of state, and one hospital's node: what the schemas' tests ask."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from concilia.stack.layout import Site
from concilia.stack.supervisor import Supervisor
from concilia_client_node import drawn
from concilia_kit import keystore
from concilia_kit.roles import Role

from benchmarks import load, scale_services
from benchmarks.load_routes import State
from benchmarks.scale_services import Services

NODE = "node-0"
_NODE_SECONDS = 120.0
_NOWHERE = "http://127.0.0.1:9"
_ALONE = {"HTTPS_PROXY": _NOWHERE, "https_proxy": _NOWHERE}
"""Nothing is fetched from other machines; among themselves the services speak HTTP."""
_UNLIMITED = {f"CONCILIA_AUTH_{who}_RATE": str(10**9) for who in ("ADDRESS", "SOURCE")}
"""All that is asked comes from one place, which the limits would stop; they have tests of their own."""


@dataclass(frozen=True)
class Stack:
    """What runs, and what there is to ask for."""

    services: Services
    state: State

    def url(self, service: str) -> str:
        """A service's address, the node's port included."""
        return self.services.layout.url(NODE if service == "client-node" else service)


@contextlib.contextmanager
def running(directory: Path, port: int) -> Iterator[Stack]:
    """The services with a job that was stopped after a round; gone afterwards. Raises `RuntimeError`, `StartFailed`."""
    with scale_services.running(directory, port, anvil=False, settings={**_UNLIMITED, **_ALONE}) as services:
        yield Stack(services, asyncio.run(load.make_state(services)))


@contextlib.contextmanager
def node(stack: Stack) -> Iterator[None]:
    """A hospital's node, ready, for as long as the block runs. Raises `RuntimeError`, `StartFailed`."""
    layout = stack.services.layout
    data = layout.directory / "pictures"
    drawn.write_drawn(data, images=120, seed=1)
    key = layout.keystore(NODE)
    account = keystore.ensure(key, key.with_suffix(".password"))
    deadline = int(time.time()) + 600
    stack.services.admin.change_role(Role.HOSPITAL, account.address, granted=True, deadline=deadline)
    sites = [Site("west", "collection:drawn_west")]
    admin = stack.services.admin.account.address
    process = next(each for each in layout.processes(admin, data, sites, 1) if each.name == NODE)
    supervisor = Supervisor(layout)
    with contextlib.ExitStack() as ending:
        ending.callback(supervisor.stop)
        supervisor.start([process])
        supervisor.await_ready([process], _NODE_SECONDS, lambda _: None)
        until = time.monotonic() + _NODE_SECONDS
        while httpx.get(f"{stack.url('client-node')}/readyz", timeout=30).status_code != 200:
            if time.monotonic() > until:
                raise RuntimeError("the node does not get ready")
            time.sleep(0.2)
        yield
