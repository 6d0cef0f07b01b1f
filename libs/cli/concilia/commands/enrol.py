"""`concilia enrol`: gives roles to the addresses that keystore files name, once or for as long as it runs.

A deployment uses it to enrol its own services and, in the demo profile, each client-node that comes. It signs with the
connection's key, the administrator's, and needs no password but that one: a keystore names its address in the clear.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from concilia_kit.problems import Problem
from concilia_kit.roles import Role
from concilia_kit.wire.chain import Member, Receipt
from eth_utils.address import is_address, to_checksum_address

from concilia import output
from concilia.commands.ledger import SIGNATURE_SECONDS
from concilia.commands.options import DEFAULT_CONFIG, Config, Json, client, guarded
from concilia.connection import UsageError

KEYSTORE_BYTES = 2**16
WATCHED = "slot-*/keystore.json"
# What may go away by itself: a service that starts or restarts, an older token, another administrator's change between.
_TRANSIENT = frozenset({401, 408, 409, 425, 429})


class Ledger(Protocol):
    """What enrolling needs of the Python client."""

    def member(self, address: str) -> Member:
        """An address and its roles."""
        ...

    def change_role(self, role: Role, account: str, *, granted: bool, deadline: int) -> Receipt:
        """Have a signed role change relayed."""
        ...


class KeystoreUnreadable(Exception):
    """A keystore file names no address; the message says why."""


@dataclass(frozen=True)
class Wanted:
    """A role for the address that a keystore names."""

    role: Role
    keystore: Path

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """Read `ROLE=KEYSTORE_FILE`. Raises `UsageError`."""
        role, equals, path = text.partition("=")
        if not equals or not path or role not in list(Role):
            raise UsageError(f"--grant '{text}': write ROLE=KEYSTORE_FILE with a role of {', '.join(Role)}")
        return cls(Role(role), Path(path))


def address_in(keystore: Path) -> str:
    """The address a keystore v3 file names. Raises `FileNotFoundError` and `KeystoreUnreadable`."""
    try:
        with keystore.open("rb") as file:
            document = json.loads(file.read(KEYSTORE_BYTES))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeystoreUnreadable(f"{keystore} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        document = None
    address = document.get("address") if isinstance(document, dict) else None
    if not isinstance(address, str) or not is_address(address.lower()):
        raise KeystoreUnreadable(f"{keystore} is no keystore v3 that names its address")
    return str(to_checksum_address(address.lower()))


@dataclass
class Enrolment:
    """Grants roles that the ledger does not show; a trouble is told when it begins, and not again until it changes."""

    ledger: Ledger
    tell_grant: Callable[[Wanted, str, Receipt], object]
    tell_trouble: Callable[[str], object]
    clock: Callable[[], float] = time.time
    _settled: set[str] = field(default_factory=set)
    _troubles: dict[Path, str] = field(default_factory=dict)

    def grant(self, wanted: Wanted) -> None:
        """Have the role on the ledger. Raises `FileNotFoundError`, `KeystoreUnreadable`, `Problem`."""
        address = address_in(wanted.keystore)
        if wanted.role not in self.ledger.member(address).roles:
            self._change(wanted, address)

    def settle(self, wanted: Wanted) -> bool:
        """Like `grant`; whether it is settled. Trouble that may go away is told instead. Raises `KeystoreUnreadable`,
        and the `Problem` that no other try would change."""
        try:
            self.grant(wanted)
        except FileNotFoundError:
            self._trouble(wanted.keystore, f"{wanted.keystore} is not there yet, waiting")
            return False
        except Problem as problem:
            if problem.problem_status < 500 and problem.problem_status not in _TRANSIENT:
                raise
            self._trouble(wanted.keystore, _later(problem))
            return False
        self._troubles.pop(wanted.keystore, None)
        return True

    def look(self, directory: Path) -> None:
        """Grant `hospital` to each address in a folder of slots that never had it. Raises nothing foreseeable.

        Who has a hospital number and not the role had it, and an administrator took it: it stays taken.
        """
        try:
            found = sorted(directory.glob(WATCHED))
        except OSError as error:
            self._trouble(directory, f"{directory} cannot be read: {error.strerror}, trying again")
            return
        for path in found:
            wanted = Wanted(Role.HOSPITAL, path)
            try:
                self._enrol(wanted)
            except FileNotFoundError:
                continue
            except KeystoreUnreadable as error:
                self._trouble(path, str(error))
            except Problem as problem:
                # One service that is away would be told once for each hospital.
                self._trouble(directory, _later(problem))
                return
            else:
                self._troubles.pop(path, None)
        self._troubles.pop(directory, None)

    def _enrol(self, wanted: Wanted) -> None:
        address = address_in(wanted.keystore)
        if address in self._settled:
            return
        member = self.ledger.member(address)
        if wanted.role not in member.roles:
            if member.hospital_number:
                self._trouble(wanted.keystore, f"{address} lost the hospital role to an administrator, left alone")
            else:
                self._change(wanted, address)
        self._settled.add(address)

    def _change(self, wanted: Wanted, address: str) -> None:
        deadline = int(self.clock()) + SIGNATURE_SECONDS
        self.tell_grant(wanted, address, self.ledger.change_role(wanted.role, address, granted=True, deadline=deadline))

    def _trouble(self, where: Path, sentence: str) -> None:
        if self._troubles.get(where) != sentence:
            self._troubles[where] = sentence
            self.tell_trouble(sentence)


def run(
    enrolment: Enrolment,
    wanted: list[Wanted],
    watched: Path | None,
    ready: Callable[[], object],
    pause: Callable[[], object],
) -> None:
    """Grant what is wanted, say `ready`, and then watch a folder, if one is named, without end.

    Raises `UsageError` for a keystore that is none (and, where nothing is watched, is not there), `Problem`.
    """
    for item in wanted:
        if watched is None and not item.keystore.exists():
            raise UsageError(f"{item.keystore} is missing; create it with 'concilia key create'")
        try:
            while not enrolment.settle(item):
                pause()
        except KeystoreUnreadable as error:
            raise UsageError(str(error)) from error
    ready()
    while watched is not None:
        enrolment.look(watched)
        pause()


@guarded
def enrol(
    grant: Annotated[
        list[str] | None, typer.Option(metavar="ROLE=KEYSTORE_FILE", help="grant the role to the keystore's address")
    ] = None,
    watch: Annotated[
        Path | None, typer.Option(help=f"then keep granting 'hospital' to new {WATCHED} in this folder")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.05, max=3600, help="seconds between looks")] = 1.0,
    ready: Annotated[Path | None, typer.Option(help="file to touch once every --grant is on the chain")] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Grant roles to the addresses that keystores name, unless the contract shows them; signed by your key."""
    wanted = [Wanted.parse(text) for text in grant or ()]
    if not wanted and watch is None:
        raise UsageError("nothing to do: name --grant ROLE=KEYSTORE_FILE, --watch DIRECTORY, or both")

    def tell_grant(item: Wanted, address: str, receipt: Receipt) -> None:
        told: dict[str, Any] = {
            "role": item.role.value,
            "address": address,
            "keystore": str(item.keystore),
            "block": receipt.block,
            "transaction": receipt.transaction,
        }
        sentence = f"{item.role} granted to {address} in block {receipt.block}, transaction {receipt.transaction}"
        # A line a grant, and at once: somebody may be following.
        print(json.dumps(told) if as_json else sentence, flush=True)  # noqa: T201 - this is the result

    def tell_ready() -> None:
        _mark(ready, done=True)
        if wanted:
            output.err.print("every role asked for is on the chain", markup=False)

    _mark(ready, done=False)
    with _ended_by_sigterm():
        enrolment = Enrolment(
            client(config), tell_grant, lambda sentence: output.err.print(sentence, markup=False, soft_wrap=True)
        )
        run(enrolment, wanted, watch, tell_ready, lambda: time.sleep(interval))


def _mark(ready: Path | None, done: bool) -> None:
    """Touch the file, or take away what an earlier run left of it. Raises `UsageError`."""
    try:
        if ready is not None and done:
            ready.touch()
        elif ready is not None:
            ready.unlink(missing_ok=True)
            if not ready.parent.is_dir():
                raise UsageError(f"--ready {ready}: there is no folder {ready.parent}")
    except OSError as error:
        raise UsageError(f"--ready {ready}: {error.strerror}") from error


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Whatever it waits for, SIGTERM ends the command with status 0: what was begun is looked up at the next start."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _later(problem: Problem) -> str:
    return f"{problem.detail} ({problem.problem_code}), trying again"
