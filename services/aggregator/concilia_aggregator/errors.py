"""What can be wrong with a request to the aggregator."""

from __future__ import annotations

from concilia_kit.problems import Conflict, Forbidden, NotFound, Unavailable, Unprocessable


class JobNotFound(NotFound):
    """No job of that id."""

    code = "job_not_found"


class RoundNotFound(NotFound):
    """The job has no such round."""

    code = "round_not_found"


class JobEnded(Conflict):
    """The job takes no further change."""

    code = "job_ended"


class KeyReused(Unprocessable):
    """An idempotency key came again, with something else to be created."""

    code = "idempotency_key_reused"


class InitialMissing(Unprocessable):
    """The initial weights are not among the artifacts."""

    code = "initial_missing"


class StrategyMissing(Unprocessable):
    """No package here brings the job's strategy, or it does not take the job's parameters."""

    code = "strategy_unknown"


class NotYours(Forbidden):
    """A node may speak for its own address only."""

    code = "not_yours"


class NothingPublished(Conflict):
    """The job has published no model."""

    code = "nothing_published"


class ReportMismatch(Conflict):
    """An evaluation of another model than the round's."""

    code = "report_mismatch"


class UpdateChanged(Conflict):
    """An update's file is not the one that was screened."""

    code = "update_changed"


class NoiseKeyLost(Conflict):
    """The key of the noise on a closed round's model is not to be had any more."""

    code = "noise_key_lost"


class VerificationNotFound(NotFound):
    """No verification of that id."""

    code = "verification_not_found"


class TooManyStreams(Unavailable):
    """As many readers follow jobs as this process serves."""

    code = "too_many_streams"


class EventsUnavailable(Unavailable):
    """Redis, which carries the events, does not answer."""

    code = "events_unavailable"


class MaskingConflict(Conflict):
    """A hospital left another message of that kind in the round's room; it does not change."""

    code = "masking_conflict"


class MaskingStageOver(Conflict):
    """The round's masking is further than that, or went on without the hospital."""

    code = "masking_stage_over"


class MaskingNotReady(Conflict):
    """The round's masking is not that far yet."""

    code = "masking_not_ready"


class MaskingInvalid(Unprocessable):
    """A message does not fit the round's masking."""

    code = "masking_invalid"
