"""An update's file read as the model that it stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from concilia_kit.encodings.base import SCALES, Array, Arrays, Decoder, Plain, Reader, StoredArrays
from concilia_kit.encodings.codecs import codec_of
from concilia_kit.encodings.zstd import CompressedArrays
from concilia_kit.tensorfile import MalformedFile, TensorFile, TensorSpec
from concilia_kit.wire.encoding import Encoding

METADATA = "concilia.encoding"
STALENESS = "concilia.staleness"
SALT = "concilia.salt"
"""Random numbers in an update's file, so that its digest, which all may see, does not tell what is in it to whoever can
guess that."""


def encoding_of(update: TensorFile) -> Encoding:
    """The encoding that a file names, none where it names none. Raises `MalformedFile` where it is unknown."""
    text = update.header.metadata.get(METADATA)
    if text is None:
        return Encoding()
    try:
        encoding = Encoding.parse(text)
    except ValueError as error:
        raise MalformedFile("the update names an unknown encoding") from error
    if str(encoding) != text or encoding.plain:
        raise MalformedFile("the update names its encoding in another form than the one there is")
    return encoding


def expect(update: TensorFile, encoding: Encoding) -> None:
    """Check that a file is in a job's encoding, or plain, as one of a node that cannot encode is.

    Raises `MalformedFile`.
    """
    found = encoding_of(update)
    if not found.plain and found != encoding:
        raise MalformedFile(f"the update is encoded as {found}, and its job asks for {encoding}")


def staleness_of(update: TensorFile) -> int:
    """By how many rounds an update of an asynchronous job is late, as its file says; 0 where it says nothing.

    Raises `MalformedFile` where it says something else than a whole number above 0.
    """
    text = update.header.metadata.get(STALENESS)
    if text is None:
        return 0
    if re.fullmatch("[1-9][0-9]{0,8}", text) is None:
        raise MalformedFile("the update says how late it is in another form than the one there is")
    return int(text)


def reader(update: TensorFile, base: TensorFile) -> Reader:
    """How an update's file is read, by what its metadata says; `base` is the model that it updates.

    Raises `MalformedFile` where it names an encoding that is unknown or does not hold what that encoding needs. Bytes
    that are wrong within a compressed or sparse block are found when the block is read.
    """
    encoding = encoding_of(update)
    return Plain(update) if encoding.plain else _Decoding(update, base, encoding)


class _Decoding:
    """See `Reader`. Holds what is small, maps what is large, and decodes no more than a block at a time."""

    def __init__(self, update: TensorFile, base: TensorFile, encoding: Encoding) -> None:
        arrays: Arrays = CompressedArrays(update) if encoding.zstd else StoredArrays(update)
        self._specs = base.header.tensors
        self._exact: dict[str, Array] = {}
        self._decoders: dict[str, Decoder] = {}
        self._base = Plain(base)
        codecs = {name: codec_of(encoding, spec) for name, spec in self._specs.items()}
        counts = {name: codec.scales(self._specs[name].shape) for name, codec in codecs.items() if codec is not None}
        total = sum(counts.values())
        scales = arrays.claim(SCALES, np.float32, (total,)).read(0, total) if counts else np.empty(0, np.float32)
        at = 0
        for name in sorted(self._specs):
            spec, codec = self._specs[name], codecs[name]
            if codec is None:
                self._exact[name] = arrays.claim(name, spec.dtype, spec.shape)
            else:
                own = scales[at : at + counts[name]]
                self._decoders[name] = codec.decoder(name, spec, arrays, own)
                at += counts[name]
        arrays.finish()

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """See `Reader`."""
        return self._specs

    def block(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """See `Reader`."""
        spec = self._specs[name]
        start, stop, _ = slice(start, stop).indices(spec.size)
        if start >= stop:
            return np.empty(0, spec.dtype)
        if name in self._exact:
            return self._exact[name].read(start, stop)
        base = self._base.block(name, start, stop)
        with np.errstate(over="ignore", invalid="ignore"):  # whether all is finite, screening says
            return self._decoders[name].added(base, start, stop)
