"""What an interrupted verification keeps in a folder, so that it goes on where it was.

    records.jsonl          logs by range of blocks and calldata by transaction, as a node told them, and folds
    artifacts/ab/abcd…     model files that were downloaded, under their SHA-256
    work/                  what is downloaded or folded just now; emptied at the beginning
    lock                   held by the one verification that may use the folder at a time

Nothing in it is believed for being there. Each line of `records.jsonl` is sealed by a key of this user's that lies
elsewhere: what was changed, or sealed by anybody else, is as if it were not there, and asked for again. What a node
told counts for that node only, so that one's lie is not another's; of its logs a range counts while it still has the
block in which the range ends, by hash. A fold is that of its inputs' digests, and of this code's version. A kept file
is hashed before it is taken, and by the verifier again; one with another digest is downloaded anew. So whoever can
write into the folder can make a verification slower, and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from concilia_aggregator.verification.verifier import ArtifactSource
from concilia_kit import digests
from pydantic_core import from_json

from concilia.connection import UsageError
from concilia.verification.node import Node

MOST_LINE = 64 * 2**20
"""Bytes of one sealed line; longer ones are asked for again."""

_KEY_BYTES = 32


class Kept:
    """A folder's sealed records: an index in memory, the records themselves read when they are needed.

    A context manager, within which the folder is its own. Raises `UsageError` where the folder or the key cannot be
    made, or another verification uses the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.artifacts, self.work = folder / "artifacts", folder / "work"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            try:
                self.artifacts.mkdir(parents=True, exist_ok=True)
                fcntl.flock(opened.enter_context((self._folder / "lock").open("wb")), fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(self.work, ignore_errors=True)
                self.work.mkdir(exist_ok=True)
                self._path = self._folder / "records.jsonl"
                self._path.touch()
                self._key = _own_key()
                self._at = self._index()
            except BlockingIOError as error:
                raise UsageError(f"another verification uses {self._folder}") from error
            except OSError as error:
                raise UsageError(f"nothing can be kept in {self._folder}: {error}") from error
            self._opened_files = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self._opened_files.close()

    def recall(self, key: str) -> Any:
        """The record under a key, None where there is none of one's own."""
        if (offset := self._at.get(key)) is None:
            return None
        with self._path.open("rb") as file:
            file.seek(offset)
            found = self._opened(file.readline(MOST_LINE))
        return found[1] if found is not None and found[0] == key else None  # it may have been changed meanwhile

    def remember(self, key: str, record: Any) -> None:
        """Seal a record; the last one under a key counts. Raises `OSError`."""
        body = json.dumps([key, record], separators=(",", ":"), ensure_ascii=True)
        line = json.dumps({"seal": self._seal(body), "body": body}, separators=(",", ":")).encode() + b"\n"
        if len(line) > MOST_LINE:
            return
        # begun on a line of its own: a process that was killed may have left half a line
        with self._path.open("ab") as file:
            file.write(b"\n" + line)
            self._at[key] = file.tell() - len(line)

    def _index(self) -> dict[str, int]:
        found, offset = {}, 0
        with self._path.open("rb") as file:
            while line := file.readline(MOST_LINE):
                if (record := self._opened(line)) is not None:
                    found[record[0]] = offset
                offset = file.tell()
        return found

    def _opened(self, line: bytes) -> tuple[str, Any] | None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = from_json(line)
            body, seal = str(told["body"]), str(told["seal"])
            if hmac.compare_digest(self._seal(body).encode(), seal.encode()):
                key, record = from_json(body)
                return key, record
        return None

    def _seal(self, body: str) -> str:
        return hmac.new(self._key, body.encode(), hashlib.sha256).hexdigest()


class KeptNode(Node):
    """A node whose logs and calldata are kept; all else is asked. Constructing it opens nothing."""

    def __init__(self, node: Node, kept: Kept) -> None:
        self._node = node
        self._kept = kept

    def close(self) -> None:
        """Close the connection."""
        self._node.close()

    def ask(self, method: str, *params: Any) -> Any:
        """See `Node`."""
        return self._node.ask(method, *params)

    @property
    def name(self) -> str:
        """See `Node`."""
        return self._node.name

    def calldata(self, transaction: str) -> str:
        """See `Node`."""
        what = f"calldata {self.name} {transaction}"
        found = self._kept.recall(what)
        if found is None:
            found = super().calldata(transaction)
            self._kept.remember(what, found)
        return str(found)

    def logs(
        self, first: int, last: int, topics: Sequence[str | None], address: str | None
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """See `Node`: ranges that were kept first, as far as they reach without a gap and are the chain's still."""
        what = f"logs {self.name} {self.chain_id()} {address} {' '.join(map(str, topics))}"
        head = self._hash(last)
        for end, hash_, logs in self._ranges(what, first):
            if end > last or self._hash(end) != hash_:
                break  # reorganised, or another chain: from here on all is asked anew
            yield end, logs
            first = end + 1
        for end, logs in super().logs(first, last, topics, address):
            record = {"end": end, "hash": self._hash(end), "logs": logs}
            # the newest block being the same says that the chain was not reorganised while this was asked
            if head is not None and self._hash(last) == head:
                self._kept.remember(f"{what} {first}", record)
            yield end, logs
            first = end + 1

    def _ranges(self, what: str, first: int) -> Iterator[tuple[int, str, list[dict[str, Any]]]]:
        while (found := self._kept.recall(f"{what} {first}")) is not None:
            yield found["end"], found["hash"], found["logs"]
            first = found["end"] + 1

    def _hash(self, number: int) -> str | None:
        block = self.ask("eth_getBlockByNumber", hex(number), False)
        return str(block["hash"]) if isinstance(block, dict) else None


class KeptSource:
    """Files from elsewhere, kept in a folder as they come."""

    def __init__(self, source: ArtifactSource, kept: Kept) -> None:
        self._source = source
        self._folder = kept.artifacts

    def fetch(self, digest: str, folder: Path) -> Path:
        """See `concilia_aggregator.verification.verifier.ArtifactSource`."""
        target = self._folder / digest[:2] / digest
        with contextlib.suppress(OSError):
            if digests.of_file(target) == digest:
                return target
        path = self._source.fetch(digest, folder)
        if digests.of_file(path) == digest:
            target.parent.mkdir(exist_ok=True)
            path.replace(target)  # within one folder, `work` being where things are downloaded
            return target
        return path  # the verifier names it; nothing of the kind is kept


def _own_key() -> bytes:
    """The key that seals, made at its first use: `$XDG_STATE_HOME/concilia/seal.key` (XDG Base Directory 0.8)."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    path = Path(state) / "concilia" / "seal.key"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f"seal.key.{secrets.token_hex(6)}.partial")
    if not path.exists():
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(partial, path)
        partial.unlink()
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise UsageError(f"{path} is no key: remove it")
    return key
