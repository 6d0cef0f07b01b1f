"""What leaves the hospital, listed before it leaves: in the node's log, and in its folder (`leaving.json` by job and
round), where the hospital's own people can read what nobody else keeps for them.

`python -m concilia_client_node leaving` prints the last rounds' lists; its folder is `--directory`, else the setting
`CONCILIA_NODE_DIRECTORY`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from concilia_kit import logs
from concilia_kit.digests import Digest
from concilia_kit.signing import Update
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.base import Wire
from concilia_kit.wire.masking import Consent, Revealed, Shares, SignedKeys
from concilia_kit.wire.training import EvaluationReport, UpdateMetrics
from pydantic import AwareDatetime, Field, JsonValue, ValidationError

from concilia_client_node.flushing import write_whole
from concilia_client_node.store import NodeFolder

_log = logs.get(__name__)


class ListedTensor(Wire):
    """A tensor of a file: its dtype as NumPy calls it, numbers in it, and their bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    bytes: int


class Item(Wire):
    """One thing that left, or was about to when the list was written.

    `what` it is and `to` which service; its `bytes` as they are sent, before the transport's own; `digest`: SHA-256 of
    a file. `counts` are the numbers in it, `signature` the hospital's under it, `tensors` what a file holds.
    """

    what: str
    to: str
    at: AwareDatetime
    bytes: int
    digest: Digest | None = None
    counts: dict[str, JsonValue] = Field(default_factory=dict)
    signature: str | None = None
    tensors: tuple[ListedTensor, ...] = ()


class Leaving(Wire):
    """All that left for one round of a job, in order; what is sent again takes its former place."""

    job: str
    round: int
    items: tuple[Item, ...]


def list_update(folder: NodeFolder, job: str, number: int, digest: str, counts: Mapping[str, JsonValue]) -> None:
    """The update's file, which is about to be uploaded. Raises `OSError`, `MalformedFile`."""
    path = folder.update(job, number)
    tensors = TensorFile.open(path).header.tensors
    listed = tuple(
        ListedTensor(name=name, dtype=str(each.dtype), shape=each.shape, elements=each.size, bytes=each.nbytes)
        for name, each in sorted(tensors.items())
    )
    told = {"tensors": len(listed), "elements": sum(each.elements for each in listed), **counts}
    _add(folder, job, number, "update's file", "model", path.stat().st_size, told, digest=digest, tensors=listed)


def list_statement(folder: NodeFolder, update: Update, metrics: UpdateMetrics, signature: str) -> None:
    """The signed statement about an update and its metrics, which are about to be submitted. Raises `OSError`."""
    counts = {"samples": update.samples, **metrics.model_dump(mode="json")}
    size = len(update.model_dump_json()) + len(metrics.model_dump_json())
    digest = update.digest
    _add(folder, update.job, update.round, "update's statement", "chain", size, counts, signature, digest)


def list_keys(folder: NodeFolder, signed: SignedKeys) -> None:
    """A round's keys. Raises `OSError`."""
    keys = signed.keys
    size = len(signed.model_dump_json())
    _add(folder, keys.job, keys.round, "keys", "aggregator", size, {"samples": keys.samples}, signed.signature)


def list_shares(folder: NodeFolder, job: str, number: int, shares: Shares) -> None:
    """Sealed shares of this hospital's secrets. Raises `OSError`."""
    counts: dict[str, JsonValue] = {"parcels": len(shares.parcels)}
    _add(folder, job, number, "sealed shares", "aggregator", len(shares.model_dump_json()), counts)


def list_consent(folder: NodeFolder, job: str, number: int, consent: Consent, survivors: int, dropped: int) -> None:
    """The signature under who is in a sum. Raises `OSError`."""
    counts: dict[str, JsonValue] = {"in the sum": survivors, "dropped": dropped}
    size = len(consent.model_dump_json())
    _add(folder, job, number, "consent to a sum", "aggregator", size, counts, consent.signature)


