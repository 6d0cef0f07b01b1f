"""`python -m concilia_kit.migrating FOLDER` brings the database whose URL is on standard input to its newest schema."""

from __future__ import annotations

import sys
from pathlib import Path

from concilia_kit import database


def main() -> None:
    """Migrate, and end."""
    engine = database.engine(sys.stdin.read().strip())
    try:
        database.migrate(engine, Path(sys.argv[1]))
    finally:
        engine.dispose()


if __name__ == "__main__":
    main()
