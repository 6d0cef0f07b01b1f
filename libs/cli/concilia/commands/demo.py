"""`concilia demo`: the whole of Concilia on this machine."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from concilia_kit.wire.jobs import Recording
from concilia_kit.wire.models import Weights
from concilia_kit.wire.strategy import StrategyName
from concilia_kit.wire.training import Architecture, Balance, Evaluation, LocalTraining

from concilia import output
from concilia.commands.options import (
    CLASSIFICATION_HELP,
    RECORDING_HELP,
    SECURE,
    SECURE_HELP,
    STRATEGY_HELP,
    Json,
    declared,
    guarded,
    options_checked,
    strategy_of,
)
from concilia.stack import demo as stack
from concilia.stack import refusals
from concilia.stack.supervisor import StartFailed, stop_kept

app = typer.Typer(help="The whole of Concilia on this machine.", invoke_without_command=True)

Directory = Annotated[Path, typer.Option(help="folder of the demo; emptied at each start")]
DEFAULT_DIRECTORY = Path("var/demo")

# Learning rate and input size with which three rounds of a few hundred pictures get somewhere (docs/decisions/0007).
FRESH = (0.01, 48)
TRAINED = (0.005, 64)


@app.callback()
@guarded
def run(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Option(help="HAM10000's folder; drawn lesions if none is given or found")
    ] = None,
    classification: Annotated[Path | None, typer.Option(help=CLASSIFICATION_HELP)] = None,
    architecture: Annotated[Architecture, typer.Option(help="network")] = Architecture.RESNET50,
    weights: Annotated[str, typer.Option(help="'imagenet', 'random' or a safetensors file")] = "random",
    strategy: Annotated[str, typer.Option(help=STRATEGY_HELP)] = StrategyName.FEDAVG.value,
    recording: Annotated[Recording, typer.Option(help=RECORDING_HELP)] = Recording.EACH,
    secure: Annotated[bool, typer.Option("--secure", help=SECURE_HELP)] = False,
    rounds: Annotated[int, typer.Option(min=1, help="rounds")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="local epochs a round")] = 2,
    batch_size: Annotated[int, typer.Option(min=2, help="local batch size")] = 16,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="local learning rate; 0.01 from random weights, 0.005 from trained ones if not given"),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="side of the network's input in pixels; 48 from random weights, 64 from trained ones if not given"
        ),
    ] = None,
    max_images: Annotated[int, typer.Option(min=1, help="training images a site and round at most")] = 400,
    max_held_out: Annotated[int, typer.Option(min=1, help="held-out images a site at most")] = 300,
    drawn_images: Annotated[int, typer.Option(min=56, help="pictures to draw where there are none")] = 640,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="processor threads of each node")] = 1,
    port: Annotated[int, typer.Option(min=1024, max=65000, help="first of the ports used")] = 8700,
    keep: Annotated[bool, typer.Option("--keep", help="leave everything running afterwards")] = False,
    pages: Annotated[
        Path | None, typer.Option(help="folder of the built pages, to serve them and the services at one address")
    ] = None,
    plain_store: Annotated[
        bool, typer.Option("--plain-store", help="keep updates and models as they are, and not encrypted")
    ] = False,
    directory: Directory = DEFAULT_DIRECTORY,
    as_json: Json = False,
) -> None:
    """Train over four hospitals for a few rounds, log, publish, predict, verify; then stop everything."""
    if context.invoked_subcommand:
        return
    signal.signal(signal.SIGTERM, _as_interrupt)
    rate, size = FRESH if weights == Weights.RANDOM else TRAINED
    with options_checked():
        plan = stack.Plan(
            directory=directory,
            port=port,
            data=data,
            declared=classification,
            declaration=declared(classification),
            drawn_images=drawn_images,
            architecture=architecture,
            weights=weights,
            strategy=strategy_of(strategy, ()),
            recording=recording,
            secure=SECURE if secure else None,
            rounds=rounds,
            local=LocalTraining(
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=rate if learning_rate is None else learning_rate,
                image_size=size if image_size is None else image_size,
                max_images=max_images,
                balance=Balance.SAMPLING,
            ),
            evaluation=Evaluation(max_images=max_held_out),
            seed=seed,
            threads=threads,
            keep=keep,
            pages=pages,
            sealed=not plain_store,
            console=output.err if as_json else output.out,
        )
    try:
        result = stack.run(plan)
    except (StartFailed, stack.DemoFailed) as error:
        output.err.print(f"error: {error}", markup=False)
        sys.exit(1)
    if as_json:
        output.as_json(result.report())
    else:
        output.out.print(f"{result.seconds:.0f} s; report in {directory / 'report.json'}", markup=False)
    if not result.verdict.ok:
        sys.exit(1)


@app.command("stop")
@guarded
def stop(directory: Directory = DEFAULT_DIRECTORY, as_json: Json = False) -> None:
    """Stop a demo that was kept."""
    count = stop_kept(directory.resolve())
    if as_json:
        output.as_json({"stopped": count})
    else:
        output.out.print(f"{count} processes stopped" if count else "no demo is running")


@app.command("refusals")
@guarded
def try_refusals(directory: Directory = DEFAULT_DIRECTORY, as_json: Json = False) -> None:
    """Try what the contract must refuse, on a demo that was kept; exit code 1 if any answer is not as it should be."""
    attempts = refusals.attempt_all(directory, lambda attempt: None if as_json else _say(attempt))
    if as_json:
        output.as_json(attempts)
    if not all(attempt.as_expected for attempt in attempts):
        sys.exit(1)


def _say(attempt: refusals.Attempt) -> None:
    word = "accepted" if not attempt.answer else f"refused: {attempt.answer.get('contract_error')}"
    output.out.print(f"{attempt.what}: {word}{'' if attempt.as_expected else '  ← NOT as expected'}", markup=False)
    if attempt.answer:
        output.out.print(json.dumps(attempt.answer, indent=2), markup=False)


def _as_interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
