"""What a person or a program reads: tables and progress for the one, JSON for the other.

Results go to standard output, everything on the way to standard error, so that `--json` can be piped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from concilia_kit import judging
from concilia_kit.classification import Classification
from concilia_kit.wire.jobs import JobView, Phase, RoundView
from concilia_kit.wire.progress import Progress as NodeProgress
from concilia_kit.wire.progress import Stage
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

_UNWATCHED_WIDTH = 200  # columns where no terminal says how many it has: tables are not cut in a log
_SHORT = {"balanced_accuracy": "bal. acc."}


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=_UNWATCHED_WIDTH)


out = _console(stderr=False)
err = _console(stderr=True)


def as_json(value: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> None:
    """Print a result as JSON."""
    if isinstance(value, BaseModel):
        document: Any = value.model_dump(mode="json")
    elif isinstance(value, dict):
        document = value
    else:
        document = [item.model_dump(mode="json") for item in value]
    print(json.dumps(document, indent=2))  # noqa: T201 - this is the result


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]], *, console: Console = out) -> None:
    """Print a table; numbers are right-aligned where a column's cells all look like one."""
    made = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        numeric = rows and all(row[index].replace(".", "").replace(",", "").lstrip("-").isdigit() for row in rows)
        made.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    console.print(made)


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show that something is under way; one line where nobody watches."""
    if err.is_terminal:
        with err.status(text):
            yield
    else:
        err.print(text)
        yield


@contextmanager
def fraction(text: str) -> Iterator[Callable[[float, str], None]]:
    """A bar for a fraction from 0 to 1 and a step's name on a terminal; elsewhere a line whenever a tenth is done."""
    if not err.is_terminal:
        said: list[int] = []

        def line(done: float, step: str) -> None:
            if int(done * 10) not in said[-1:]:
                said.append(int(done * 10))
                err.print(f"{text}, {done:.0%} done: {step}", markup=False)

        yield line
        return
    columns = (TextColumn(text), BarColumn(bar_width=30), TextColumn("{task.percentage:>3.0f} % {task.description}"))
    # Left alone, standard output can go to a file meanwhile; rich would draw it into the terminal.
    with Progress(*columns, TimeElapsedColumn(), console=err, transient=True, redirect_stdout=False) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda done, step: progress.update(task, completed=done, description=escape(step))


_COLOURS = {Stage.FAILED: "red", Stage.REFUSED: "red", Stage.SUBMITTED: "green", Stage.EVALUATED: "green"}


class JobWatch:
    """A job as it runs: a bar a hospital on a terminal, a line a change elsewhere. Use as a context manager."""

    def __init__(self, sites: dict[str, str]) -> None:
        self._sites = sites
        self._bars: dict[str, TaskID] = {}
        self._said: dict[str, object] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=err,
            disable=not err.is_terminal,
        )

    def __enter__(self) -> JobWatch:
        self._progress.start()
        self._job = self._progress.add_task("job", total=1.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, job: JobView) -> None:
        """Show a job's state."""
        self._say("phase", f"round {job.round}: {job.phase.value}", (job.phase, job.round))
        done = sum(item.closed_at is not None for item in job.rounds)
        self._progress.update(
            self._job,
            description=f"job {job.id[:8]} · round {job.round} of {job.spec.rounds} · {job.phase.value}",
            completed=1.0 if job.phase is Phase.FINISHED else done / (job.spec.rounds + 1),
        )
        if job.rounds:
            for hospital, progress in sorted(job.rounds[-1].progress.items()):
                self._node(job.rounds[-1].round, hospital, progress)
        told = job.spec.classification
        first = judging.headline(told)
        for item in job.rounds:
            still_evaluated = job.phase in {Phase.BASELINE, Phase.EVALUATING} and item is job.rounds[-1]
            if item.pooled is not None and not still_evaluated:
                score = judging.value(first, item.pooled, told)
                text = f"round {item.round}: pooled {judging.words(first, told)} {_number(score)}"
                self._say(f"score{item.round}", text, item.round)

    def _node(self, round_: int, hospital: str, progress: NodeProgress) -> None:
        site = self._sites.get(hospital, hospital[:10])
        colour = _COLOURS.get(progress.stage, "default")
        if hospital not in self._bars:
            self._bars[hospital] = self._progress.add_task(site, total=1.0)
        self._progress.update(
            self._bars[hospital],
            description=f"[{colour}]  {site}: {progress.stage.value}[/]",
            completed=progress.fraction,
        )
        line = f"  round {round_} · {site}: {progress.stage.value} {progress.detail}".rstrip()
        self._say(hospital, line, (round_, progress.stage))

    def _say(self, what: str, line: str, state: object) -> None:
        if self._said.get(what) != state:
            self._said[what] = state
            if not err.is_terminal:
                err.print(line)


def rounds_table(job: JobView, *, console: Console = out) -> None:
    """The rounds of a job: what counted, how good it is, where the seconds went."""
    told = job.spec.classification
    first, *others = judging.shown(told)
    table(
        f"job {job.id[:12]}… · {job.spec.architecture} · {job.spec.strategy.name} · {job.phase.value}"
        + ("" if job.spec.encoding.plain else f" · updates as {job.spec.encoding}"),
        (
            "round",
            "updates logged",
            "rejected",
            f"pooled {_SHORT.get(first) or judging.words(first, told)}",
            "worst site",
            *(judging.words(each, told) for each in others),
            "loss",
            "s training",
            "s moving",
            "s on chain",
            "s folding",
            "MB moved",
        ),
        [_round_row(item, told) for item in job.rounds],
        console=console,
    )


def calibration(job: JobView, *, console: Console = out) -> None:
    """What the last calibrated round says of how to read the model, where one was."""
    for item in [item for item in job.rounds if item.calibrated is not None][-1:]:
        for line in _use_lines(item):
            console.print(line, markup=False)


def _use_lines(item: RoundView) -> Iterator[str]:
    if item.calibrated is None:
        return
    use = item.calibrated.use
    yield (
        f"calibrated in round {item.round} on {use.images} held-out images: temperature {use.temperature:.3f}, "
        f"expected calibration error {_number(use.error_before)} → {_number(use.error_after)}, "
        f"loss {_number(use.loss_before)} → {_number(use.loss_after)}"
    )
    if use.critical is not None:
        found = use.critical
        yield (
            f"{found.code} is told from {found.threshold:.3f} on: sensitivity {found.sensitivity:.3f} of "
            f"{found.positives} images, specificity {_number(found.specificity)} of {found.negatives}"
        )
    if use.unusual is not None:
        yield f"unusual is told of {use.unusual.share:.1%} of held-out images"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _round_row(item: RoundView, told: Classification) -> tuple[str, ...]:
    pooled = item.pooled
    first, *others = [None if pooled is None else judging.value(each, pooled, told) for each in judging.shown(told)]
    sites = [judging.value(judging.headline(told), site.scores, told) for site in item.sites]
    return (
        str(item.round),
        str(item.accepted + len(item.rejected)),
        str(len(item.rejected)),
        _number(first),
        _number(min((each for each in sites if each is not None), default=None)),
        *map(_number, others),
        f"{pooled.loss:.3f}" if pooled else "–",
        f"{item.seconds_training:.1f}",
        f"{item.seconds_moving:.1f}",
        f"{item.seconds_chain:.2f}",
        f"{item.seconds_folding:.2f}",
        f"{item.bytes_moved / 1e6:.1f}",
    )
