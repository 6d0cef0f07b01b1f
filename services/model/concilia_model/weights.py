"""Do these tensors belong to that architecture? Pure NumPy: tensors and expectations in, verdict out.

A file of initial weights may be complete, a trunk alone, or carry a head for other classes. Everything else that is
missing, unexpected, misshapen, of another dtype or not finite is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from concilia_kit.tensorfile import TensorSpec

from concilia_model.errors import WeightsDoNotFit

Array = npt.NDArray[Any]

_NAMED = 5  # tensors named in a refusal
_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class Fitted:
    """Tensors of a complete model: how many were taken, how many are fresh, and whether a foreign head was dropped."""

    tensors: Mapping[str, Array]
    loaded: int
    fresh: int
    replaced_head: int | None
    """Number of classes of the head that was dropped."""


def fit(
    offered: Mapping[str, Array], expected: Mapping[str, TensorSpec], initial: Mapping[str, Array], head: str
) -> Fitted:
    """Overlay `offered` on the freshly initialised tensors `initial` of the same architecture.

    The head (`head + ".weight"`, `head + ".bias"`) may be missing, or be one for another number of classes: then it
    stays fresh. BatchNorm counters may be missing as well: files from before torch 0.4.1 have none.
    Raises `WeightsDoNotFit`.
    """
    offered = dict(offered)
    replaced = _drop_foreign_head(offered, expected, head)
    optional = {f"{head}.weight", f"{head}.bias"} if not _has_head(offered, head) else set()
    missing = [
        name for name in expected if name not in offered and name not in optional and not name.endswith(_COUNTER)
    ]
    _refuse(missing, offered, expected)
    return Fitted({**initial, **offered}, len(offered), len(expected) - len(offered), replaced)


def check(offered: Mapping[str, Array], expected: Mapping[str, TensorSpec]) -> None:
    """A complete model, tensor for tensor. Raises `WeightsDoNotFit`."""
    _refuse([name for name in expected if name not in offered], offered, expected)


def _has_head(offered: Mapping[str, Array], head: str) -> bool:
    return f"{head}.weight" in offered or f"{head}.bias" in offered


def _drop_foreign_head(offered: dict[str, Array], expected: Mapping[str, TensorSpec], head: str) -> int | None:
    """Remove a head that is whole and fits the trunk, but has another number of classes; that number, else None."""
    names = f"{head}.weight", f"{head}.bias"
    if not all(name in offered for name in names):
        return None
    weight, bias = (offered[name].shape for name in names)
    classes, features = expected[names[0]].shape
    if len(weight) != 2 or bias != weight[:1] or weight[1] != features or weight[0] == classes:
        return None
    for name in names:
        del offered[name]
    return int(weight[0])


def _refuse(missing: list[str], offered: Mapping[str, Array], expected: Mapping[str, TensorSpec]) -> None:
    faults = [f"{name} is missing" for name in missing]
    for name, array in offered.items():
        spec = expected.get(name)
        if spec is None:
            faults.append(f"{name} is unexpected")
        elif array.shape != spec.shape:
            faults.append(f"{name} has shape {list(array.shape)}, not {list(spec.shape)}")
        elif array.dtype != spec.dtype:
            faults.append(f"{name} has dtype {array.dtype}, not {spec.dtype}")
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            faults.append(f"{name} has values that are not finite")
    if faults:
        more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise WeightsDoNotFit(
            f"these weights do not fit the architecture: {'; '.join(faults[:_NAMED])}{more}",
            extra={"tensors": [fault.split(" ", 1)[0] for fault in faults[:_NAMED]]},
        )
