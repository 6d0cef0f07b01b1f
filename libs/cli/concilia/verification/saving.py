"""Writing what a verification leaves behind."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def save(data: bytes, path: Path) -> None:
    """Write a file, all at once. Raises `OSError`."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(6)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