def list_revealed(folder: NodeFolder, job: str, number: int, revealed: Revealed) -> None:
    """The shares that unmask a sum. Raises `OSError`."""
    counts: dict[str, JsonValue] = {"of survivors": len(revealed.seeds), "of dropped": len(revealed.keys)}
    _add(folder, job, number, "revealed shares", "aggregator", len(revealed.model_dump_json()), counts)


def list_report(folder: NodeFolder, report: EvaluationReport) -> None:
    """The counts of an evaluation. Raises `OSError`."""
    counts: dict[str, JsonValue] = {"images": report.images, "lesions": report.lesions}
    size = len(report.model_dump_json())
    _add(folder, report.job, report.round, "evaluation's counts", "aggregator", size, counts, digest=report.model)


def _add(
    folder: NodeFolder,
    job: str,
    number: int,
    what: str,
    to: str,
    size: int,
    counts: dict[str, JsonValue],
    signature: str | None = None,
    digest: str | None = None,
    tensors: tuple[ListedTensor, ...] = (),
) -> None:
    item = Item(
        what=what,
        to=to,
        at=datetime.now(UTC),
        bytes=size,
        digest=digest,
        counts=counts,
        signature=signature,
        tensors=tensors,
    )
    path = folder.leaving(job, number)
    there = _read(path)
    items = () if there is None else tuple(each for each in there.items if each.what != what)
    write_whole(path, Leaving(job=job, round=number, items=(*items, item)).model_dump_json().encode())
    told = {name: count for name, count in counts.items() if not isinstance(count, (dict, list))}
    _log.info("leaving", job=job, round=number, what=what, to=to, bytes=size, digest=digest, counts=told)


def _read(path: Path) -> Leaving | None:
    try:
        return Leaving.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def last(directory: Path, rounds: int) -> list[Leaving]:
    """The lists of so many rounds, of all jobs, the newest first. Raises `OSError`."""
    paths = sorted((directory / "updates").glob("*/*/leaving.json"), key=lambda path: path.stat().st_mtime_ns)
    found = (_read(path) for path in paths[::-1][:rounds])
    return [each for each in found if each is not None]


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="concilia_client_node leaving", description="List what left this hospital.")
    parser.add_argument("--directory", type=Path, help="the node's own folder; else CONCILIA_NODE_DIRECTORY")
    parser.add_argument("--rounds", type=int, default=3, help="how many rounds, the newest first (default 3)")
    parser.add_argument("--tensors", action="store_true", help="also each tensor of an update's file")
    parser.add_argument("--json", action="store_true", help="everything, a line of JSON a round")
    given = parser.parse_args(arguments)
    directory = given.directory or Path(os.environ.get("CONCILIA_NODE_DIRECTORY", ""))
    if not (directory / "updates").is_dir():
        sys.stderr.write(f"error: '{directory}' is no node's folder: name it with --directory\n")
        return 2
    for each in last(directory, given.rounds):
        if given.json:
            sys.stdout.write(each.model_dump_json() + "\n")
        else:
            sys.stdout.write("\n".join(_lines(each, tensors=given.tensors)) + "\n")
    return 0


def _lines(leaving: Leaving, *, tensors: bool) -> list[str]:
    lines = [f"job {leaving.job} round {leaving.round}"]
    for item in leaving.items:
        lines.append(f"  {item.at:%Y-%m-%d %H:%M:%S} {item.what} to the {item.to} service, {item.bytes:,} bytes")
        if item.digest is not None:
            lines.append(f"    of {item.digest}")
        if item.counts:
            lines.append("    " + ", ".join(f"{name} {_short(count)}" for name, count in item.counts.items()))
        if item.signature is not None:
            lines.append(f"    signed {item.signature}")
        if tensors:
            lines.extend(
                f"    {each.name} {each.dtype} {list(each.shape)}: {each.elements:,} numbers, {each.bytes:,} bytes"
                for each in item.tensors
            )
    return lines


def _short(count: Any) -> str:
    if isinstance(count, float):
        return f"{count:.4g}"
    return f"{count:,}" if isinstance(count, int) else str(count)
