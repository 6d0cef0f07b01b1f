"""`concilia node`, `member`, `key`, `update`: who takes part, and what they sign."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from concilia_kit import digests, keystore, signing
from concilia_kit.roles import Role
from concilia_kit.wire.chain import Acknowledgement, UpdateSubmission
from concilia_kit.wire.training import UpdateMetrics

from concilia import output
from concilia.commands.options import DEFAULT_CONFIG, Config, Json, client, guarded
from concilia.connection import UsageError

nodes = typer.Typer(help="Client-nodes.", no_args_is_help=True)
members = typer.Typer(help="Who holds which role on the contract.", no_args_is_help=True)
keys = typer.Typer(help="Keys on this machine.", no_args_is_help=True)
updates = typer.Typer(help="Signed updates.", no_args_is_help=True)

SIGNATURE_SECONDS = 600

Address = Annotated[str, typer.Argument(help="Ethereum address, 0x…")]


@nodes.command("status")
@guarded
def node_status(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show the nodes that registered and when they were last heard of."""
    found = client(config).nodes()
    if as_json:
        output.as_json(found)
        return
    output.table(
        None,
        ("address", "site", "source", "training images", "held-out images", "skipped", "heard of"),
        [
            (
                item.address,
                item.registration.site,
                item.registration.source,
                str(sum(item.registration.training_images)),
                str(sum(item.registration.held_out_images)),
                str(item.registration.skipped_images),
                f"{item.seen_seconds_ago:.0f} s ago",
            )
            for item in found
        ],
    )


@members.command("show")
@guarded
def member_show(address: Address, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show the roles an address holds."""
    member = client(config).member(address)
    if as_json:
        output.as_json(member)
    else:
        output.out.print(f"{member.address}: {', '.join(member.roles) or 'no role'}")


def _change(role: Role, address: str, granted: bool, config: Path, as_json: bool) -> None:
    deadline = int(time.time()) + SIGNATURE_SECONDS
    receipt = client(config).change_role(role, address, granted=granted, deadline=deadline)
    if as_json:
        output.as_json(receipt)
    else:
        what = "granted to" if granted else "revoked from"
        output.out.print(f"{role} {what} {address} in block {receipt.block}, transaction {receipt.transaction}")


@members.command("grant")
@guarded
def member_grant(role: Role, address: Address, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Grant a role; signed by your key, verified by the contract."""
    _change(role, address, True, config, as_json)


@members.command("revoke")
@guarded
def member_revoke(role: Role, address: Address, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Revoke a role; signed by your key, verified by the contract."""
    _change(role, address, False, config, as_json)


@keys.command("create")
@guarded
def key_create(
    path: Annotated[Path, typer.Argument(help="keystore to write; its password goes beside it, .password")],
    as_json: Json = False,
) -> None:
    """Make a new key under a random password; nothing is ever overwritten."""
    try:
        account = keystore.create(path, path.with_suffix(".password"))
    except keystore.KeystoreError as error:
        raise UsageError(str(error)) from error
    if as_json:
        output.as_json({"address": account.address, "keystore": str(path)})
    else:
        output.out.print(account.address)


@updates.command("submit")
@guarded
def update_submit(
    file: Annotated[Path, typer.Argument(help="safetensors file of the update")],
    job: Annotated[str, typer.Option(help="the job's id or its beginning, or 'latest'")],
    round_number: Annotated[int, typer.Option("--round", help="round it belongs to")],
    samples: Annotated[int, typer.Option(help="training samples behind it")],
    base: Annotated[str | None, typer.Option(help="digest it started from; the round's base if not given")] = None,
    hospital: Annotated[
        str | None, typer.Option(help="address it is said to be from; the signer's if not given")
    ] = None,
    sign_with: Annotated[Path | None, typer.Option(help="keystore that signs; your own if not given")] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Upload, sign and submit an update by hand; what the contract refuses is printed as it says it."""
    to = client(config)
    found = to.find_job(job)
    try:
        signer = keystore.load(sign_with, sign_with.with_suffix(".password")) if sign_with else to.account
    except keystore.KeystoreError as error:
        raise UsageError(str(error)) from error
    opened = next((item for item in found.rounds if item.round == round_number), None)
    if base is None and (opened is None or opened.base is None):
        raise UsageError(f"round {round_number} is not known; name the base with --base")
    digest = to.upload(file)
    metrics = UpdateMetrics(
        loss=0.0,
        accuracy=0.0,
        images=samples,
        lesions=0,
        skipped_images=0,
        epochs=0,
        seconds_download=0.0,
        seconds_training=0.0,
        seconds_upload=0.0,
        bytes_download=0,
        bytes_upload=file.stat().st_size,
    )
    update = signing.Update(
        hospital=hospital or signer.address,
        job=found.id,
        round=round_number,
        base=base or (opened.base if opened else None) or "",
        digest=digest,
        samples=samples,
        metrics=digests.of_json(metrics.model_dump(mode="json")),
    )
    answer = to.submit_update(
        UpdateSubmission(update=update, metrics=metrics, signature=signing.sign(update, to.domain(), signer))
    )
    if as_json:
        output.as_json(answer)
    elif isinstance(answer, Acknowledgement):
        output.out.print(f"collected, to be committed with the round's others: leaf {answer.leaf}")
    else:
        output.out.print(f"recorded in block {answer.block}, transaction {answer.transaction}")
