"""`python -m concilia_auth`: serve, with settings from the environment."""

from __future__ import annotations

import sys

from concilia_kit import logs, web
from concilia_kit.settings import read

from concilia_auth.errors import KeyFileError
from concilia_auth.main import build
from concilia_auth.settings import AuthSettings


def main() -> None:
    """Serve until told to stop. Ends with status 2 and one line a fault where the settings do not do."""
    settings = read(AuthSettings)
    logs.configure("auth", settings.log_format, settings.log_level)
    try:
        app = build(settings)
    except (KeyFileError, ValueError) as error:
        sys.stderr.write(f"concilia-auth: {error}\n")
        sys.exit(2)
    web.run(app, settings)


if __name__ == "__main__":
    main()
