"""What a node says that it is doing for a round."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from concilia_kit.strict import Number, Text
from concilia_kit.wire.base import Wire


class Stage(StrEnum):
    """What a node is doing for a round."""

    DOWNLOADING = "downloading"
    TRAINING = "training"
    UPLOADING = "uploading"
    SUBMITTING = "submitting"
    SUBMITTED = "submitted"
    UNMASKING = "unmasking"
    EVALUATING = "evaluating"
    EVALUATED = "evaluated"
    REFUSED = "refused"
    FAILED = "failed"


class Progress(Wire):
    """A node's progress in a round; `fraction` of the stage, `detail` one sentence without any data."""

    stage: Stage
    fraction: Number = Field(ge=0, le=1)
    detail: Text = Field(default="", max_length=500)
