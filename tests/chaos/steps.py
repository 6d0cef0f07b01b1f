"""The steps of a round as calls between its parties: where each is told, and when it is passed through.

Every change of the round's state machine lies between two of these calls, so that to kill somebody before and after
each of them is to kill somebody in every state and at every transition.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

ROUND = 1
"""The round at which processes are killed."""


class Moment(Enum):
    """Where in a call somebody is killed."""

    BEFORE = "before"
    """The request was made and has not arrived."""
    AFTER = "after"
    """It was carried out, and its answer has not arrived."""


@dataclass(frozen=True)
class Call:
    """A step: what it is called, on which line it passes, and what its request looks like."""

    name: str
    line: str
    method: str
    path: str
    body: bytes = b""

    def is_made_by(self, line: str, method: str, path: str, so_far: bytes) -> bool:
        return (
            (line, method) == (self.line, self.method)
            and re.fullmatch(self.path, path.partition("?")[0]) is not None
            and self.body in so_far
        )


@dataclass(frozen=True)
class Step:
    """A moment of a call."""

    call: Call
    moment: Moment

    def __str__(self) -> str:
        return f"{self.moment.value} {self.call.name}"


_HEX = "[0-9a-f]{64}"
_ROUND = f"/v1/rounds/{_HEX}/{ROUND}"


def node_calls(who: str, line: str) -> tuple[Call, ...]:
    return (
        Call(f"{who} looks at its round", f"{line}-chain", "GET", f"/v1/jobs/{_HEX}/rounds/{ROUND}"),
        Call(f"{who} fetches the base model", f"{line}-model", "GET", f"/v1/artifacts/{_HEX}"),
        Call(f"{who} begins its upload", f"{line}-model", "POST", "/v1/uploads"),
        Call(f"{who} uploads", f"{line}-model", "PATCH", "/v1/uploads/[0-9a-f]+"),
        Call(f"{who} submits its update", f"{line}-chain", "POST", "/v1/updates"),
        Call(f"{who} reports its evaluation", f"{line}-aggregator", "PUT", f"/v1/jobs/{_HEX}/rounds/.*/evaluations/.*"),
    )


CENTRE = (
    Call("the coordinator opens the round", "centre-chain", "POST", "/v1/rounds", f'"round":{ROUND},'.encode()),
    Call("the relay broadcasts", "relay-evm", "POST", "/", b"eth_sendRawTransaction"),
    Call("the coordinator stores the global model", "centre-model", "PATCH", "/v1/uploads/[0-9a-f]+"),
    Call("the coordinator closes the round", "centre-chain", "POST", f"{_ROUND}/closure"),
    Call("the coordinator publishes", "centre-chain", "POST", "/v1/publications"),
    Call("the coordinator registers the model", "centre-model", "POST", "/v1/models"),
)


@dataclass(frozen=True)
class Seen:
    """A call that was answered well, and when."""

    call: Call
    at: float


class Trigger:
    """Watches all lines: strikes once, at a step, and notes which calls were answered well."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._lock = threading.Lock()
        self._armed: tuple[Call, Moment, Callable[[], None]] | None = None
        self.seen: list[Seen] = []
        self.struck_at: float | None = None

    def arm(self, step: Step | None, strike: Callable[[], None]) -> None:
        """Forget what was seen, and strike at that step once it comes."""
        with self._lock:
            self.seen, self.struck_at = [], None
            self._armed = None if step is None else (step.call, step.moment, strike)

    def asked(self, line: str, method: str, path: str, so_far: bytes) -> object | None:
        """See `Watcher`."""
        call = next((each for each in self._calls if each.is_made_by(line, method, path, so_far)), None)
        if call is not None:
            self._strike(call, Moment.BEFORE)
        return call

    def answered(self, request: object, status: int) -> None:
        """See `Watcher`."""
        assert isinstance(request, Call)
        self._strike(request, Moment.AFTER)
        if status < 400:
            self.seen.append(Seen(request, time.monotonic()))

    def _strike(self, call: Call, moment: Moment) -> None:
        with self._lock:
            if self._armed is None or self._armed[:2] != (call, moment):
                return
            strike, self._armed = self._armed[2], None
            self.struck_at = time.monotonic()
            strike()
