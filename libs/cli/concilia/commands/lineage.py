"""`concilia lineage`: from a prediction back to the hospitals whose updates are in it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from concilia_kit.digests import Digest, JobId
from concilia_kit.problems import Problem
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from concilia import output
from concilia.client import Client
from concilia.commands.evidence import Contract, FromBlock, LeavesOption, Question, Rpc, asked, with_leaves
from concilia.commands.options import DEFAULT_CONFIG, Config, Json, client, guarded
from concilia.connection import UsageError
from concilia.verification import bundle as bundles
from concilia.verification import services
from concilia.verification.ancestry import Ancestry, Contributor, Generation, Known, trace
from concilia.verification.evidence import Evidence

MOST_BYTES = 16 * 2**20


class Named(BaseModel):
    """The model that a prediction is of; the prediction's other members do not matter."""

    model: Digest
    job: JobId | None = None


class _Asked(NamedTuple):
    model: str
    job: str | None


@guarded
def lineage(
    what: Annotated[
        str, typer.Argument(help="a model's digest, or a file with a prediction as 'concilia predict --json' prints it")
    ],
    job: Annotated[str | None, typer.Option("--job", help="the job that made the model, where nobody can tell")] = None,
    rpc: Rpc = None,
    contract: Contract = None,
    from_block: FromBlock = None,
    leaves: LeavesOption = None,
    offline: Annotated[
        Path | None, typer.Option("--offline", help="a bundle: neither a service nor a chain is asked")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Tell what a model was made of: rounds, contributors, rejected updates, initial weights, code, hyperparameters.

    Where the parts disagree, the exit code is 1. What was signed and folded is for 'concilia verify' to check.
    """
    named = _named(what)
    chosen = _Asked(named.model, job or named.job)
    if offline is not None:
        if rpc is not None or contract is not None or from_block is not None:
            raise UsageError("--offline asks no chain: leave --rpc, --contract and --from-block out")
        with bundles.Bundle(offline) as opened:
            evidence = with_leaves(opened.evidence, leaves)
        if chosen.job is not None and chosen.job != evidence.job:
            raise UsageError(f"{offline} is of job {evidence.job}")
        known = Known({})
    elif rpc is not None:
        if chosen.job is None:
            raise UsageError("with --rpc name the job with --job: the chain is not asked for a model's digest")
        evidence, _ = asked(Question(chosen.job, rpc, contract, from_block, leaves, None, True, config))
        known = Known({})
    else:
        if contract is not None or from_block is not None:
            raise UsageError("--contract and --from-block go with --rpc; the services know their own contract")
        evidence, known = _of_services(client(config), chosen)
        evidence = with_leaves(evidence, leaves)
    found = trace(chosen.model, evidence, known)
    if as_json:
        output.as_json(found)
    else:
        print_ancestry(found)
    if found.faults:
        raise typer.Exit(1)


def print_ancestry(found: Ancestry, *, console: Console = output.out) -> None:
    """Print a lineage as a tree, then what does not agree and what could not be told."""
    tree = Tree(f"model {found.model}{'' if found.published else ' (not a published one)'}")
    tree.add(f"job {found.job} on contract {found.ledger.contract}, chain {found.ledger.chain_id}")
    if (terms := found.terms) is not None:
        fits = "[green]it is the manifest of this job[/]" if terms.fits else "[red]it is another job's manifest[/]"
        branch = tree.add(f"manifest: {fits}")
        branch.add(escape(f"code {terms.code}"))
        branch.add(f"hyperparameters {terms.hyperparameters}")
        branch.add(escape(f"asked for by {terms.created_by}, {terms.created_at}"))
    if found.initial is not None:
        tree.add(escape(f"initial weights {found.initial.digest}: {found.initial.origin or 'origin not told'}"))
    for item in found.rounds:
        branch = tree.add(_heading(item))
        for each in item.contributors:
            branch.add(escape(_line(each)))
        for each in item.rejected:
            branch.add(f"[red]left out, {escape(str(each.reason))}[/]: {escape(_line(each))}")
        if item.unseen:
            branch.add(f"{item.unseen} updates that nobody told")
    console.print(tree)
    for fault in found.faults:
        console.print(f"FOUND {fault}", markup=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)


def _heading(item: Generation) -> str:
    came = f"model {item.model}" if item.model else "given up"
    under = f", updates under root {item.root}" if item.root else ""
    return f"round {item.round}: {came}{under}"


def _line(each: Contributor) -> str:
    name = f"{each.site} ({each.hospital})" if each.site else each.hospital
    return f"{name} · {each.samples} samples · update {each.update} · block {each.block}"


def _named(what: str) -> Named:
    if re.fullmatch(r"[0-9a-f]{64}", what):
        return Named(model=what)
    try:
        if what == "-":
            data = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with Path(what).open("rb") as file:
                data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{what} is neither a model's digest nor a file with a prediction: {error}") from error
    if len(data) > MOST_BYTES:
        raise UsageError(f"{what} is too large to be a prediction")
    try:
        return Named.model_validate_json(data)
    except ValidationError as error:
        raise UsageError(f"{what} is no prediction: {error.errors()[0]['msg']}") from error


def _of_services(to: Client, chosen: _Asked) -> tuple[Evidence, Known]:
    """What the services tell. The ledger has to answer; of the others what they do not tell is a note."""
    notes, sites = [], {}
    origin = initial = manifest = None
    job = chosen.job
    try:
        version = to.model(chosen.model)
        origin, initial, job = version.initial_origin, version.initial, job or version.job
        if version.job != job:
            raise UsageError(f"the model is of job {version.job}, not of {job}")
    except Problem as problem:
        if job is None:
            raise
        notes.append(f"the model service does not tell of this model: {problem.detail}")
    assert job is not None, "the model service told it, or its problem was raised"
    evidence = services.read(to, job)
    try:
        manifest = to.job(job).manifest
        sites = {node.address: node.registration.site for node in to.nodes()}
    except Problem as problem:
        notes.append(f"the aggregator does not tell of this job: {problem.detail}")
    return evidence, Known(sites, origin, initial, manifest, tuple(notes))
