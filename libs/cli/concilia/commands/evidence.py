"""Where a job's evidence comes from: the options that say so, for every command that doubts a job."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from concilia_aggregator.verification.sources import FolderSource
from concilia_aggregator.verification.verifier import ArtifactSource
from concilia_kit.sealing import KeyFileError, Keyring, StoreKey
from eth_utils.address import is_address

from concilia import output
from concilia.client import Client
from concilia.commands.options import client
from concilia.connection import Connection, Endpoints, UsageError
from concilia.verification import bundle as bundles
from concilia.verification import chain, leaves, services
from concilia.verification.evidence import Evidence
from concilia.verification.kept import Kept, KeptNode, KeptSource
from concilia.verification.node import Node
from concilia.verification.sources import SealedFolderSource, ServiceSource

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
LeavesOption = Annotated[
    str | None,
    typer.Option(
        "--leaves",
        help="the updates of Merkle rounds, of which the chain has the root only: a file or an address with what "
        "'concilia leaves' writes, or a bundle; the services and bundles tell their own if not given",
    ),
]
Artifacts = Annotated[
    str | None,
    typer.Option(
        "--artifacts",
        help="the artifact store's folder, or a model service's address; the connection's own if not given",
    ),
]
SealingKey = Annotated[
    Path | None,
    typer.Option("--sealing-key", help="with a folder of --artifacts whose files are encrypted: the store's key"),
]
Without = Annotated[bool, typer.Option("--without-artifacts", help="do without the model files: digests only")]


class Question(NamedTuple):
    """What is asked about which job, and of whom: the options as they were given."""

    job: str
    rpc: str | None
    contract: str | None
    from_block: int | None
    leaves: str | None
    artifacts: str | None
    without_artifacts: bool
    config: Path
    sealing_key: Path | None = None


def asked(
    question: Question, *, blocks: bool = False, kept: Kept | None = None
) -> tuple[Evidence, ArtifactSource | None]:
    """A job's evidence from the chain or from the services, and its files. Raises `UsageError`, `Problem`."""
    if question.artifacts is not None and question.without_artifacts:
        raise UsageError("--artifacts and --without-artifacts exclude each other")
    source = source_of(question)
    if question.rpc is not None:
        if source is None and not question.without_artifacts:
            check_chain(question.job, question.rpc, question.contract)
            raise UsageError("say where the model files are with --artifacts, or do --without-artifacts")
        evidence = _of_chain(question, blocks, kept)
    else:
        if question.contract is not None or question.from_block is not None:
            raise UsageError("--contract and --from-block go with --rpc; the services know their own contract")
        to = client(question.config)
        evidence = services.read(to, whole_id(to, question.job))
        source = None if question.without_artifacts else source or ServiceSource(to)
        evidence = with_leaves(evidence, question.leaves)
    if kept is not None and isinstance(source, ServiceSource):
        return evidence, KeptSource(source, kept)
    return evidence, source


def whole_id(to: Client, job: str) -> str:
    """A job's whole id; one that is whole needs no aggregator: the ledger and the files are enough."""
    return job if len(job) == 64 else to.find_job(job).id


def with_leaves(evidence: Evidence, where: str | None) -> Evidence:
    """The evidence with the leaves that an option names. Raises `UsageError`."""
    if where is None:
        return evidence
    if bundles.is_bundle(where):
        with bundles.Bundle(Path(where)) as opened:
            document = opened.evidence.leaves_document()
        if document is None:
            raise UsageError(f"the bundle {where} holds no leaves")
    else:
        document = leaves.read(where)
    return evidence.with_leaves(document)


def source_of(question: Question) -> ArtifactSource | None:
    """The files that --artifacts names. Raises `UsageError`."""
    artifacts, key = question.artifacts, question.sealing_key
    is_folder = artifacts is not None and not re.match(r"https?://", artifacts)
    if key is not None and not is_folder:
        raise UsageError("--sealing-key goes with a folder of --artifacts; the model service has the key itself")
    if artifacts is None:
        return None
    if not is_folder:
        endpoints = Endpoints.read(question.config).model_copy(update={"model_url": artifacts})
        return ServiceSource(Client(Connection(endpoints)))
    if not Path(artifacts).is_dir():
        raise UsageError(f"{artifacts} is no folder")
    if key is None:
        return FolderSource(Path(artifacts))
    try:
        return SealedFolderSource(Path(artifacts), Keyring(StoreKey.read(key)))
    except KeyFileError as error:
        raise UsageError(str(error)) from error


def check_chain(job: str, rpc: str, contract: str | None) -> None:
    """Raise `UsageError` where a chain cannot be asked like this."""
    if not re.fullmatch(r"https?://.+", rpc):
        raise UsageError("--rpc takes an address that begins with http:// or https://")
    if not re.fullmatch(r"[0-9a-f]{64}", job):
        raise UsageError("with --rpc the job is named by its whole id, 64 hexadecimal characters in lower case")
    if contract is not None and not (contract.startswith("0x") and is_address(contract)):
        raise UsageError(f"--contract: {contract} is no address")


@contextmanager
def node_at(url: str) -> Iterator[Node]:
    """A node, closed in the end."""
    node = Node(url)
    try:
        yield node
    finally:
        node.close()


def _of_chain(question: Question, blocks: bool, kept: Kept | None) -> Evidence:
    assert question.rpc is not None, "callers look first"
    check_chain(question.job, question.rpc, question.contract)
    with node_at(question.rpc) as plain:
        node = plain if kept is None else KeptNode(plain, kept)
        with output.fraction("reading the chain") as progress:
            evidence = chain.read(
                node, question.job, question.contract, question.from_block, progress, everything=blocks
            )
        if question.contract is None:
            output.err.print(f"the job's contract is {evidence.domain.contract}: compare it with your consortium's")
        if question.leaves is not None:
            evidence = with_leaves(evidence, question.leaves)
            with output.fraction("reading leaves") as progress:
                evidence = chain.with_wallets(node, evidence, progress)
        elif evidence.commitments():
            output.err.print("the job has Merkle rounds: without --leaves their updates cannot be checked")
        if blocks:
            with output.fraction("reading blocks") as progress:
                evidence, fault = chain.with_blocks(node, evidence, progress)
            if fault is not None:
                output.err.print(f"the bundle will hold no headers: {fault}", markup=False)
    return evidence
