"""`concilia verify`, `concilia bundle` and `concilia report`: doubting a model, also without any server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from concilia_aggregator.verification.sources import FolderSource
from concilia_aggregator.verification.verifier import ArtifactSource
from concilia_kit import keystore
from concilia_kit.wire.verification import Verdict
from eth_account.signers.local import LocalAccount
from eth_utils.address import is_address
from rich.console import Console

from concilia import output
from concilia.client import Client
from concilia.commands.options import DEFAULT_CONFIG, Config, Json, client, guarded
from concilia.connection import Connection, Endpoints, UsageError
from concilia.verification import bundle as bundles
from concilia.verification import chain, report, services
from concilia.verification.evidence import Evidence, examine
from concilia.verification.node import Node
from concilia.verification.sources import ServiceSource

Job = Annotated[str, typer.Argument(help="the job's id; its beginning or 'latest' where the services are asked")]
Rpc = Annotated[
    str | None, typer.Option("--rpc", help="JSON-RPC address of an Ethereum node: no Concilia service is asked")
]
Contract = Annotated[
    str | None, typer.Option("--contract", help="the ledger's address; with --rpc, looked for by the job if not given")
]
FromBlock = Annotated[
    int | None,
    typer.Option("--from-block", min=0, help="with --rpc: where to begin; at the contract's own block if not given"),
]
Artifacts = Annotated[
    str | None,
    typer.Option(
        "--artifacts",
        help="the artifact store's folder, or a model service's address; the connection's own if not given",
    ),
]
Without = Annotated[bool, typer.Option("--without-artifacts", help="do without the model files: digests only")]


@guarded
def verify(
    job: Job = "latest",
    rpc: Rpc = None,
    contract: Contract = None,
    from_block: FromBlock = None,
    artifacts: Artifacts = None,
    without_artifacts: Without = False,
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

    Exit code 1 where anything disagrees, 2 where it cannot be asked so or a bundle is damaged.
    """
    account = _account(report_file, keystore_file, password_file)
    if offline is not None:
        if rpc is not None or contract is not None or from_block is not None:
            raise UsageError("--offline asks no chain: leave --rpc, --contract and --from-block out")
        evidence, verdict = _offline(offline, job, artifacts, without_artifacts, config)
    else:
        evidence, source = _asked(job, rpc, contract, from_block, artifacts, without_artifacts, config)
        with output.fraction("verifying") as progress:
            verdict = examine(evidence, source, progress)
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
    artifacts: Artifacts = None,
    without_artifacts: Without = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Put all that 'concilia verify --offline' needs of a job into one file.

    With --rpc it holds the blocks' headers and receipts too, which show the events to be those of a chain.
    """
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out.parent} is no folder")
    evidence, source = _asked(job, rpc, contract, from_block, artifacts, without_artifacts, config, blocks=True)
    try:
        with output.fraction("bundling") as progress:
            missing = bundles.write(evidence, source, out, progress)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error}") from error
    if missing:
        output.err.print(f"{missing} files are missing in the store, and so in the bundle: verifying it will name them")
    size = out.stat().st_size / 1e6
    output.out.print(
        f"{out}: {len(evidence.events)} events, {len(evidence.updates)} updates, {size:.1f} MB", markup=False
    )


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


def _asked(
    job: str,
    rpc: str | None,
    contract: str | None,
    from_block: int | None,
    artifacts: str | None,
    without: bool,
    config: Path,
    *,
    blocks: bool = False,
) -> tuple[Evidence, ArtifactSource | None]:
    """A job's evidence from the chain or from the services, and its files."""
    if artifacts is not None and without:
        raise UsageError("--artifacts and --without-artifacts exclude each other")
    source = _source(artifacts, config)
    if rpc is None:
        if contract is not None or from_block is not None:
            raise UsageError("--contract and --from-block go with --rpc; the services know their own contract")
        to = client(config)
        # a whole id needs no aggregator: the ledger and the files are enough
        evidence = services.read(to, job if len(job) == 64 else to.find_job(job).id)
        return evidence, None if without else source or ServiceSource(to)
    if not re.fullmatch(r"https?://.+", rpc):
        raise UsageError("--rpc takes an address that begins with http:// or https://")
    if not re.fullmatch(r"[0-9a-f]{64}", job):
        raise UsageError("with --rpc the job is named by its whole id, 64 hexadecimal characters in lower case")
    if contract is not None and not (contract.startswith("0x") and is_address(contract)):
        raise UsageError(f"--contract: {contract} is no address")
    if source is None and not without:
        raise UsageError("say where the model files are with --artifacts, or do --without-artifacts")
    with _node(rpc) as node:
        with output.fraction("reading the chain") as progress:
            evidence = chain.read(node, job, contract, from_block, progress, everything=blocks)
        if contract is None:
            output.err.print(f"the job's contract is {evidence.domain.contract}: compare it with your consortium's")
        if blocks:
            with output.fraction("reading blocks") as progress:
                evidence, fault = chain.with_blocks(node, evidence, progress)
            if fault is not None:
                output.err.print(f"the bundle will hold no headers: {fault}", markup=False)
    return evidence, source


def _offline(path: Path, job: str, artifacts: str | None, without: bool, config: Path) -> tuple[Evidence, Verdict]:
    with bundles.Bundle(path) as opened:
        evidence = opened.evidence
        if job != "latest" and not evidence.job.startswith(job):
            raise UsageError(f"{path} is of job {evidence.job}")
        source = None if without else _source(artifacts, config) or opened.source
        with output.fraction("verifying") as progress:
            verdict = examine(evidence, source, progress, offline=True)
        findings = (*opened.findings, *verdict.findings)
    return evidence, verdict.model_copy(update={"findings": findings, "ok": not findings})


def _source(artifacts: str | None, config: Path) -> ArtifactSource | None:
    if artifacts is None:
        return None
    if re.match(r"https?://", artifacts):
        endpoints = Endpoints.read(config).model_copy(update={"model_url": artifacts})
        return ServiceSource(Client(Connection(endpoints)))
    if not Path(artifacts).is_dir():
        raise UsageError(f"{artifacts} is no folder")
    return FolderSource(Path(artifacts))


@contextmanager
def _node(url: str) -> Iterator[Node]:
    node = Node(url)
    try:
        yield node
    finally:
        node.close()


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
