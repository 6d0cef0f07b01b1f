"""`concilia verify`, `concilia bundle` and `concilia report`: doubting a model, also without any server."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from concilia_aggregator.verification.sources import FolderSource
from concilia_aggregator.verification.verifier import ArtifactSource
from concilia_kit import keystore
from concilia_kit.wire.verification import Verdict
from eth_account.signers.local import LocalAccount
from rich.console import Console

from concilia import output
from concilia.client import Client
from concilia.commands.evidence import (
    Artifacts,
    Contract,
    FromBlock,
    Job,
    LeavesOption,
    Question,
    Rpc,
    SealingKey,
    Without,
    asked,
    source_of,
    whole_id,
    with_leaves,
)
from concilia.commands.options import DEFAULT_CONFIG, Config, Json, client, guarded
from concilia.connection import UsageError
from concilia.verification import bundle as bundles
from concilia.verification import leaves as leaf_documents
from concilia.verification import report, services
from concilia.verification.evidence import Evidence, examine
from concilia.verification.kept import Kept, KeptSource
from concilia.verification.sources import ServiceSource


@guarded
def verify(
    job: Job = "latest",
    rpc: Rpc = None,
    contract: Contract = None,
    from_block: FromBlock = None,
    leaves: LeavesOption = None,
    artifacts: Artifacts = None,
    without_artifacts: Without = False,
    sealing_key: SealingKey = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            help="a folder, made if it is not there, to keep what was read and downloaded: a verification that was "
            "interrupted goes on there",
        ),
    ] = None,
    offline: Annotated[
        Path | None, typer.Option("--offline", help="a bundle: neither a service nor a chain is asked")
    ] = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="write the verdict there, as an in-toto statement")
    ] = None,
    keystore_file: Annotated[
        Path | None, typer.Option("--keystore", help="sign the report with this key, as a DSSE envelope")
    ] = None,
    password_file: Annotated[Path | None, typer.Option("--password-file", help="the keystore's password")] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Recompute a job from the ledger's events and the stored files, to the last bit.

    The events come from the consortium's services, with --rpc from the chain itself, with --offline from a bundle.

    With --resume nothing that lies in the folder is believed unchecked: files are hashed again, and what was read from
    the chain counts only as this user sealed it, and as long as the chain still has the block it was read up to.

    Exit code 1 where anything disagrees, 2 where it cannot be asked so or a bundle is damaged.
    """
    account = _account(report_file, keystore_file, password_file)
    question = Question(job, rpc, contract, from_block, leaves, artifacts, without_artifacts, config, sealing_key)
    with ExitStack() as opened:
        kept = None if resume is None else opened.enter_context(Kept(resume))
        if offline is not None:
            if rpc is not None or contract is not None or from_block is not None:
                raise UsageError("--offline asks no chain: leave --rpc, --contract and --from-block out")
            evidence, verdict = _offline(offline, question, kept)
        else:
            evidence, source = asked(question, kept=kept)
            verdict = _examined(evidence, source, kept)
    if report_file is not None:
        made = report.statement(verdict, evidence, datetime.now(UTC))
        _saved(report.envelope(made, account) if account else made, report_file)
    if as_json:
        output.as_json(verdict)
    else:
        print_verdict(verdict)
    if not verdict.ok:
        raise typer.Exit(1)


