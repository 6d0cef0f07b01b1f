"""`concilia contributions`: what each hospital's update was worth to a round, and how far it stands out."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from concilia_aggregator import measuring, reputation
from concilia_aggregator.strategies.geometry import Fact, Geometry
from concilia_aggregator.windows import Input
from concilia_kit.digests import Contribution, in_order
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.chain import LedgerRound, RoundStatus

from concilia import output
from concilia.client import Client
from concilia.commands.evidence import whole_id
from concilia.commands.options import DEFAULT_CONFIG, Config, Json, client, guarded
from concilia.connection import UsageError
from concilia.verification.sources import ServiceSource

FAR = 3.0
"""An anomaly beyond which an update is marked."""
_BAR = 20  # characters


@guarded
def contributions(
    job: Annotated[str, typer.Argument(help="the job's id, its beginning, or 'latest'")] = "latest",
    number: Annotated[
        int | None, typer.Option("--round", min=1, help="the round; the last closed one if not given")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show how each update of a round lies to the others: for people to judge, nothing goes by it.

    Fetches the round's updates: auditors, coordinators and administrators may. Agreement and Shapley values are with
    what the round came to, which most may have got wrong; an anomaly above 3 deserves a look.
    """
    to = client(config)
    known = to.ledger_job(whole_id(to, job))
    closed = [each for each in known.rounds if each.status is RoundStatus.CLOSED]
    found = [each for each in closed if number in (None, each.round)]
    if not found:
        raise UsageError("there is no such round that is closed")
    ordered, standings = _measured(to, found[-1])
    if as_json:
        output.as_json(
            {
                "round": found[-1].round,
                "updates": [
                    {"hospital": each.hospital, **asdict(standing)}
                    for each, standing in zip(ordered, standings, strict=True)
                ],
            }
        )
        return
    output.table(
        f"round {found[-1].round}: how {len(ordered)} updates lie to each other",
        ("hospital", "samples", "Shapley", "", "agreement", "length", "without it", "anomaly"),
        [
            (
                each.hospital,
                f"{standing.samples:.0%}",
                f"{standing.shapley:.2f}",
                "█" * round(_BAR * min(max(standing.shapley, 0.0), 1.0)),
                f"{standing.agreement:+.2f}",
                f"{standing.length:.2f}",
                f"{standing.without:.2f}",
                f"{standing.anomaly:.2f}{' !' if standing.anomaly > FAR else ''}",
            )
            for each, standing in zip(ordered, standings, strict=True)
        ],
    )


def _measured(to: Client, item: LedgerRound) -> tuple[list[Contribution], list[reputation.Standing]]:
    ordered = in_order(
        Contribution(each.update.hospital, each.update.digest, each.update.samples) for each in item.accepted()
    )
    if not ordered:
        raise UsageError(f"round {item.round} has no update that counted")
    source = ServiceSource(to)
    with tempfile.TemporaryDirectory(prefix="concilia-contributions-") as name, output.spinner("fetching updates"):
        folder = Path(name)
        try:
            base = TensorFile.open(source.fetch(item.base, folder))
            files = [TensorFile.open(source.fetch(each.digest, folder)) for each in ordered]
            inputs = [Input.open(each, base) for each in files]
            start = Input.open(base, base)
            gram = measuring.gram(inputs, start, inputs[0].reader.tensors)
        except (MalformedFile, KeyError) as error:
            raise UsageError(f"a file of round {item.round} is malformed: {error}") from error
    geometry = Geometry([Fact(each.samples) for each in ordered], lambda: gram)
    return ordered, reputation.standings(geometry, seed=item.round)
