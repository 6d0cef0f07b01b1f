"""What a node keeps of the masking of rounds, on the hospital's own disk alone: its secrets, the roster that it masks
by, the shares that it holds of others' secrets, the masked update that it sent, and the sum that it agreed to.

Each is written, flushed and in its folder (mode 0600) before what follows from it is sent, so that a node that is
killed at any moment goes on with the same bytes; and what is there is never replaced by anything else: a second
update under one round's masks, or a second sum agreed to, would tell what masks are to hide. What is over goes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TypeVar

from concilia_kit.digests import Digest
from concilia_kit.masking import Held, Secrets
from concilia_kit.wire.base import Wire
from concilia_kit.wire.masking import Revealed, Roster, SignedKeys, Survivors
from pydantic import ValidationError

from concilia_client_node.errors import Refused
from concilia_client_node.flushing import flush_folder, write_whole

ROUNDS_KEPT = 8
"""Of all jobs, in case that nobody says that a round is over."""
_Kept = TypeVar("_Kept", bound=Wire)


class Own(Wire):
    """A hospital's secrets of a round, and the keys that it advertised with them."""

    secrets: Secrets
    keys: SignedKeys


class Sent(Wire):
    """The one update that a round's masks are for: made, and sent or about to be."""

    digest: Digest


class RoundMasking:
    """One round's. Each `keep_…` takes the first that comes, the same again, and raises `Refused` for another, and
    `OSError`; what is kept and cannot be read raises `Refused`, too."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def own(self) -> Own | None:
        """Secrets and keys."""
        return self._read("secrets", Own)

    def keep_own(self, own: Own) -> None:
        """See `own`."""
        self._keep("secrets", own)

    @property
    def roster(self) -> Roster | None:
        """Whose keys the masks are of."""
        return self._read("roster", Roster)

    def keep_roster(self, roster: Roster) -> None:
        """See `roster`."""
        self._keep("roster", roster)

    @property
    def held(self) -> Held | None:
        """Shares, and of whom masks are."""
        return self._read("held", Held)

    def keep_held(self, held: Held) -> None:
        """See `held`."""
        self._keep("held", held)

    @property
    def sent(self) -> Sent | None:
        """The masked update."""
        return self._read("sent", Sent)

    def keep_sent(self, sent: Sent) -> None:
        """See `sent`."""
        self._keep("sent", sent)

    @property
    def agreed(self) -> Survivors | None:
        """The sum that was agreed to."""
        return self._read("agreed", Survivors)

    def keep_agreed(self, survivors: Survivors) -> None:
        """See `agreed`."""
        self._keep("agreed", survivors)

    @property
    def revealed(self) -> Revealed | None:
        """What was revealed."""
        return self._read("revealed", Revealed)

    def keep_revealed(self, revealed: Revealed) -> None:
        """See `revealed`."""
        self._keep("revealed", revealed)

    def _read(self, name: str, kind: type[_Kept]) -> _Kept | None:
        try:
            return kind.model_validate_json((self._directory / f"{name}.json").read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise Refused(f"what this node keeps of the round's masking cannot be read ({name})") from error

    def _keep(self, name: str, record: Wire) -> None:
        kept = self._read(name, type(record))
        if kept is not None:
            if kept != record:
                raise Refused(f"this node keeps another '{name}' of the round's masking, and takes no second one")
            return
        for each in (self._directory.parent, self._directory):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self._directory / f"{name}.json", record.model_dump_json().encode())
        for each in (self._directory, self._directory.parent, self._directory.parent.parent):
            flush_folder(each)


class MaskingFolder:
    """All rounds'."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def of(self, job: str, number: int) -> RoundMasking:
        """One round's, whether anything is kept of it or not."""
        return RoundMasking(self._directory / job / str(number))

    def forget(self, job: str, number: int) -> None:
        """A job's rounds up to that one are over: nothing is kept of them any more."""
        for path in (self._directory / job).glob("*"):
            if int(path.name) <= number:
                shutil.rmtree(path, ignore_errors=True)

    def forget_oldest(self) -> None:
        """Keep `ROUNDS_KEPT`, those that were begun last."""
        there = sorted(self._directory.glob("*/*/secrets.json"), key=_begun, reverse=True)
        for path in there[ROUNDS_KEPT:]:
            shutil.rmtree(path.parent, ignore_errors=True)


def _begun(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # a sibling was faster
        return 0
