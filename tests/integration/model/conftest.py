"""A model service to start, kill and start again, beside its peers."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from concilia_kit import keystore

from .model_process import Peers, Running


@pytest.fixture(scope="module")
def peers(free_port: Callable[[], int]) -> Iterator[tuple[Peers, str]]:
    made, port = Peers(), free_port()
    server = uvicorn.Server(uvicorn.Config(made.app, port=port, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield made, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    folder = tmp_path_factory.mktemp("key")
    account = keystore.create(folder / "key.json", folder / "password")
    return folder / "key.json", folder / "password", account.address


@pytest.fixture(params=["plain", "sealed"])
def sealing(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The file with the store's key; empty: its files lie as they are."""
    if request.param == "plain":
        return ""
    (tmp_path / "sealing").write_text(secrets.token_hex(32))
    return str(tmp_path / "sealing")


@pytest.fixture
def environment(
    tmp_path: Path, peers: tuple[Peers, str], key: tuple[Path, Path, str], free_port: Callable[[], int], sealing: str
) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("CONCILIA_")},
        "CONCILIA_MODEL_PORT": str(free_port()),
        "CONCILIA_MODEL_DIRECTORY": str(tmp_path / "artifacts"),
        "CONCILIA_MODEL_DATABASE_URL": f"sqlite:///{tmp_path / 'model.db'}",
        "CONCILIA_MODEL_AUTH_URL": peers[1],
        "CONCILIA_MODEL_CHAIN_URL": peers[1],
        "CONCILIA_MODEL_KEYSTORE": str(key[0]),
        "CONCILIA_MODEL_PASSWORD_FILE": str(key[1]),
        "CONCILIA_MODEL_RESERVE_BYTES": "0",
        "CONCILIA_MODEL_THREADS": "1",
        "CONCILIA_MODEL_SEALING_KEY_FILE": sealing,
    }


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[[], Running]]:
    running: list[Running] = []

    def begin() -> Running:
        running.append(Running(environment))
        return running[-1]

    yield begin
    for service in running:
        if service.process.poll() is None:
            service.stop()
