"""Eight-bit integers of the difference from the base, with a scale for each output channel.

Symmetric and uniform: scale = largest magnitude / 127, over a slice of the first axis of tensors with two axes or more,
else over the tensor; value = difference / scale, rounded to the nearest integer, ties to even. Channels of one layer
move by very different amounts, and one scale for all would round the still ones to nothing. Channels of fewer than 64
elements share a scale with their neighbours: a depthwise 3 x 3 kernel has nine bytes, and four more are too many.

To nearest, and not at random as in QSGD: random rounding errs without bias and with at least twice the variance, up to
four times as far, which it must where errors are dropped. Here they are kept and added to the next update (error
feedback), so that bias does not pile up, and the smaller error wins; and equal updates give equal bytes.

Sources: Alistarh et al., "QSGD" (2017); Seide et al., "1-Bit Stochastic Gradient Descent" (2014), where error feedback
comes from; Karimireddy et al., "Error Feedback Fixes SignSGD" (2019), why it converges for any compressor that leaves
less than there was; Basu et al., "Qsparse-local-SGD" (2019), with local steps; Krishnamoorthi, "Quantizing deep
convolutional networks" (2018), scales by channel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from concilia_kit.encodings.base import Array, Arrays, Floats, peak
from concilia_kit.tensorfile import TensorSpec

LEVELS = 127
FEWEST = 64  # elements to a scale


def elements_a_scale(shape: tuple[int, ...]) -> int:
    """How many elements, one after another, have one scale; the last ones of a tensor may be fewer."""
    channel = max(math.prod(shape[1:] if len(shape) >= 2 else shape), 1)
    return channel * max(-(-FEWEST // channel), 1)


class Int8:
    """See `Codec`. Stores a tensor as I8 of its shape under its name."""

    def scales(self, shape: tuple[int, ...]) -> int:
        """See `Codec`."""
        return -(-math.prod(shape) // elements_a_scale(shape))

    def encode(self, name: str, shape: tuple[int, ...], delta: Floats) -> tuple[dict[str, npt.NDArray[Any]], Floats]:
        """See `Codec`."""
        peak(delta)
        length = elements_a_scale(shape)
        starts = np.arange(0, delta.size, length)
        if not starts.size:
            return {name: np.empty(shape, np.int8)}, np.empty(0, np.float32)
        scales: Floats = (np.maximum.reduceat(np.abs(delta), starts) / np.float32(LEVELS)).astype(
            np.float32, copy=False
        )
        steps = np.repeat(np.where(scales > 0, scales, np.float32(1)), length)[: delta.size]
        np.divide(delta, steps, out=steps)
        np.rint(steps, out=steps)
        # A scale below float32's normal range is itself rounded, hence the limit.
        np.clip(steps, -LEVELS, LEVELS, out=steps)
        return {name: steps.astype(np.int8).reshape(shape)}, scales

    def decoder(self, name: str, spec: TensorSpec, arrays: Arrays, scales: Floats) -> Steps:
        """See `Codec`."""
        return Steps(arrays.claim(name, np.int8, spec.shape), scales, elements_a_scale(spec.shape))


class Steps:
    """See `Decoder`."""

    def __init__(self, values: Array, scales: Floats, length: int) -> None:
        self._values = values
        self._scales = scales
        self._length = length

    def added(self, base: Floats, start: int, stop: int) -> Floats:
        """See `Decoder`."""
        first, last = start // self._length, -(-stop // self._length)
        edges = np.arange(first, last + 1) * self._length
        edges[0], edges[-1] = start, stop
        out = np.repeat(self._scales[first:last], np.diff(edges))
        out *= self._values.read(start, stop)
        out += base
        return out
