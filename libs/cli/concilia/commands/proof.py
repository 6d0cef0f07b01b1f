"""`concilia proof`: that a hospital's update is under a Merkle round's commitment, shown to anybody."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from concilia_kit.wire.chain import InclusionProof
from eth_utils.address import is_address, to_checksum_address
from pydantic import ValidationError
from typer.core import TyperGroup

from concilia import output
from concilia.commands.evidence import Contract, FromBlock, Rpc, check_chain, node_at, whole_id
from concilia.commands.options import DEFAULT_CONFIG, Config, Json, client, guarded
from concilia.connection import UsageError
from concilia.verification import chain, leaves, proofs, services

MOST_BYTES = 2**20


class FetchByDefault(TyperGroup):
    """`concilia proof JOB ROUND HOSPITAL` is `concilia proof fetch …`; no job is called like a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See `click.Command`."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["fetch", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Inclusion proofs of Merkle rounds. 'concilia proof JOB ROUND HOSPITAL' fetches one and checks it.",
    no_args_is_help=True,
    cls=FetchByDefault,
)


@app.command("fetch")
@guarded
def fetch(
    job: Annotated[str, typer.Argument(help="the job's id or its beginning, or 'latest'")],
    number: Annotated[int, typer.Argument(metavar="ROUND", min=1, help="the round's number")],
    hospital: Annotated[str, typer.Argument(help="the hospital's address, 0x…")],
    out: Annotated[Path | None, typer.Option("--out", help="keep the proof in this file")] = None,
    rpc: Rpc = None,
    contract: Contract = None,
    from_block: FromBlock = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Fetch a hospital's proof, and check it against the ledger: by the chain service's events, or with --rpc a node's.

    Exit code 1 where it does not hold.
    """
    if not (hospital.startswith("0x") and is_address(hospital)):
        raise UsageError(f"{hospital} is no address")
    address = str(to_checksum_address(hospital))
    to = client(config)
    whole = whole_id(to, job)
    proof = to.proof(whole, number, address)
    if (proof.update.job, proof.update.round, proof.update.hospital) != (whole, number, address):
        raise UsageError("the chain service answered with the proof of another update")
    if out is not None:
        leaves.save(proof, out)
        output.err.print(f"kept in {out}", markup=False)
    _told(_judged(proof, rpc, contract, from_block, config), as_json)


@app.command("check")
@guarded
def check(
    file: Annotated[Path, typer.Argument(help="what 'concilia proof JOB ROUND HOSPITAL --out' wrote")],
    rpc: Rpc = None,
    contract: Contract = None,
    from_block: FromBlock = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Check a proof that was kept: with --rpc by a node alone, no Concilia server is asked.

    Exit code 1 where it does not hold.
    """
    try:
        if file.stat().st_size > MOST_BYTES:
            raise UsageError(f"{file} is too large to be a proof")
        proof = InclusionProof.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise UsageError(f"{file} is no proof: {where} {fault['msg']}") from error
    _told(_judged(proof, rpc, contract, from_block, config), as_json)


def _judged(
    proof: InclusionProof, rpc: str | None, contract: str | None, from_block: int | None, config: Path
) -> proofs.Judgement:
    job, hospital = proof.update.job, proof.update.hospital
    if rpc is None:
        if contract is not None or from_block is not None:
            raise UsageError("--contract and --from-block go with --rpc; the services know their own contract")
        return proofs.judge(proof, *services.about(client(config), job, hospital))
    check_chain(job, rpc, contract)
    with node_at(rpc) as node:
        with output.fraction("reading the chain") as progress:
            domain, events = chain.about(node, job, hospital, contract, from_block, progress)
        if contract is None:
            output.err.print(f"the job's contract is {domain.contract}: compare it with your consortium's")

        def ask_wallet(asked: InclusionProof, block: int) -> bool:
            return chain.wallet_accepts(node, domain, asked.update, asked.signature, block)

        return proofs.judge(proof, domain, events, ask_wallet)


def _told(judgement: proofs.Judgement, as_json: bool) -> None:
    if as_json:
        output.as_json(judgement)
    else:
        for fact in judgement.facts:
            output.out.print(f"· {fact}", markup=False)
        for fault in judgement.faults:
            output.out.print(f"FOUND {fault}", markup=False)
        word = "[green]the proof holds[/]" if judgement.holds else "[red]the proof does NOT hold[/]"
        where = f"job {judgement.job[:12]}… · round {judgement.round} · hospital {judgement.hospital}"
        output.out.print(f"{word} · {where}")
    if not judgement.holds:
        raise typer.Exit(1)
