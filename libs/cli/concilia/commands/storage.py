"""`concilia storage`: what lies in the artifact store, what its policy deletes next, whether a file is still whole."""

from __future__ import annotations

import re
from typing import Annotated

import typer
from concilia_kit.wire.models import StorageReport
from rich.console import Console

from concilia import output
from concilia.commands.options import DEFAULT_CONFIG, Config, Json, client, guarded
from concilia.connection import UsageError

_MEGABYTE = 10**6
_SHOWN = 20  # of the files that go next; --json has more

_DIGEST = re.compile("[0-9a-f]{64}")

app = typer.Typer(help="What is stored, what is deleted next, and whether a file is still whole.")


@app.callback(invoke_without_command=True)
@guarded
def show(
    context: typer.Context,
    days: Annotated[
        float | None, typer.Option("--days", min=0.001, help="what would go if updates were kept for so many days")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show disk use by kind and what the policy deletes next. Deletes nothing."""
    if context.invoked_subcommand is not None:
        return
    report = client(config).storage(days)
    if as_json:
        output.as_json(report)
    else:
        print_report(report)


@app.command("check")
@guarded
def check(
    digest: Annotated[str, typer.Argument(help="an artifact's SHA-256")],
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Have a stored artifact hashed again. One that has changed is put aside, and the exit code is 1."""
    if not _DIGEST.fullmatch(digest):
        raise UsageError(f"{digest} is no SHA-256 in hexadecimal")
    found = client(config).check_artifact(digest)
    if as_json:
        output.as_json(found)
    elif found.intact:
        output.out.print(f"{digest} is what it is named")
    else:
        output.out.print(f"{digest} had changed and was put aside; bring it again from whoever has it")
    if not found.intact:
        raise typer.Exit(1)


def print_report(report: StorageReport, *, console: Console = output.out) -> None:
    """Print a report as tables and lines; sizes in MB."""
    rows = [(item.kind.value, str(item.files), _megabytes(item.bytes)) for item in report.stored]
    output.table("stored", ("kind", "files", "MB"), rows, console=console)
    console.print(f"free: {_megabytes(report.free_bytes)} MB")
    console.print(
        f"kept: updates {_days(report.keep_updates_days)} after the last that the ledger says of their job, "
        f"orphans {_days(report.keep_orphans_days)}"
    )
    console.print(f"deleted so far: {report.removed_files} files, {_megabytes(report.removed_bytes)} MB")
    if report.ledger_read_at is None:
        console.print("nothing is known of the ledger yet: nothing is deleted before it is")
        return
    console.print(f"ledger read: {report.ledger_read_at:%Y-%m-%d %H:%M:%S} UTC")
    if not report.due_files:
        console.print("next: nothing")
        return
    shown = [
        (item.digest, item.kind.value, _megabytes(item.size), f"{item.brought_at:%Y-%m-%d}")
        for item in report.due[:_SHOWN]
    ]
    title = f"next: {report.due_files} files, {_megabytes(report.due_bytes)} MB"
    output.table(title, ("artifact", "kind", "MB", "brought"), shown, console=console)
    if report.due_files > len(shown):
        console.print(f"and {report.due_files - len(shown)} more")


def _megabytes(size: int) -> str:
    return f"{size / _MEGABYTE:.1f}"


def _days(days: float | None) -> str:
    return "for ever" if days is None else f"{days:g} days"
