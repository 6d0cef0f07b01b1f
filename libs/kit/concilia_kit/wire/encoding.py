"""How updates are encoded, as jobs ask for it and nodes record it. The encodings are in `concilia_kit.encodings`."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from concilia_kit.strict import Integer, Number, NumberOrNone, Truth
from concilia_kit.wire.base import Wire

ZSTD = "zstd"

Ability = Annotated[str, StringConstraints(pattern="^[a-z0-9-]{1,32}$")]
"""A word for something that a node can: an `EncodingName`, or `zstd`. Open, as newer nodes know newer words."""


class EncodingName(StrEnum):
    """What is sent of an update."""

    NONE = "none"
    FLOAT16 = "float16"
    INT8 = "int8"
    TOP_K = "topk"


class Encoding(Wire):
    """An encoding with its parameters; as text `none`, `float16`, `int8`, `topk:0.01`, each with `+zstd` or not."""

    name: EncodingName = EncodingName.NONE
    share: NumberOrNone = Field(
        default=None, ge=1e-6, le=0.5, description="topk only: share of a tensor's elements that is sent"
    )
    zstd: Truth = Field(default=False, description="whether what is sent is compressed (RFC 8878)")

    @model_validator(mode="after")
    def _share_of_top_k(self) -> Self:
        if (self.share is not None) != (self.name is EncodingName.TOP_K):
            raise ValueError("topk, and no other encoding, has a share")
        return self

    @classmethod
    def parse(cls, text: str) -> Self:
        """The encoding that a text stands for. Raises `ValueError` with one line that says what is wrong."""
        match = re.fullmatch(r"([a-z0-9]+)(?::([0-9.e-]+))?(\+zstd)?", text)
        if match is None or match[1] not in set(EncodingName):
            raise ValueError(
                f"'{text}' is no encoding; there are none, float16, int8 and topk:0.01, each with +zstd or not"
            )
        try:
            share = None if match[2] is None else float(match[2])
        except ValueError:
            raise ValueError(f"share: '{match[2]}' is no number") from None
        try:
            return cls.model_validate({"name": match[1], "share": share, "zstd": bool(match[3])})
        except ValidationError as error:
            fault = error.errors()[0]
            raise ValueError(": ".join([*map(str, fault["loc"]), fault["msg"]])) from error

    def __str__(self) -> str:
        share = "" if self.share is None else f":{self.share!r}"
        return f"{self.name.value}{share}{'+zstd' if self.zstd else ''}"

    @property
    def plain(self) -> bool:
        """Whether an update's file holds its very tensors."""
        return self == Encoding()

    @property
    def feedback(self) -> bool:
        """Whether what an update leaves out is kept and added to the next one."""
        return self.name in (EncodingName.INT8, EncodingName.TOP_K)

    @property
    def needs(self) -> frozenset[str]:
        """What a node must be able to."""
        return frozenset({self.name.value} | ({ZSTD} if self.zstd else set()))


class Encoded(Wire):
    """What an encoding came to: bytes of the update's file, bytes it would have had, and seconds it took to encode."""

    encoding: Encoding
    bytes: Integer = Field(ge=0, lt=2**53)
    bytes_plain: Integer = Field(ge=0, lt=2**53)
    seconds: Number = Field(ge=0, allow_inf_nan=False)


ABILITIES: tuple[str, ...] = (*(name.value for name in EncodingName), ZSTD)
"""What this version can."""
PLAIN_ONLY: tuple[str, ...] = (EncodingName.NONE.value,)
"""What nodes can that say nothing of it."""
PLAIN = Encoding()
"""The encoding that is none."""
