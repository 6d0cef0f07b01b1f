"""`concilia predict`: using a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from concilia_kit.wire.models import Prediction
from rich.console import Console

from concilia import output
from concilia.commands.options import DEFAULT_CONFIG, Config, Json, client, guarded
from concilia.connection import UsageError


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
