"""Errors of the chain service. What the contract refuses keeps the contract's own word for it."""

from __future__ import annotations

from concilia_kit.problems import Conflict, NotFound, Problem, Unavailable, Unprocessable

from concilia_chain.refusals import Refusal


class StartError(Exception):
    """The service cannot start; the message is one line that says what to do."""


class ChainUnavailable(Unavailable):
    """The node does not answer, or answers nonsense."""

    code = "chain_unavailable"


class ReceiptTimeout(Unavailable):
    """What was asked is not on the chain yet. It is kept, and still comes: repeating the request is safe."""

    code = "receipt_timeout"


class GatewayStandby(Unavailable):
    """This process does not send for now: another holds the relay's lease."""

    code = "gateway_standby"


class NothingCollected(Conflict):
    """A commitment is asked for, and no hospital's update was collected."""

    code = "nothing_collected"


class UpdateUnknown(NotFound):
    """There is no such committed update, or the gateway lost its leaf."""

    code = "update_not_found"


class LedgerNotFollowed(Unavailable):
    """The ledger's events are not read up to the newest block yet, and what they say is not known."""

    code = "ledger_not_followed"


class Refused(Problem):
    """The contract refused, in the dry run or on chain; `code` is the contract error's name in snake_case."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(
            refusal.sentence,
            status=refusal.status,
            code=refusal.code,
            extra={"contract_error": refusal.name, "arguments": refusal.arguments},
        )
        self.refusal = refusal


class MetricsMismatch(Unprocessable):
    """The metrics are not those whose digest was signed."""

    code = "metrics_mismatch"


class CursorMalformed(Unprocessable):
    """A page is asked for by a cursor that no page gave."""

    code = "cursor_malformed"


class JobUnknown(NotFound):
    """The ledger has no such job."""

    code = "job_unknown"


class RoundUnknown(NotFound):
    """The ledger has no such round."""

    code = "round_unknown"
