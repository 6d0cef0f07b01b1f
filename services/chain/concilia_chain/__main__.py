"""Starts the service from its environment: `python -m concilia_chain`."""

from __future__ import annotations

import sys

from concilia_kit import logs, web
from concilia_kit.keystore import KeystoreError
from concilia_kit.problems import Problem
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from concilia_chain.errors import StartError
from concilia_chain.main import build
from concilia_chain.settings import ChainSettings


def main() -> None:
    """Serve until told to stop; one line and exit code 2 where the service cannot start."""
    try:
        settings = ChainSettings()
        logs.configure("chain", settings.log_format, settings.log_level)
        app = build(settings)
    except ValidationError as error:
        problems = "; ".join(
            f"CONCILIA_CHAIN_{'_'.join(map(str, item['loc'])).upper()}: {item['msg']}" for item in error.errors()
        )
        _give_up(problems)
    except SQLAlchemyError as error:
        _give_up(f"the database of CONCILIA_CHAIN_DATABASE_URL cannot be used ({type(error).__name__})")
    except (StartError, KeystoreError, Problem) as error:
        _give_up(str(error))
    web.run(app, settings)


def _give_up(message: str) -> None:
    sys.stderr.write(f"concilia-chain: {message}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
