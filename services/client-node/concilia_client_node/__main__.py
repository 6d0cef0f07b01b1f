"""`python -m concilia_client_node`: one hospital's node, with settings from the environment; with `leaving`, a list of
what left it (see `leaving`).

Several may run with one key: they share its queue and work it off in parallel. On one machine they share one
`directory` too, so that what one downloaded or trained need not be made again by another.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from concilia_kit import logs, web
from concilia_kit.keystore import KeystoreError
from concilia_kit.settings import read

from concilia_client_node import leaving
from concilia_client_node.errors import DatasetError
from concilia_client_node.settings import NodeSettings


def main() -> None:
    """Work until told to stop. Ends with status 2 and one line where settings, key, data or port do not do."""
    if sys.argv[1:2] == ["leaving"]:
        sys.exit(leaving.main(sys.argv[2:]))
    settings = read(NodeSettings)
    begin(settings)
    with complaints(settings):
        listening = web.bind(settings)
    work(settings, listening)


def begin(settings: NodeSettings) -> None:
    """Have logs, and end on the signals that ask for it: a container's first process does so only if it says so."""
    logs.configure("client-node", settings.log_format, settings.log_level)
    if os.environ.get("SSL_CERT_FILE") == "":  # as compose sets what nobody named; OpenSSL would then believe nobody
        del os.environ["SSL_CERT_FILE"]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))  # until Celery has handlers of its own


def work(settings: NodeSettings, listening: socket.socket) -> NoReturn:
    """Construct the node and run it to its end."""
    # Torch takes seconds to import; a misspelt setting is told before.
    from concilia_client_node import main as node

    with complaints(settings):
        built = node.build(settings)
    sys.exit(node.run(built, listening))


@contextmanager
def complaints(settings: NodeSettings) -> Iterator[None]:
    """Inside, what a node cannot start with ends the process with status 2 and one line."""
    try:
        yield
    except (KeystoreError, DatasetError) as error:
        sys.exit(_complain(str(error)))
    except OSError as error:
        where = error.filename or f"port {settings.port} on {settings.host}"
        sys.exit(_complain(f"{where}: {error.strerror}"))


def _complain(sentence: str) -> int:
    sys.stderr.write(f"concilia-client-node: {sentence}\n")
    return 2


if __name__ == "__main__":
    main()
