"""Where a stack on one machine keeps things, and how its processes are started: pure, from a folder and a port."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from concilia.stack import redis_server

SERVICES = ("auth", "model", "aggregator", "chain")
PORTS = {"redis": 0, "auth": 1, "model": 2, "aggregator": 3, "chain": 4, "front": 6}
FIRST_NODE = 7


def headers_of(pages: Path) -> Path:
    """The file of headers that pages are served with; it lies beside their folder, where it is no page."""
    return pages.resolve().parent / "headers.json"


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
    """A stack's folder and ports; with built pages, one address for them and the services (see `front_door`). The
    artifact store of a `sealed` one is encrypted, under the key in `sealing_key`."""

    directory: Path
    port: int
    pages: Path | None = None
    sealed: bool = False

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
    def sealing_key(self) -> Path:
        """Where the artifact store's key lies."""
        return self.directory / "keys" / "sealing"

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
        names = [name for name in PORTS if name != "front" or self.pages]
        names += [f"node-{index}" for index in range(nodes)]
        return {self.port_of(name): name for name in names}

    def processes(
        self, admin: str, data: Path, sites: list[Site], threads: int, declared: Path | None = None
    ) -> list[Process]:
        """Every process of the stack, in the order in which they are started. `declared`: the file that names what the
        nodes' pictures are of, where they are no lesions."""
        redis_url = f"redis://127.0.0.1:{self.port_of('redis')}/0"
        redis_folder = self.directory / "redis"
        urls = {f"{name.upper()}_URL": self.url(name) for name in SERVICES}
        door = "front" if self.pages else "auth"  # where people sign in
        services = [
            self._service("chain", REDIS_URL=redis_url, RPC_URL="eth-tester://", ADMIN_ADDRESS=admin, **urls),
            self._service(
                "auth",
                REDIS_URL=redis_url,
                DOMAIN=f"127.0.0.1:{self.port_of(door)}",
                URI=self.url(door),
                KEY_DIRECTORY=str(self.directory / "auth-keys"),
                **urls,
            ),
            self._service("model", DIRECTORY=str(self.artifacts), **self._sealing(), **urls),
            self._aggregator(redis_url, urls),
        ]
        nodes = [self._node(index, site, redis_url, urls, data, threads, declared) for index, site in enumerate(sites)]
        redis = Process("redis", tuple(redis_server.command(self.port_of("redis"), redis_folder)))
        front = [self._front_door(self.pages, urls)] if self.pages else []
        return [redis, *services, *nodes, *front]

    def _service(self, name: str, **settings: str) -> Process:
        return Process(
            name,
            (sys.executable, "-m", f"concilia_{name}"),
            self._environment(name, name, name, {**self._root_path(name), **settings}),
            f"{self.url(name)}/healthz",
        )

    def _root_path(self, service: str) -> dict[str, str]:
        """Where the front door shows a service, for the links in its /docs."""
        return {"ROOT_PATH": f"/api/{service}"} if self.pages else {}

    def _sealing(self) -> dict[str, str]:
        return {"SEALING_KEY_FILE": str(self.sealing_key)} if self.sealed else {}

    def _front_door(self, pages: Path, urls: Mapping[str, str]) -> Process:
        settings = {
            "PORT": str(self.port_of("front")),
            "PAGES": str(pages.resolve()),
            "HEADERS": str(headers_of(pages).resolve()),
            "LOG_FORMAT": "text",
            **urls,
        }
        return Process(
            "front-door",
            (sys.executable, "-m", "concilia.stack.front_door"),
            {f"CONCILIA_FRONT_{key}": value for key, value in settings.items()},
            f"{self.url('front')}/healthz",
        )

    def _aggregator(self, redis_url: str, urls: Mapping[str, str]) -> Process:
        settings = {
            "REDIS_URL": redis_url,
            "ARTIFACTS_URL": self.artifacts.resolve().as_uri(),
            "DIRECTORY": str(self.directory / "aggregator"),
            **self._sealing(),
            **self._root_path("aggregator"),
            **urls,
        }
        # One process on one machine: what API and worker have in common is most of the memory that they take.
        return Process(
            "aggregator",
            (sys.executable, "-m", "concilia_aggregator", "both"),
            self._environment("aggregator", "aggregator", "aggregator", settings),
            f"{self.url('aggregator')}/healthz",
        )

    def _node(
        self,
        index: int,
        site: Site,
        redis_url: str,
        urls: Mapping[str, str],
        data: Path,
        threads: int,
        declared: Path | None,
    ) -> Process:
        name = f"node-{index}"
        settings = {
            "BROKER_URL": redis_url,
            "DATA": str(data),
            "SITE": site.selection,
            "SITE_NAME": site.name,
            "DIRECTORY": str(self.directory / name),
            "THREADS": str(threads),
            **({} if declared is None else {"CLASSIFICATION": str(declared.resolve())}),
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
