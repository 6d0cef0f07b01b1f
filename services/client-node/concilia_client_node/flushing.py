"""Files that are whole or not there, whatever happens to the process or its machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Put a file in the place of what is there, so that a crash leaves either; only its owner may read it. Raises
    `OSError`."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)


def flush_folder(path: Path) -> None:
    """Have a folder's entries on the disk: a file's own flush does not bring its name there. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
