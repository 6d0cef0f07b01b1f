"""Encodings of updates: fewer bytes on a hospital's line, decoded block by block where the update is folded.

An encoded update is a safetensors file whose metadata names its encoding under `concilia.encoding`. All but `none` hold
each tensor's difference from the base model (counters are sent as they are), which the signed update names by digest,
so that bytes, encoding and base together say every bit of the decoded model. A name stands for one form of file for
ever: a form that changes gets a new name.
"""

from __future__ import annotations

from concilia_kit.encodings.base import NotEncodable, Plain, Reader
from concilia_kit.encodings.reading import METADATA, SALT, STALENESS, encoding_of, expect, reader, staleness_of
from concilia_kit.encodings.writing import Written, encode

__all__ = [
    "METADATA",
    "SALT",
    "STALENESS",
    "NotEncodable",
    "Plain",
    "Reader",
    "Written",
    "encode",
    "encoding_of",
    "expect",
    "reader",
    "staleness_of",
]
