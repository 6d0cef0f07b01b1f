"""Folding with noise at the aggregator: the key that noise is made of, and a fold by a strategy that adds it.

A round has a key of its own, of 256 random bits from the system, in an artifact that only those may read who may read
every update; the model's file names its digest. That binds: whoever folds again needs that very key, and gets the same
bytes. And it hides: of a digest of 256 random bits nothing follows. Who had key and model could take the noise off.

Element k of the model, counted over all its floating tensors in the order of their names, has number k of the key's
(`concilia_kit.gaussians`): neither windows nor threads change a bit.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from concilia_kit import gaussians, tensorfile
from concilia_kit.normalisation import VARIANCE
from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.tensorfile import MalformedFile, TensorFile, TensorSpec
from concilia_kit.wire.metadata import CONFIDENTIAL, NOISE

from concilia_aggregator.strategies.base import Block, Noised
from concilia_aggregator.whole import geometry
from concilia_aggregator.windows import Input, Window, stream

KEPT_SHARE = 0.5
"""Of a variance of the base, that noise leaves of it at least: a network has no use for one that is not above 0."""

_KEY = "key"


def write_key(path: Path, keys: Keyring = NO_KEYS) -> str:
    """Write a new key into a file; the SHA-256 of its content, which is sealed where `keys` have a current one. Raises
    `OSError`."""
    key = np.frombuffer(secrets.token_bytes(gaussians.KEY_BYTES), np.uint8)
    return tensorfile.write(path, {_KEY: key}, {CONFIDENTIAL: NOISE}, keys=keys)


def read_key(file: TensorFile) -> bytes:
    """The key in a file. Raises `MalformedFile` for what is none."""
    spec = file.header.tensors.get(_KEY)
    is_key = spec is not None and (spec.dtype, spec.shape) == (np.dtype(np.uint8), (gaussians.KEY_BYTES,))
    if not is_key or len(file.header.tensors) != 1 or file.header.metadata.get(CONFIDENTIAL) != NOISE:
        raise MalformedFile(f"{file.path.name} is no key of noise")
    return file.tensor(_KEY).tobytes()


def noised(
    strategy: Noised,
    inputs: Sequence[Input],
    samples: Sequence[int],
    specs: Mapping[str, TensorSpec],
    order: Sequence[str],
    base: TensorFile,
    key: bytes,
    threads: int | None = None,
) -> Iterator[Block]:
    """The new model's tensors in this order, block by block. Raises `ValueError`, `KeyError`, `MalformedFile`.

    What batch normalisation divides by stays above half of what it was: that looks at base and noise only, after the
    noise, and costs no privacy.
    """
    start = Input.open(base, base)
    folding = strategy.noised(geometry(inputs, samples, None, specs, base, threads))
    places = _places(specs)

    def numbers(window: Window) -> npt.NDArray[np.float64]:
        parts = [gaussians.keyed(key, places[each.name] + each.start, each.stop - each.start) for each in window]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def folded(window: Window) -> Block:
        before = start.block(window)
        if not np.issubdtype(before.dtype, np.floating):
            return before.copy()
        after = folding.fold([each.block(window) for each in inputs], before, numbers(window))
        at = 0
        for each in window:
            stretch = slice(at, at := at + each.stop - each.start)
            if each.name.endswith(VARIANCE):
                after[stretch] = np.maximum(after[stretch], before[stretch] * before.dtype.type(KEPT_SHARE))
        return after

    return stream([*inputs, start], specs, order, folded, threads)


def _places(specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """The number of each floating tensor's first element."""
    found, at = {}, 0
    for name in sorted(specs):
        if np.issubdtype(specs[name].dtype, np.floating):
            found[name] = at
            at += specs[name].size
    return found
