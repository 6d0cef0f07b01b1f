"""Nodes as they register, and as the aggregator tells them."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from concilia_kit.classification import LESIONS, Classified
from concilia_kit.signing import Address
from concilia_kit.strict import Text
from concilia_kit.wire.base import Wire
from concilia_kit.wire.encoding import PLAIN_ONLY, Ability
from concilia_kit.wire.training import Count, OfClasses, Seconds


class NodeRegistration(Wire):
    """What a node says of itself when it starts: counts by class (in its classification's order), never names of
    files. It is asked for jobs of its classification alone."""

    site: Text = Field(min_length=1, max_length=64)
    source: Text = Field(max_length=200, description="what the images are: HAM10000, drawn lesions")
    training_images: OfClasses[Count]
    held_out_images: OfClasses[Count]
    training_lesions: Count
    held_out_lesions: Count
    overlapping_lesions: Count
    skipped_images: Count
    encodings: tuple[Ability, ...] = Field(
        default=PLAIN_ONLY, max_length=32, description="encodings of updates it can make: names, and 'zstd'"
    )
    classification: Classified = LESIONS

    @model_validator(mode="after")
    def _classes(self) -> Self:
        if {len(self.training_images), len(self.held_out_images)} != {len(self.classification.classes)}:
            raise ValueError("training_images and held_out_images must have a count a class")
        return self


class Node(Wire):
    """A registered node as the aggregator tells it."""

    address: Address
    registration: NodeRegistration
    seen_seconds_ago: Seconds
