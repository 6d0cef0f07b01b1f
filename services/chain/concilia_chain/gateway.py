"""The one way to the chain: takes orders, and sees each of them through in a thread of its own.

An order is kept before anybody is told that it was taken, and goes out as soon as the node answers, whether or not
somebody still waits. One process may send, by its lease.
"""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import Future

from concilia_kit import logs
from concilia_kit.problems import Problem, Unavailable
from concilia_kit.wire.chain import UpdateSubmission

from concilia_chain.answers import Answers, Outcome
from concilia_chain.calls import Call
from concilia_chain.errors import ChainUnavailable, GatewayStandby
from concilia_chain.lease import Lease, LeaseHeld
from concilia_chain.metrics import FAILED, REPEATED, ChainMetrics
from concilia_chain.orders import IN_A_BLOCK, State
from concilia_chain.outbox import Outbox
from concilia_chain.relay import Relay
from concilia_chain.sender import Sender

_UNDER_WAY_SECONDS = 0.02
"""How soon to look again while a transaction is on its way to a block: development chains make one at once."""
_BREATH_SECONDS = 0.005
_TROUBLE_SECONDS = 0.5
_log = logs.get(__name__)


class Gateway(threading.Thread):
    """Sees orders through until stopped."""

    def __init__(
        self,
        outbox: Outbox,
        sender: Sender,
        relay: Relay,
        answers: Answers,
        lease: Lease,
        poll_seconds: float,
        metrics: ChainMetrics,
    ) -> None:
        super().__init__(name="gateway", daemon=True)
        self._outbox = outbox
        self._sender = sender
        self._relay = relay
        self._answers = answers
        self._lease = lease
        self._poll_seconds = poll_seconds
        self._metrics = metrics
        self._stopping = threading.Event()
        self._kicked = threading.Event()
        self._failure: Exception | None = None

    def put(
        self, call: Call, submission: UpdateSubmission | None = None, *, final: bool
    ) -> tuple[Future[Outcome], bool]:
        """Keep an order; its answer to come, and whether the same was asked before.

        The answer is there once the order is in a block, or `final`. It raises `Refused`, or another `Problem` that
        says what is in its way for now.
        """
        order, known = self._outbox.put(_key(call), call, submission, time.time())
        answer = self._answers.of(order, final=final)  # before looking: the order may end meanwhile
        standing = self._outbox.standing(order)
        if standing is None:  # refused between the two
            self._answers.fail(order, GatewayStandby("the order was just refused; ask again"))
        elif standing.state is not None and standing.state.value in IN_A_BLOCK:
            self._metrics.transactions.labels(call.function, REPEATED).inc()
            self._answers.settle(order, Outcome(standing), final=standing.state is State.FINAL)
        self._kicked.set()
        return answer, known

    def knows(self, call: Call) -> bool:
        """Whether a call was asked for, and was not refused."""
        return self._outbox.known(_key(call))

    def stop(self) -> None:
        """Stop the thread and wait for it. What it did not finish is finished after the next start."""
        self._stopping.set()
        self._kicked.set()
        if self.is_alive():
            self.join()
        self._answers.fail_all(self._answers.waiting(), Unavailable("the service is stopping", code="stopping"))

    def check(self) -> None:
        """A readiness check: the thread lives, and its last turn succeeded."""
        if not self.is_alive():
            raise RuntimeError("the gateway does not run")
        if self._failure is not None:
            raise self._failure

    def run(self) -> None:
        """Take turns until stopped."""
        while not self._stopping.is_set():
            self._stopping.wait(_BREATH_SECONDS)  # whoever comes at the same time is served in the same turn
            self._kicked.clear()
            try:
                self._lease.hold()
                pause = self._turn()
                self._failure = None
            except Exception as error:  # whatever fails, the next turn tries again
                self._trouble(error)
                self._stopping.wait(_TROUBLE_SECONDS)
                continue
            self._kicked.wait(pause)
        try:
            self._lease.release()
        except Exception as error:  # it ends by itself
            _log.warning("the lease was not released", error=type(error).__name__)

    def _turn(self) -> float:
        if self._outbox.is_idle():
            return self._poll_seconds
        head = self._relay.head()
        self._sender.settle(head)
        soonest = self._sender.send(head)
        pause = _UNDER_WAY_SECONDS if self._sender.settle(head) and self._sender.eager else self._poll_seconds
        return pause if soonest is None else min(soonest, pause)

    def _trouble(self, error: Exception) -> None:
        """Tell those whose orders were not sent yet; what was sent is waited for."""
        if self._failure is None:
            _log.warning("orders are held up", error=f"{type(error).__name__}: {error}")
        self._failure = error
        if isinstance(error, LeaseHeld):
            told: Problem = GatewayStandby(f"another gateway sends from this relay's key: {error}")
        elif isinstance(error, Problem):
            told = error
        else:
            told = ChainUnavailable(f"the order is kept, and cannot be sent now ({type(error).__name__})")
        for order in self._answers.waiting():
            try:
                standing = self._outbox.standing(order)
            except Exception:  # the database is what fails
                standing = None
            if standing is None or standing.state is None:
                if standing is not None:
                    self._metrics.transactions.labels(standing.function, FAILED).inc()
                self._answers.fail(order, told)


def _key(call: Call) -> str:
    return hashlib.sha256(call.data.encode()).hexdigest()