@guarded
def bundle(
    out: Annotated[Path, typer.Option("--out", help="the bundle to write; a file that is there is replaced")],
    job: Job = "latest",
    rpc: Rpc = None,
    contract: Contract = None,
    from_block: FromBlock = None,
    leaves: LeavesOption = None,
    artifacts: Artifacts = None,
    without_artifacts: Without = False,
    sealing_key: SealingKey = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Put all that 'concilia verify --offline' needs of a job into one file.

    With --rpc it holds the blocks' headers and receipts too, which show the events to be those of a chain.
    """
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out.parent} is no folder")
    question = Question(job, rpc, contract, from_block, leaves, artifacts, without_artifacts, config, sealing_key)
    evidence, source = asked(question, blocks=True)
    try:
        with output.fraction("bundling") as progress:
            missing = bundles.write(evidence, source, out, progress)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error}") from error
    if missing:
        output.err.print(f"{missing} files are missing in the store, and so in the bundle: verifying it will name them")
    size = out.stat().st_size / 1e6
    updates = len(evidence.updates) + len(evidence.leaves or ())
    output.out.print(f"{out}: {len(evidence.events)} events, {updates} updates, {size:.1f} MB", markup=False)


@guarded
def leaves(
    job: Annotated[str, typer.Argument(help="the job's id or its beginning, or 'latest'")] = "latest",
    out: Annotated[Path | None, typer.Option("--out", help="the file to write; standard output if not given")] = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Write down the signed updates of a job's Merkle rounds, of which the chain has the root only.

    Whoever has that file can verify the job with 'concilia verify --rpc … --leaves FILE', and no Concilia server.
    """
    to = client(config)
    document = services.read(to, whole_id(to, job)).leaves_document()
    if document is None:
        raise UsageError("the job has no Merkle round whose updates are committed")
    if out is None:
        typer.echo(document.encode())
    else:
        leaf_documents.save(document.encode(), out)
        output.out.print(f"{out}: {len(document.leaves)} leaves of job {document.job}", markup=False)


@guarded
def show_report(
    file: Annotated[Path, typer.Argument(help="what 'concilia verify --report' wrote")],
    signer: Annotated[str | None, typer.Option(help="the address that must have signed it")] = None,
    as_json: Json = False,
) -> None:
    """Check a report's signature and show it; exit code 1 where the verdict is not that all agrees."""
    statement, signers = report.load(file)
    if signer is not None and signer.lower() not in [each.lower() for each in signers]:
        raise UsageError(f"{file} is not signed by {signer}, but by {', '.join(signers) or 'nobody'}")
    if as_json:
        output.as_json({"signers": list(signers), "statement": statement.model_dump(mode="json", by_alias=True)})
    else:
        told = statement.predicate
        for finding in told.findings:
            output.out.print(f"FOUND round {finding.round} · {finding.hospital or '–'}: {finding.what}", markup=False)
        word = "verified" if told.ok else f"NOT verified: {len(told.findings)} findings"
        output.out.print(f"{word} · job {told.job} · signed by {', '.join(signers) or 'nobody'}", markup=False)
    if not statement.predicate.ok:
        raise typer.Exit(1)


def run_verification(to: Client, job: str, artifacts: Path | None) -> Verdict:
    """Verify a job by what the services tell, its files from a folder or from the model service."""
    source = FolderSource(artifacts) if artifacts else ServiceSource(to)
    with output.fraction("verifying") as progress:
        return examine(services.read(to, job), source, progress)


def print_verdict(verdict: Verdict, *, console: Console = output.out) -> None:
    """Print a verdict, all its findings, and what it could not know."""
    for finding in verdict.findings:
        who = f" · hospital {finding.hospital}" if finding.hospital else ""
        what = f" · {finding.digest}" if finding.digest else ""
        console.print(f"FOUND round {finding.round}{who}{what}: {finding.what}", markup=False)
    for note in verdict.notes:
        console.print(f"note: {note}", markup=False)
    summary = (
        f"{verdict.rounds} rounds folded again, {verdict.updates} updates ({verdict.rejected} rejected), "
        f"{verdict.signatures} signatures, {verdict.bytes_read / 1e6:.1f} MB hashed"
    )
    if not verdict.ok:
        word = f"[red]NOT verified: {len(verdict.findings)} findings[/]"
    else:
        word = "[green]verified[/]" if verdict.rounds else "[yellow]records verified, models not looked at[/]"
    console.print(f"{word} · {summary}")


def _offline(path: Path, question: Question, kept: Kept | None) -> tuple[Evidence, Verdict]:
    with bundles.Bundle(path) as opened:
        evidence = opened.evidence
        if question.job != "latest" and not evidence.job.startswith(question.job):
            raise UsageError(f"{path} is of job {evidence.job}")
        evidence = with_leaves(evidence, question.leaves)
        source = source_of(question) or opened.source
        if kept is not None and isinstance(source, ServiceSource):
            source = KeptSource(source, kept)
        verdict = _examined(evidence, None if question.without_artifacts else source, kept, offline=True)
        findings = (*opened.findings, *verdict.findings)
    return evidence, verdict.model_copy(update={"findings": findings, "ok": not findings})


def _examined(
    evidence: Evidence, source: ArtifactSource | None, kept: Kept | None, *, offline: bool = False
) -> Verdict:
    with output.fraction("verifying") as progress:
        work = None if kept is None else kept.work
        return examine(evidence, source, progress, work, offline=offline, folds=kept)


def _account(target: Path | None, key: Path | None, password: Path | None) -> LocalAccount | None:
    if target is not None and not target.absolute().parent.is_dir():
        raise UsageError(f"{target.parent} is no folder")
    if key is None and password is None:
        return None
    if key is None or password is None or target is None:
        raise UsageError("--keystore and --password-file go together, and with --report")
    try:
        return keystore.load(key, password)
    except keystore.KeystoreError as error:
        raise UsageError(str(error)) from error


def _saved(document: report.Statement | report.Envelope, path: Path) -> None:
    try:
        report.save(document, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error
