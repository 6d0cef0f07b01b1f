"""A killed process's tasks come back to its queue within seconds, and a living one's stay where they are.

Several processes of one hospital may share its queue. Celery on Redis notes a task that was taken and is not finished
in a list of "unacked" ones. By default it is one list for all, gone through when the visibility timeout (an hour) is
over: too late for a killed worker's task, and too early for a training that takes longer. Here each process has lists
of its own and counts a beat beside them. Whose beat stands still for `DEAD_AFTER` looks is dead, and whoever sees it
puts its tasks back: a sibling, or the same node at its next start.

Looks are counted, not seconds, and only looks that succeeded in a row: after an outage of Redis or a pause of the
machine everybody gets the time to beat again before anybody is taken for dead. Whoever is by mistake (it hung, or lost
the broker alone) loses only work: its task is done twice, and the ledger takes one update of a hospital and round.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection
from typing import Any

import redis
from celery import Celery
from concilia_kit import logs
from concilia_kit.consuming import tags_in_hand

BEAT_SECONDS = 1.0
DEAD_AFTER = 8  # looks
FORGOTTEN_AFTER = 600  # looks; a process that was only paused may take one more task before its next beat
_NEVER = 10 * 365 * 86400  # seconds; the visibility timeout has no part in this
_BROKER_SECONDS = 5.0

_log = logs.get(__name__)


def process_name() -> str:
    """A name for this process that no other has; in containers every process id is 1."""
    return uuid.uuid4().hex[:12]


def transport_options(prefix: str, queue: str, process: str) -> dict[str, Any]:
    """Celery's `broker_transport_options`: all keys under a prefix, and where kombu notes what that process has taken.

    A prefix of its own keeps a node's table of who listens to what apart from the aggregator's, too: who could write
    there could have tasks sent to others.
    """
    return {
        "global_keyprefix": prefix,
        "unacked_key": f"{queue}.unacked.{process}",
        "unacked_index_key": f"{queue}.unacked_index.{process}",
        "unacked_mutex_key": f"{queue}.unacked_mutex",
        "visibility_timeout": _NEVER,
    }


class Siblings(threading.Thread):
    """Beats, watches who else does, and puts tasks back. `in_hand` says which tasks this process still knows of: what
    its own list holds beyond them was lost with a connection, while the broker was away. `refused` is told where the
    broker takes this node's credential no more."""

    def __init__(
        self,
        worker: Celery,
        prefix: str,
        queue: str,
        process: str,
        broker: redis.Redis,
        in_hand: Callable[[], Collection[str]] = tags_in_hand,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="siblings", daemon=True)
        self._worker = worker
        self._prefix = prefix
        self._queue = queue
        self._process = process
        self._broker: Any = broker  # redis-py's types mix its synchronous and asynchronous answers
        self._in_hand = in_hand
        self._refused = refused
        self._beats = f"{prefix}{queue}.beats"
        self._seen: dict[str, tuple[bytes, int]] = {}
        self._strays: dict[str, int] = {}
        self._end = threading.Event()
        self.known = threading.Event()
        """Set with the first beat. Who takes a task before it and is killed leaves a list that nobody looks for."""

    def run(self) -> None:
        """Until `leave`."""
        said = False
        pause = 0.0
        while not self._end.wait(pause):
            pause = BEAT_SECONDS
            try:
                restored = self.look()
            except Exception as error:  # whatever it was, nobody may be taken for dead because of it
                if not said:
                    _log.warning(
                        "cannot beat or look after siblings, going on", error=f"{type(error).__name__}: {error}"
                    )
                said = True
                self._seen.clear()
                self._strays.clear()
                if isinstance(error, redis.AuthenticationError):
                    self._refused()
            else:
                said = False
                self.known.set()
                if restored:
                    _log.warning("tasks that nobody works at went back to the queue", tasks=restored)

    def leave(self) -> None:
        """Say goodbye: nothing is in hand any more. Raises nothing; who cannot say it is found dead."""
        self._end.set()
        self.join(_BROKER_SECONDS)
        try:
            if not self._broker.exists(self._list(self._process)):
                self._broker.hdel(self._beats, self._process)
        except redis.RedisError as error:
            _log.debug("left without a word", error=type(error).__name__)

    def look(self) -> int:
        """Beat once and look once; how many tasks were put back. Raises what the broker's clients raise."""
        pipe = self._broker.pipeline()
        pipe.hincrby(self._beats, self._process, 1)
        pipe.hgetall(self._beats)
        beats = {name.decode(): beat for name, beat in pipe.execute()[1].items() if name.decode() != self._process}
        self._seen = {name: (beat, self._stood(name, beat)) for name, beat in beats.items()}
        restored = self._restore_strays()
        for name, (_, stood) in self._seen.items():
            if stood >= DEAD_AFTER and self._broker.exists(self._list(name)):
                restored += self._restore(name)
            elif stood >= FORGOTTEN_AFTER:
                self._broker.hdel(self._beats, name)
        return restored

    def idle(self) -> bool:
        """Whether there is nothing in the queue, and nothing in anybody's hand. Raises what the broker's clients
        raise."""
        pipe = self._broker.pipeline()
        pipe.llen(self._prefix + self._queue)
        pipe.hkeys(self._beats)
        waiting, names = pipe.execute()
        lists = [self._list(name) for name in {self._process, *(name.decode() for name in names)}]
        return not waiting and not self._broker.exists(*lists)

    def _stood(self, name: str, beat: bytes) -> int:
        """Looks in a row at which a beat was the same."""
        before, stood = self._seen.get(name, (None, 0))
        return stood + 1 if before == beat else 0

    def _restore_strays(self) -> int:
        held = self._in_hand()
        tags = [tag.decode() for tag in self._broker.hkeys(self._list(self._process))]
        self._strays = {tag: self._strays.get(tag, -1) + 1 for tag in tags if tag not in held}
        lost = [tag for tag, looks in self._strays.items() if looks >= DEAD_AFTER]
        return self._restore(self._process, lost) if lost else 0

    def _restore(self, process: str, tags: Collection[str] | None = None) -> int:
        options = {
            **transport_options(self._prefix, self._queue, process),
            "socket_timeout": _BROKER_SECONDS,
            "socket_connect_timeout": _BROKER_SECONDS,
        }
        with self._worker.connection_for_read(transport_options=options) as connection:
            channel: Any = connection.default_channel
            if tags is None:
                tags = [tag.decode() for tag in self._broker.hkeys(self._list(process))]
            for tag in tags:
                # One transaction each, watched: of two siblings at it, one puts the task back.
                channel.qos.restore_by_tag(tag)
        return len(tags)

    def _list(self, process: str) -> str:
        return self._prefix + str(transport_options(self._prefix, self._queue, process)["unacked_key"])
