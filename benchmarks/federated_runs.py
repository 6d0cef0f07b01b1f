"""What runs of `benchmarks.federated` are called, and the table that they are written to: one row a run, CSV.

A row is appended whole, by one process; what is in the table is not run again.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from concilia_kit.wire.strategy import Mixing, StrategyName
from concilia_kit.wire.strategy import Strategy as StrategySpec
from pydantic import ValidationError

BASELINES = ("pooled", "alone", "alone_everywhere")
"""Training on everybody's pictures; on each hospital's own, judged by its own; the same judged by everybody's."""
MIXINGS = {"nnm": Mixing.NEAREST_NEIGHBOURS, "bucketing": Mixing.BUCKETING}
ASSUMED = 0.2
"""Share of hostile updates that rules stand by default."""
_ROOT = "0x" + "0" * 40
_SHARE = "{f}"


@dataclass(frozen=True)
class Run:
    """What is run, as it stands in the table: all that its result depends on, but for the code."""

    level: str
    data: str
    split: str
    strategy: str
    attack: str
    share: float
    screening: bool
    seed: int
    rounds: int
    judged: int
    epochs: int
    batch: int
    rate: float
    balance: str

    @property
    def key(self) -> tuple[str, ...]:
        """As text, as it is read back."""
        return tuple(map(str, astuple(self)))


@dataclass(frozen=True)
class Result:
    """What came of a run. Scores as in `judging.Scores`; `lost` rounds had no model; `rejected` updates by reason,
    `sites` balanced accuracy by site: `name=value;name=value`."""

    hospitals: int
    accuracy: float
    balanced_accuracy: float
    worst_site: float
    melanoma_recall: float
    backdoor: float
    lost: int
    rejected: str
    sites: str
    seconds: float


RUN_COLUMNS = [each.name for each in fields(Run)]
COLUMNS = [*RUN_COLUMNS, *(each.name for each in fields(Result))]


def parse(text: str) -> StrategySpec:
    """A strategy as it is written here: `[nnm+|bucketing+]name[:parameter=value,…]`, and FLTrust's root is the
    simulator's affair. Raises `ValueError`."""
    head, _, rest = text.partition(":")
    mixing, _, name = head.rpartition("+")
    values: dict[str, object] = {"name": name}
    try:
        if mixing:
            values["mixing"] = MIXINGS[mixing]
        if name == StrategyName.FLTRUST:
            values["root"] = _ROOT
        for pair in filter(None, rest.split(",")):
            key, _, value = pair.partition("=")
            values[key] = int(value) if key == "bucket" else float(value)
        return StrategySpec.model_validate(values)
    except (KeyError, ValueError, ValidationError) as error:
        raise ValueError(f"'{text}' is no strategy: {error}") from error


def assuming(text: str, share: float) -> str:
    """The strategy for a share of attackers: `{f}` becomes that share, and no less than what is stood by default."""
    return text.replace(_SHARE, f"{max(share, ASSUMED):g}")


def attacked(
    strategies: Sequence[str], attacks: Sequence[str], shares: Sequence[float]
) -> list[tuple[str, str, float]]:
    """Strategy, attack and share of all runs: every attack at every share, and each strategy once as it is without."""
    found: dict[tuple[str, str, float], None] = {}
    for text in strategies:
        for share in sorted(shares):
            found[assuming(text, share), "none", 0.0] = None
        for attack in () if text in BASELINES else attacks:
            if attack != "none":
                found.update({(assuming(text, share), attack, share): None for share in sorted(shares) if share})
    return list(found)


def read(path: Path) -> list[dict[str, str]]:
    """All whole rows of a table; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if rows and rows[0] != COLUMNS:
        raise ValueError(f"{path} has other columns than runs have now; name another file")
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows[1:] if len(row) == len(COLUMNS)]


def known(rows: Sequence[dict[str, str]]) -> set[tuple[str, ...]]:
    """The keys of runs that are there."""
    return {tuple(row[name] for name in RUN_COLUMNS) for row in rows}


def append(path: Path, run: Run, result: Result) -> None:
    """One row, in one write; the header first, and a line that was cut off is ended. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    before = path.read_bytes() if path.exists() else b""
    if not before:
        writer.writerow(COLUMNS)
    elif not before.endswith(b"\n"):
        text.write("\n")
    writer.writerow(
        [*astuple(run), *(round(value, 5) if isinstance(value, float) else value for value in astuple(result))]
    )
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, text.getvalue().encode())
    finally:
        os.close(handle)
