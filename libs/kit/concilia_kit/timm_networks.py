"""timm's networks by name, as `timm:NAME` in a job: the very same for nodes, which train them, and for the model
service, which checks their weights and predicts.

Neither timm nor torch is imported here: whoever builds networks has torch, and timm where its extra is installed; they
are handed in. No call of these gets weights from anywhere.

Source: Wightman, "PyTorch Image Models" (timm), whose networks all have `get_classifier`, `num_features`,
`forward_features` and `forward_head`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from concilia_kit.wire.training import TIMM, TimmName

MOST_BYTES = 2 * 2**30
"""Of a network's tensors. A name is short, and what it stands for may be larger than any machine here."""


class Unusable(ValueError):
    """No network is to be had by that name, or none that can be used here; the message says why in one sentence."""


def not_installed(architecture: TimmName, extra: str) -> str:
    """What to say where timm is not there; `extra` is the distribution that brings it, as `concilia-model[timm]`."""
    return f"{architecture} is a network of timm, which is not installed here: pip install '{extra}'"


def outline(timm: Any, meta: Any, architecture: TimmName, classes: int) -> Any:
    """The network without storage, its logits (n, classes) from one linear layer at its end. `meta` is torch's device
    of that name. Raises `Unusable`."""
    with meta:
        made = _made(timm, architecture, classes)
    size = sum(tensor.numel() * tensor.element_size() for tensor in made.state_dict().values())
    if size > MOST_BYTES:
        raise Unusable(f"{architecture} has {size / 2**30:.1f} GiB of weights; {MOST_BYTES // 2**30} GiB are the most")
    if head_of(made, classes) is None:
        raise Unusable(
            f"{architecture} cannot be trained here: its logits do not come from one linear layer at its end"
        )
    return made


def build(timm: Any, meta: Any, architecture: TimmName, classes: int) -> Any:
    """The network as timm initialises it from torch's generator. Raises `Unusable`, before anything large is made."""
    outline(timm, meta, architecture, classes)
    return _made(timm, architecture, classes)


def head_of(network: Any, classes: int) -> str | None:
    """The name of the linear layer that the logits come from, which is the last of a network's; None where there is no
    such one."""
    head = network.get_classifier()
    if getattr(head, "out_features", None) != classes:
        return None  # none at all, or several that are averaged
    tables = [name for name, tensor in network.state_dict().items() if name.endswith(".weight") and tensor.ndim == 2]
    named = next((name for name, module in network.named_modules() if module is head), None)
    return named if named is not None and tables and tables[-1] == f"{named}.weight" else None


def side_of(network: Any) -> int | None:
    """The one size of pictures that a network takes, pixels a side; None where it takes any."""
    told: Mapping[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    return int(told["input_size"][-1]) if told.get("fixed_input_size") else None


def has_own_buffers(network: Any) -> bool:
    """Whether a network has tensors that no file holds (tables of positions, say): an outline with the tensors of a
    file is then not yet a network."""
    return not {name for name, _ in network.named_buffers()} <= set(network.state_dict())


def _made(timm: Any, architecture: TimmName, classes: int) -> Any:
    name = architecture.removeprefix(TIMM)
    if not timm.is_model(name):
        raise Unusable(f"timm {timm.__version__}, which is installed here, has no network '{name}'")
    try:
        return timm.create_model(name, pretrained=False, num_classes=classes)
    except Exception as error:  # a tag that it does not know, and whatever a constructor raises
        raise Unusable(f"timm {timm.__version__} cannot make '{name}': {type(error).__name__}") from error
