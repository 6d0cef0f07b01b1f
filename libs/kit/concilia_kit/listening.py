"""A service's port: had before anything else is started, or the process ends with one line."""

from __future__ import annotations

import socket
import sys

from concilia_kit.settings import ServiceSettings


def bind(settings: ServiceSettings) -> socket.socket:
    """A service's port, taken and not yet served. Raises `OSError` where it cannot be had."""
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError:
        listener.close()
        raise
    return listener


def bind_or_end(settings: ServiceSettings) -> socket.socket:
    """The same; where it cannot be had, one line on standard error and exit code 2."""
    try:
        return bind(settings)
    except OSError as error:
        print(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
