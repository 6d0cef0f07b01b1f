"""`concilia certificates`: what a deployment's own servers prove themselves with."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from concilia import output
from concilia.certificates import AUTHORITY, CertificateError, keep
from concilia.commands.options import Json, guarded
from concilia.connection import UsageError


@guarded
def certificates(
    folder: Annotated[Path, typer.Argument(help="folder of the files: ca.pem, ca.key, NAME.pem and NAME.key")],
    servers: Annotated[list[str], typer.Argument(help="NAME=HOST,HOST…: a server and what it is reached as")],
    as_json: Json = False,
) -> None:
    """Make an authority and certificates, once; make anew what ends within 30 days or lacks a host."""
    wanted = dict(_server(text) for text in servers)
    try:
        made = keep(folder, wanted, datetime.now(UTC))
    except CertificateError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{error.filename or folder} cannot be written: {error.strerror}") from error
    if as_json:
        output.as_json({each.name: {"until": each.until.isoformat(), "renewed": each.is_renewed} for each in made})
        return
    for each in made:
        output.out.print(f"{'renewed' if each.is_renewed else 'made'} {each.name}, until {each.until:%Y-%m-%d}")


def _server(text: str) -> tuple[str, list[str]]:
    name, equals, hosts = text.partition("=")
    if not equals or not re.fullmatch(r"[a-z0-9-]{1,64}", name) or name == AUTHORITY:
        raise UsageError(f"'{text}': write NAME=HOST,HOST…, as in front-door=127.0.0.1,localhost")
    return name, [host for host in hosts.split(",") if host]
