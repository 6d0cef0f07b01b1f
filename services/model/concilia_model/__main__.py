"""`python -m concilia_model`: the service from environment settings."""

from __future__ import annotations

import sys
from typing import NoReturn

from concilia_kit import database, logs, serving, web
from concilia_kit.keystore import KeystoreError
from concilia_kit.sealing import KeyFileError
from concilia_kit.settings import read
from sqlalchemy.exc import ArgumentError, DBAPIError

from concilia_model.main import build
from concilia_model.settings import ModelSettings
from concilia_model.store import MIGRATIONS


def main() -> None:
    """Serve until told to stop. Ends with status 2 and one line where the settings do not do."""
    serving.keep_freed_memory()
    settings = read(ModelSettings)
    logs.configure("model", settings.log_format, settings.log_level)
    try:
        database.migrate_apart(settings.database_url, MIGRATIONS)
        app = build(settings)
    except DBAPIError as error:
        _give_up(f"CONCILIA_MODEL_DATABASE_URL: the database does not answer: {error.orig}")
    except ArgumentError as error:
        _give_up(f"CONCILIA_MODEL_DATABASE_URL: {error}")
    except (KeystoreError, KeyFileError, OSError) as error:
        _give_up(str(error))
    web.run(app, settings)


def _give_up(why: str) -> NoReturn:
    sys.stderr.write(f"concilia-model: {' '.join(why.split())}\n")
    raise SystemExit(2)


if __name__ == "__main__":
    main()
