"""Adapter files over trunks: made for a job to begin with, and read as the whole models that they stand for.

`merged` is the pure function from tensors to tensors; `whole` reads it off files. What adapters hold is in
`concilia_kit.adapters`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from concilia_kit.adapters import layer_of, layout
from concilia_kit.adapters import merged as merged
from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.tensorfile import TensorFile, TensorSpec
from concilia_kit.wire.adapter import Adapter

from concilia_model import weights
from concilia_model.errors import WeightsDoNotFit
from concilia_model.weights import Array


def fresh(
    trunk: Mapping[str, Array], expected: Mapping[str, TensorSpec], kind: str, seed: int
) -> tuple[dict[str, Array], int]:
    """An adapter's tensors over a whole model, which they leave what it computes: head, norms and the like as the trunk
    has them, every `lora_a` drawn as torch draws a linear layer (Kaiming, uniform), every `lora_b` zero; and how many
    of them are new.

    A layer's draw depends on seed and name alone. Source: Hu et al. (2022), section 4.1, and its code, loralib.
    """
    found: dict[str, Array] = {}
    for name, spec in layout(expected, kind).items():
        if name in trunk:
            found[name] = trunk[name]
        elif layer_of(name) is not None:
            generator = torch.Generator().manual_seed(_seed(seed, name))
            factor = torch.empty(spec.shape)
            torch.nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=generator)
            found[name] = factor.numpy().astype(spec.dtype)
        else:
            found[name] = torch.zeros(spec.shape).numpy().astype(spec.dtype)
    return found, sum(name not in trunk for name in found)


def adapter_of(file: TensorFile) -> Adapter | None:
    """What a file says of its trunk, None of a whole model's. Raises `WeightsDoNotFit` where that cannot be."""
    try:
        return Adapter.of(file.header.metadata)
    except ValueError as error:
        raise WeightsDoNotFit(f"these weights do not fit: {error}") from error


def check(file: TensorFile, trunk: TensorFile | None, expected: Mapping[str, TensorSpec]) -> None:
    """Whether a file, over its trunk where it is an adapter, has every tensor that it must, and no other. Raises
    `WeightsDoNotFit`."""
    said = adapter_of(file)
    wanted = expected if said is None else layout(expected, said.kind)
    weights.check({name: file.tensor(name) for name in file}, wanted)
    if said is not None:
        over = _trunk(said, trunk)
        weights.check({name: over.tensor(name) for name in over}, expected)


def whole(path: Path, trunk: Path | None = None, keys: Keyring = NO_KEYS) -> dict[str, Array]:
    """A model file's tensors, merged with those of its `trunk` where it is an adapter; the trunk's digest is the
    caller's to check.

    Raises `WeightsDoNotFit` where they do not go together, `MalformedFile`, `SealingKeyUnknown` and `OSError`.
    """
    file = TensorFile.open(path, keys)
    own = {name: file.tensor(name) for name in file}
    if (said := adapter_of(file)) is None:
        return own
    over = _trunk(said, None if trunk is None else TensorFile.open(trunk, keys))
    try:
        return merged({name: over.tensor(name) for name in over}, own)
    except ValueError as error:
        raise WeightsDoNotFit(f"these weights do not fit their trunk: {error}") from error


def _trunk(said: Adapter, file: TensorFile | None) -> TensorFile:
    if file is None:
        raise WeightsDoNotFit(f"this adapter's trunk {said.trunk} is not stored")
    if adapter_of(file) is not None:
        raise WeightsDoNotFit(f"this adapter's trunk {said.trunk} is an adapter itself")
    return file


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8], "big") >> 1
