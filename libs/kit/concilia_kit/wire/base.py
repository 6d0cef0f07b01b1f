"""The base every wire model shares."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """Frozen, and refuses members that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


def is_none(value: object) -> bool:
    """For `exclude_if`: what was not given is left out, so that documents from before it was keep their digests."""
    return value is None
