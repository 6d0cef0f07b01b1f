"""The broker as a hospital's own user: its credential, and Celery's transport kept to what that user may do.

A node asks the auth service for a user of its own, with its own key, instead of being handed a password. That user may
touch the keys under the node's prefix and say what a queue needs, no scripts among it. Kombu takes a lock by a script
whenever it looks for tasks that were taken too long ago; here `redelivery` looks after those, and kombu does not.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import redis
from concilia_kit import logs
from concilia_kit.problems import Problem
from concilia_kit.wire.auth import BrokerCredential
from concilia_kit.wire.queues import OWN_QUEUE
from kombu.transport import redis as kombu_redis

RETRY_SECONDS = 3.0

_log = logs.get(__name__)


class Credentials(redis.CredentialProvider):
    """A node's user at the broker, asked for when a connection needs it. Thread-safe.

    `ask` raises `Problem`: the hospital may not be enrolled yet, or auth be away. A credential that is to be renewed
    serves as long as no other is to be had.
    """

    def __init__(self, ask: Callable[[], BrokerCredential], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._known: BrokerCredential | None = None
        self._not_before = float("-inf")
        self._said = ""

    def get_credentials(self) -> tuple[str, str]:
        """User and password. Raises `redis.AuthenticationError` where there are none yet."""
        with self._lock:
            due = self._known is None or datetime.now(UTC) >= self._known.renew_at
            if due and self._clock() >= self._not_before:
                self._renew()
            if self._known is None:
                raise redis.AuthenticationError(self._said or "no credential for the broker yet")
            return self._known.username, self._known.password

    def refused(self) -> None:
        """The broker knows the credential no more; the next connection asks for another one."""
        with self._lock:
            self._known = None

    def _renew(self) -> None:
        try:
            self._known = self._ask()
        except Problem as problem:
            self._not_before = self._clock() + RETRY_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
            sentence = f"no credential for the broker: {problem.problem_code}: {problem.detail}"
            if sentence != self._said:
                _log.info(sentence)
            self._said = sentence
        else:
            self._said = ""
            _log.info("credential for the broker", user=self._known.username)


class _QoS(kombu_redis.QoS):
    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:
        pass


class _Channel(kombu_redis.Channel):
    QoS = _QoS
    credentials: redis.CredentialProvider | None = None
    from_transport_options: Any = (*kombu_redis.Channel.from_transport_options, "credentials")

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        parent: Any = super()
        parameters: dict[str, Any] = parent._connparams(asynchronous)
        parent._process_credential_provider(self.credentials, parameters)
        return parameters

    def _lookup(self, *_: object, **__: object) -> list[str]:
        # Whatever a message says of where it goes, here it goes to the one queue that is this node's. The aggregator
        # calls that queue by its whole name, under which there would be another one here.
        return [OWN_QUEUE]


class Transport(kombu_redis.Transport):
    """Takes the option `credentials`, a `redis.CredentialProvider`."""

    Channel = _Channel


TRANSPORT = f"{__name__}:{Transport.__name__}"
"""Celery's `broker_transport`."""
