"""`concilia predict` and `concilia verify`: using a model, and doubting it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from concilia_aggregator.verification.sources import FolderSource
from concilia_aggregator.verification.verifier import Verifier
from concilia_kit.wire.models import Prediction
from concilia_kit.wire.verification import Verdict
from rich.console import Console

from concilia import output
from concilia.client import Client
from concilia.commands.options import DEFAULT_CONFIG, Config, Json, client, guarded
from concilia.connection import UsageError
from concilia.verification.sources import ServiceSource


def run_verification(to: Client, job: str, artifacts: Path | None) -> Verdict:
    """Verify a job with its files from a folder, or from the model service."""
    source = FolderSource(artifacts) if artifacts else ServiceSource(to)
    if output.err.is_terminal:
        with output.err.status("verifying") as status:
            return _verify(to, job, Verifier(to.domain(), source, lambda done, step: status.update(_line(done, step))))
    return _verify(to, job, Verifier(to.domain(), source, lambda done, step: output.err.print(_line(done, step))))


def _line(done: float, step: str) -> str:
    return f"verifying, {done:.0%} done: {step}"


def _verify(to: Client, job: str, verifier: Verifier) -> Verdict:
    signed = [update for item in to.ledger_job(job).rounds for update in item.updates]
    return verifier.verify(job, to.events(job), signed)


def print_verdict(verdict: Verdict, *, console: Console = output.out) -> None:
    """Print a verdict and all its findings."""
    for finding in verdict.findings:
        who = f" · hospital {finding.hospital}" if finding.hospital else ""
        what = f" · {finding.digest}" if finding.digest else ""
        console.print(f"FOUND round {finding.round}{who}{what}: {finding.what}", markup=False)
    summary = (
        f"{verdict.rounds} rounds folded again, {verdict.updates} updates ({verdict.rejected} rejected), "
        f"{verdict.signatures} signatures, {verdict.bytes_read / 1e6:.1f} MB hashed"
    )
    word = "[green]verified[/]" if verdict.ok else f"[red]NOT verified: {len(verdict.findings)} findings[/]"
    console.print(f"{word} · {summary}")


def print_prediction(prediction: Prediction, *, console: Console = output.out) -> None:
    """Print seven probabilities, most likely first."""
    output.table(
        f"model {prediction.model[:12]}… of job {prediction.job[:12]}…",
        ("class", "name", "probability"),
        [
            (item.code, item.name, f"{item.probability:.3f}")
            for item in sorted(prediction.probabilities, key=lambda item: -item.probability)
        ],
        console=console,
    )
    console.print(prediction.notice)


@guarded
def verify(
    job: Annotated[str, typer.Argument(help="the job's id or its beginning, or 'latest'")] = "latest",
    artifacts: Annotated[
        Path | None, typer.Option(help="the artifact store's folder; over the model service if not given")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Recompute a job from the ledger's events and the stored files; exit code 1 where anything disagrees."""
    if artifacts is not None and not artifacts.is_dir():
        raise UsageError(f"{artifacts} is no folder")
    to = client(config)
    # a whole id needs no aggregator: the ledger and the files are enough
    verdict = run_verification(to, job if len(job) == 64 else to.find_job(job).id, artifacts)
    if as_json:
        output.as_json(verdict)
    else:
        print_verdict(verdict)
    if not verdict.ok:
        raise typer.Exit(1)


@guarded
def predict(
    image: Annotated[Path, typer.Argument(help="JPEG or PNG of a lesion")],
    model: Annotated[str | None, typer.Option(help="digest of a published model; the newest if not given")] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Predict one picture with a published model."""
    if not image.is_file():
        raise UsageError(f"{image} is no file")
    prediction = client(config).predict(image, model)
    if as_json:
        output.as_json(prediction)
    else:
        print_prediction(prediction)
