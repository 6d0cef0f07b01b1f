"""`concilia predict` and `concilia card`: using a model, and knowing what it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from concilia_kit.problems import Problem
from concilia_kit.wire.models import Prediction
from rich.console import Console

from concilia import output
from concilia.commands.options import DEFAULT_CONFIG, Config, Json, client, guarded
from concilia.connection import UsageError
from concilia.predicting import Answer, answers, check_maps, likeliest, percentile, pictures_of, remarks

Pictures = Annotated[list[Path], typer.Argument(help="JPEG or PNG of lesions, and folders of such")]


def print_prediction(prediction: Prediction, *, console: Console = output.out) -> None:
    """Print a picture's probabilities, most likely first."""
    output.table(
        f"model {prediction.model[:12]}… of job {prediction.job[:12]}…",
        ("class", "name", "probability"),
        [
            (item.code, item.name, f"{item.probability:.3f}")
            for item in sorted(prediction.probabilities, key=lambda item: -item.probability)
        ],
        console=console,
    )
    for remark in remarks(prediction):
        console.print(remark, markup=False)
    console.print(prediction.notice)


@guarded
def predict(
    pictures: Pictures,
    model: Annotated[
        str | None, typer.Option(help="digest of a published model, or its beginning; the newest if not given")
    ] = None,
    attention: Annotated[
        Path | None,
        typer.Option(help="a folder, made if it is not there, for where the network looked: a PNG a picture"),
    ] = None,
    class_counts: Annotated[
        str | None,
        typer.Option(
            help="pictures of each class where these are from, as 120,80,… in the model's order: for models that were "
            "evaluated by own shares"
        ),
    ] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Predict pictures with a published model: one in full, several or a folder a line each.

    A picture that cannot be predicted is a line that says why; the rest goes on, and the exit code is 1.
    """
    asked = pictures_of(pictures)
    if attention is not None:
        check_maps(asked, attention)
    to = client(config)
    if model is not None and not re.fullmatch("[0-9a-f]{64}", model):
        model = to.find_model(model).digest
    alone = len(pictures) == 1 and not pictures[0].is_dir()
    done: list[Answer] = []
    critical, first = None, True
    stopped = None
    with _progress(len(asked), shown=not alone and (as_json or not output.out.is_terminal)) as told:
        try:
            for answer in answers(to, asked, model, attention, class_counts):
                done.append(answer)
                told(len(done))
                if not as_json and not alone:
                    if answer.prediction is not None and first:
                        critical, first = to.model(answer.prediction.model).classification.critical, False
                    output.out.print(line(answer, critical), markup=False, soft_wrap=True)
        except Problem as problem:
            stopped = problem
    if alone and done:
        _print_one(done[0], as_json)
    elif done:
        _print_summary(done, len(asked), as_json)
    if stopped is not None:
        raise stopped
    if any(each.fault for each in done):
        raise typer.Exit(1)


@guarded
def card(
    model: Annotated[
        str, typer.Argument(help="a published model's digest, its job's id, the beginning of either, or 'latest'")
    ] = "latest",
    out: Annotated[Path | None, typer.Option("--out", help="the file to write; standard output if not given")] = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Print a published model's card, in Markdown: what it is for, what it was made of, and how good it is."""
    to = client(config)
    job = to.find_job_of(model)
    text = to.card(job.id)
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error}") from error
    output.out.print(f"{out}: the card of model {job.model}", markup=False, soft_wrap=True)


def line(answer: Answer, critical: str | None) -> str:
    """One picture in a line: class, its probability, that of the class that must not be missed, the file."""
    name = "".join(letter if letter.isprintable() else "\ufffd" for letter in str(answer.picture.path))
    if answer.prediction is None:
        return f"not predicted: {answer.fault} · {name}"
    first = likeliest(answer.prediction)
    feared = [each for each in answer.prediction.probabilities if each.code == critical]
    beside = "".join(f"{each.code} {each.probability:.3f}  " for each in feared)
    told = answer.prediction.critical
    warnings = [f"{told.code} above its threshold"] if told is not None and told.above else []
    if answer.prediction.unusual is not None and answer.prediction.unusual.beyond:
        warnings.append("unusual: its probabilities may mean nothing")
    warnings += [answer.fault] if answer.fault else []
    return f"{first.code:<8}{first.probability:.3f}  {beside}{' · '.join((name, *warnings))}"


@contextmanager
def _progress(pictures: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """How far it is, where the lines themselves do not show it to who waits."""
    if not shown:
        yield lambda _done: None
        return
    with output.fraction("predicting") as told:
        yield lambda done: told(done / pictures, f"{done} of {pictures} pictures")


def _print_one(answer: Answer, as_json: bool) -> None:
    if answer.prediction is None:
        output.err.print(f"error: {answer.fault}", markup=False)
        return
    if as_json:
        output.as_json(answer.prediction)
    else:
        print_prediction(answer.prediction)
    if answer.map is not None:
        output.err.print(f"attention: {answer.map}", markup=False, soft_wrap=True)
    if answer.fault is not None:
        output.err.print(f"error: {answer.fault}", markup=False)


def _print_summary(done: Sequence[Answer], asked: int, as_json: bool) -> None:
    predicted = [each for each in done if each.prediction is not None]
    latencies = [each.seconds * 1000 for each in predicted]
    p50, p95 = (round(percentile(latencies, share), 1) if latencies else None for share in (0.5, 0.95))
    if as_json:
        counts = {"pictures": asked, "predicted": len(predicted), "p50_ms": p50, "p95_ms": p95}
        output.as_json({**counts, "answers": [each.document() for each in done]})
        return
    took = f", {p50} ms a picture at the median, {p95} ms at the 95th percentile" if latencies else ""
    output.out.print(f"{len(predicted)} of {asked} pictures predicted{took}", markup=False)
    if (made := predicted[0].prediction if predicted else None) is not None:
        output.out.print(f"model {made.model[:12]}… of job {made.job[:12]}… · {made.notice}", markup=False)
