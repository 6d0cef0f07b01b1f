"""What adapter files hold: names and shapes by kind, and the whole model that one makes of its trunk.

An adapter holds a network's last linear layer (the head) and all that is neither a kernel nor a kernel's bias:
normalisation with its statistics, and scales of layers. A kind with a rank R holds besides, of every other layer with a
kernel of `out` rows and, read as a matrix, `in` columns (of a convolution: input channels a group times k times k),

    <layer>.lora_a    (R, in)
    <layer>.lora_b    (out, R)

which stand for the kernel `W + SCALE * lora_b @ lora_a`. Where they would be no smaller than the kernel itself, it is
held instead, as `<layer>.weight`. Depthwise convolutions, whose kernels are small and of full rank at a handful of
columns, stay as the trunk has them, and so do the biases of kernels.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022), section 4.1. Its alpha is 2 R here,
so that a step moves the kernel as far whatever the rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from concilia_kit.tensorfile import TensorSpec
from concilia_kit.wire.adapter import rank_of

Array = npt.NDArray[Any]

SCALE = 2.0
"""alpha / R."""
_A, _B = "lora_a", "lora_b"


def factors(layer: str) -> tuple[str, str]:
    """The names of a layer's factors."""
    return f"{layer}.{_A}", f"{layer}.{_B}"


def layer_of(name: str) -> str | None:
    """The layer whose first factor has that name, None where it is no such name."""
    layer, _, what = name.rpartition(".")
    return layer if what == _A else None


def layout(whole: Mapping[str, TensorSpec], kind: str) -> dict[str, TensorSpec]:
    """Names, dtypes and shapes of an adapter's tensors over a network whose tensors are `whole`, in its own order: the
    head is the last of its linear layers. Raises `ValueError` for what is no kind."""
    rank = rank_of(kind)
    linear = [name for name, spec in whole.items() if name.endswith(".weight") and len(spec.shape) == 2]
    head = linear[-1].removesuffix(".weight") if linear else None
    found: dict[str, TensorSpec] = {}
    for name, spec in whole.items():
        layer, _, what = name.rpartition(".")
        kernel = whole.get(f"{layer}.weight")
        if layer == head or what not in ("weight", "bias") or kernel is None or len(kernel.shape) < 2:
            found[name] = spec
        elif rank and what == "weight":
            found |= _of_kernel(layer, spec, rank)
    return found


def _of_kernel(layer: str, kernel: TensorSpec, rank: int) -> dict[str, TensorSpec]:
    rows, columns = kernel.shape[0], math.prod(kernel.shape[1:])
    if len(kernel.shape) > 2 and kernel.shape[1] == 1:
        return {}
    if rank * (rows + columns) >= kernel.size:
        return {f"{layer}.weight": kernel}
    a, b = factors(layer)
    return {a: TensorSpec(kernel.dtype, (rank, columns)), b: TensorSpec(kernel.dtype, (rows, rank))}


def merged(trunk: Mapping[str, Array], adapter: Mapping[str, Array]) -> dict[str, Array]:
    """The whole model: the trunk's tensors by name, those of the adapter in their places, and kernels with what their
    factors add, computed in float64 and rounded once to the kernel's dtype.

    Raises `ValueError` where the adapter has what goes nowhere.
    """
    found, left = {}, set(adapter)
    for name, tensor in trunk.items():
        a, b = factors(name.removesuffix(".weight"))
        if name in left:
            if adapter[name].shape != tensor.shape:
                raise ValueError(f"the adapter's {name} has another shape than its trunk's")
            tensor = adapter[name]
            left.discard(name)
        elif name.endswith(".weight") and a in left and b in left:
            tensor = _with(tensor, adapter[a], adapter[b], name)
            left -= {a, b}
        found[name] = tensor
    if left:
        raise ValueError(f"the adapter's {min(left)} goes nowhere in its trunk")
    return found


def _with(kernel: Array, a: Array, b: Array, name: str) -> Array:
    rows, columns = kernel.shape[0], math.prod(kernel.shape[1:])
    if a.ndim != 2 or b.shape != (rows, a.shape[0]) or a.shape[1] != columns:
        raise ValueError(f"the factors of {name} do not have its shape")
    added = SCALE * (b.astype(np.float64) @ a.astype(np.float64))
    summed: Array = (kernel.astype(np.float64) + added.reshape(kernel.shape)).astype(kernel.dtype)
    return summed
