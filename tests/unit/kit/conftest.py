"""Applications served as services are: by uvicorn with the kit's own protocol, on a real port."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from concilia_kit import serving


@pytest.fixture
def serve(free_port: Callable[[], int]) -> Iterator[Callable[[Any], int]]:
    """Serve an application from a thread; its port."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def begin(app: Any) -> int:
        port = free_port()
        server = uvicorn.Server(serving.config(app, port=port, timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run)
        running.append((server, thread))
        thread.start()
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        return port

    yield begin
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join()
