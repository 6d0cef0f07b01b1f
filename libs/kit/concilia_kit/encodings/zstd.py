"""Zstandard over whatever an encoding stores: a lossless wrap, in frames that decompress by themselves.

Every array of more than `SMALL` bytes is cut into pieces of `PIECE` bytes, the last one shorter, each a frame: under
the array's name their bytes one after another (U8), under `name##frames` where each begins and the last one ends (I64).
A frame has to say its content's size, and that has to be the piece's: no more is set aside, whatever a frame holds.

Source: RFC 8878, Zstandard Compression and the 'application/zstd' Media Type.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from concilia_kit.encodings.base import Array, StoredArrays
from concilia_kit.tensorfile import MalformedFile, TensorFile

PIECE = 1 << 17
SMALL = 1 << 12
LEVEL = 3
_WINDOW = 1 << 20  # bytes; a piece needs no more
_KEPT = 3  # pieces a thread keeps: readers ask for neighbouring ranges, of up to three arrays of a tensor in turn


def compressed(name: str, array: npt.NDArray[Any]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """What is stored of an array."""
    if array.nbytes <= SMALL:
        yield name, array
        return
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True)
    data = array.reshape(-1).view(np.uint8)
    frames = [compressor.compress(data[start : start + PIECE].data) for start in range(0, data.size, PIECE)]
    yield name, np.frombuffer(b"".join(frames), np.uint8)
    yield f"{name}##frames", np.cumsum([0, *map(len, frames)], dtype=np.int64)


class CompressedArrays:
    """See `Arrays`."""

    def __init__(self, file: TensorFile) -> None:
        self._stored = StoredArrays(file)
        self._pieces = _Pieces()

    def claim(self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Array:
        """See `Arrays`."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size <= SMALL:
            return self._stored.claim(name, dtype, shape)
        count = -(-size // PIECE)
        length = self._stored.length(name)
        data = self._stored.claim(name, np.uint8, (length,))
        frames = self._stored.claim(f"{name}##frames", np.int64, (count + 1,)).read(0, count + 1)
        if frames[0] != 0 or frames[-1] != length or (frames[1:] <= frames[:-1]).any():
            raise MalformedFile(f"{name!r} has frames that do not add up")
        return _Compressed(name, dtype, size, data, frames, self._pieces)

    def finish(self) -> None:
        """See `Arrays`."""
        self._stored.finish()


class _Pieces(threading.local):
    """A thread's decompressor, which no other may use at the same time, and its last pieces."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        self.kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()


class _Compressed:
    def __init__(
        self,
        name: str,
        dtype: np.dtype[Any],
        size: int,
        data: Array,
        frames: npt.NDArray[np.int64],
        pieces: _Pieces,
    ) -> None:
        self._name = name
        self._dtype = dtype
        self._size = size
        self._data = data
        self._frames = frames
        self._pieces = pieces

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        first, last = start * self._dtype.itemsize, stop * self._dtype.itemsize
        parts = []
        for number in range(first // PIECE, -(-last // PIECE)):
            begin = number * PIECE
            piece = self._piece(number)
            parts.append(memoryview(piece)[max(first - begin, 0) : last - begin])
        joined = parts[0] if len(parts) == 1 else b"".join(parts)
        return np.frombuffer(joined, self._dtype)

    def _piece(self, number: int) -> bytes:
        kept = self._pieces.kept
        if (piece := kept.get((self._name, number))) is not None:
            kept.move_to_end((self._name, number))
            return piece
        piece = self._decompress(number)
        kept[self._name, number] = piece
        if len(kept) > _KEPT:
            kept.popitem(last=False)
        return piece

    def _decompress(self, number: int) -> bytes:
        frame = self._data.read(int(self._frames[number]), int(self._frames[number + 1])).data
        size = min(PIECE, self._size - number * PIECE)
        try:
            said = zstandard.get_frame_parameters(frame)
            if said.content_size != size or said.window_size > _WINDOW or said.dict_id:
                raise MalformedFile(f"{self._name!r} has a frame that does not hold its piece")
            piece = self._pieces.decompressor.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise MalformedFile(f"{self._name!r} has a frame that cannot be decompressed") from error
        if len(piece) != size:
            raise MalformedFile(f"{self._name!r} has a frame that does not hold its piece")
        return piece
