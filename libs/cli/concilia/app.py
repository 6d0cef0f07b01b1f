"""The `concilia` command."""

from __future__ import annotations

import typer

from concilia.commands import (
    certificates,
    contributions,
    demo,
    enrol,
    export,
    jobs,
    ledger,
    lineage,
    models,
    proof,
    storage,
    verification,
)

app = typer.Typer(
    help="Train one skin-lesion classifier over many hospitals, and prove who contributed what.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(demo.app, name="demo")
app.add_typer(jobs.app, name="job")
app.add_typer(ledger.nodes, name="node")
app.add_typer(ledger.members, name="member")
app.add_typer(ledger.keys, name="key")
app.add_typer(ledger.updates, name="update")
app.add_typer(proof.app, name="proof")
app.add_typer(storage.app, name="storage")
app.command("enrol")(enrol.enrol)
app.command("certificates")(certificates.certificates)
app.command("contributions")(contributions.contributions)
app.command("predict")(models.predict)
app.command("card")(models.card)
app.command("export")(export.export)
app.command("lineage")(lineage.lineage)
app.command("verify")(verification.verify)
app.command("bundle")(verification.bundle)
app.command("leaves")(verification.leaves)
app.command("report")(verification.show_report)


def main() -> None:
    """Entry point."""
    app()
