"""The node's port: taken before anything else starts, and served from a thread beside the work."""

from __future__ import annotations

import socket
import threading

import uvicorn
from concilia_kit import serving
from fastapi import FastAPI


class Served:
    """An application on a port, until `stop`. The port stays taken: what follows on it serves a copy of its own."""

    def __init__(self, app: FastAPI, listening: socket.socket) -> None:
        self._server = uvicorn.Server(serving.config(app))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening.dup()]}, name="health", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End serving, and wait for it."""
        self._server.should_exit = True
        self._thread.join()
