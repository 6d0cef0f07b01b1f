"""Where a stack on one machine keeps things, and how its processes are started: pure, from a folder and a port."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from concilia.stack import redis_server

SERVICES = ("auth", "model", "aggregator", "chain")
PORTS = {"redis": 0, "auth": 1, "model": 2, "aggregator": 3, "chain": 4, "worker": 5}
FIRST_NODE = 6


@dataclass(frozen=True)
class Site:
    """A hospital of the stack: the name shown, and which lesions of the data folder are its own."""

    name: str
    selection: str


@dataclass(frozen=True)
class Process:
    """A process to start: its command, its settings, and the address that answers 200 once it is ready."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_url: str | None = None


@dataclass(frozen=True)
class Layout:
    """A stack's folder and ports."""

    directory: Path
    port: int

    def port_of(self, name: str) -> int:
        """A process's port; nodes are `node-0`, `node-1` …"""
        if name.startswith("node-"):
            return self.port + FIRST_NODE + int(name.removeprefix("node-"))
        return self.port + PORTS[name]

    def url(self, service: str) -> str:
        """A service's address."""
        return f"http://127.0.0.1:{self.port_of(service)}"

    def keystore(self, who: str) -> Path:
        """Where an identity's keystore lies; its password lies beside it."""
        return self.directory / "keys" / f"{who}.json"

    @property
    def connection_file(self) -> Path:
        """The connection file for the administrator."""
        return self.directory / "concilia.json"

    @property
    def artifacts(self) -> Path:
        """The artifact store's folder."""
        return self.directory / "artifacts"

    def ports(self, nodes: int) -> dict[int, str]:
        """All ports the stack listens on, and who."""
        names = [*PORTS, *(f"node-{index}" for index in range(nodes))]
        return {self.port_of(name): name for name in names}

    def processes(self, admin: str, data: Path, sites: list[Site], threads: int) -> list[Process]:
        """Every process of the stack, in the order in which they are started."""
        redis_url = f"redis://127.0.0.1:{self.port_of('redis')}/0"
        redis_folder = self.directory / "redis"
        urls = {f"{name.upper()}_URL": self.url(name) for name in SERVICES}
        services = [
            self._service("chain", REDIS_URL=redis_url, RPC_URL="eth-tester://", ADMIN_ADDRESS=admin, **urls),
            self._service(
                "auth",
                REDIS_URL=redis_url,
                DOMAIN=f"127.0.0.1:{self.port_of('auth')}",
                URI=self.url("auth"),
                KEY_DIRECTORY=str(self.directory / "auth-keys"),
                **urls,
            ),
            self._service("model", DIRECTORY=str(self.artifacts), **urls),
            self._aggregator("api", redis_url, urls),
            self._aggregator("worker", redis_url, urls),
        ]
        nodes = [self._node(index, site, redis_url, urls, data, threads) for index, site in enumerate(sites)]
        redis = Process("redis", tuple(redis_server.command(self.port_of("redis"), redis_folder)))
        return [redis, *services, *nodes]

    def _service(self, name: str, **settings: str) -> Process:
        return Process(
            name,
            (sys.executable, "-m", f"concilia_{name}"),
            self._environment(name, name, name, settings),
            f"{self.url(name)}/healthz",
        )

    def _aggregator(self, part: str, redis_url: str, urls: Mapping[str, str]) -> Process:
        settings = {
            "REDIS_URL": redis_url,
            "ARTIFACTS_URL": self.artifacts.resolve().as_uri(),
            "DIRECTORY": str(self.directory / "aggregator"),
            **urls,
        }
        name = "aggregator" if part == "api" else "worker"
        return Process(
            name,
            (sys.executable, "-m", "concilia_aggregator", part),
            self._environment("aggregator", name, "aggregator", settings),
            f"{self.url(name)}/healthz",
        )

    def _node(
        self, index: int, site: Site, redis_url: str, urls: Mapping[str, str], data: Path, threads: int
    ) -> Process:
        name = f"node-{index}"
        settings = {
            "BROKER_URL": redis_url,
            "DATA": str(data),
            "SITE": site.selection,
            "SITE_NAME": site.name,
            "DIRECTORY": str(self.directory / name),
            "THREADS": str(threads),
            **urls,
        }
        return Process(
            name,
            (sys.executable, "-m", "concilia_client_node"),
            self._environment("node", name, name, settings),
            f"{self.url(name)}/healthz",
        )

    def _environment(self, prefix: str, port: str, identity: str, settings: Mapping[str, str]) -> dict[str, str]:
        everything = {
            "PORT": str(self.port_of(port)),
            "KEYSTORE": str(self.keystore(identity)),
            "PASSWORD_FILE": str(self.keystore(identity).with_suffix(".password")),
            "DATABASE_URL": f"sqlite:///{self.directory / identity}.db",
            "LOG_FORMAT": "text",
            **settings,
        }
        return {f"CONCILIA_{prefix.upper()}_{key}": value for key, value in everything.items()}
