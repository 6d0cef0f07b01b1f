"""torchvision's architectures, and timm's where its extra is installed, with a head for a number of classes; pure,
apart from torch's global random generator.

Shapes and dtypes come from a model on torch's `meta` device, which allocates nothing and draws no random numbers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from concilia_kit import timm_networks
from concilia_kit.lesions import CLASSES
from concilia_kit.tensorfile import TensorSpec
from concilia_kit.wire.training import Architecture, ArchitectureName, TimmName
from torchvision.models import get_model

from concilia_model.errors import ArchitectureUnavailable
from concilia_model.weights import Array

HEADS: dict[Architecture, str] = {
    Architecture.RESNET50: "fc",
    Architecture.RESNET18: "fc",
    Architecture.MOBILENET_V2: "classifier.1",
    Architecture.EFFICIENTNET_B0: "classifier.1",
    Architecture.CONVNEXT_TINY: "classifier.2",
    Architecture.RESNET18_GN: "fc",
    Architecture.MOBILENET_V2_GN: "classifier.1",
}
"""Name of the last linear layer, by torchvision's architecture."""

# A residual network whose blocks begin as the identity learns from few pictures; from torchvision's default it did not
# leave chance within three rounds of a few hundred (Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1).
_INITIALISATION: dict[Architecture, dict[str, bool]] = {
    Architecture.RESNET50: {"zero_init_residual": True},
    Architecture.RESNET18: {"zero_init_residual": True},
    Architecture.RESNET18_GN: {"zero_init_residual": True},
}
_GROUPS = 32
_EXTRA = "concilia-model[timm]"

# torch's initialisers draw from the one global generator: two models made at once would share its numbers.
_generator = threading.Lock()


def empty(architecture: ArchitectureName, classes: int = len(CLASSES)) -> torch.nn.Module:
    """The model without storage but for what no file holds, in evaluation mode; give it tensors by
    `load_state_dict(..., assign=True)`. Raises `ArchitectureUnavailable`, as all of these do."""
    model = _outline(architecture, classes)
    if timm_networks.has_own_buffers(model):
        model = _drawn(architecture, classes, seed=0)
    return model.eval()


def expected(architecture: ArchitectureName, classes: int = len(CLASSES)) -> dict[str, TensorSpec]:
    """Name, dtype and shape of every tensor of a complete model, in its library's order."""
    return {
        name: TensorSpec(torch.empty(0, dtype=tensor.dtype).numpy().dtype, tuple(tensor.shape))
        for name, tensor in _outline(architecture, classes).state_dict().items()
    }


def fresh(architecture: ArchitectureName, seed: int, classes: int = len(CLASSES)) -> Mapping[str, Array]:
    """Every tensor of a model as its library initialises it from `seed`. The global generator is left as it was."""
    return {name: tensor.numpy() for name, tensor in _drawn(architecture, classes, seed).state_dict().items()}


def head_of(architecture: ArchitectureName, classes: int = len(CLASSES)) -> str:
    """Name of the last linear layer."""
    if isinstance(architecture, Architecture):
        return HEADS[architecture]
    head = timm_networks.head_of(_outline(architecture, classes), classes)
    assert head is not None, "an outline has one"
    return head


def _outline(architecture: ArchitectureName, classes: int) -> torch.nn.Module:
    if not isinstance(architecture, Architecture):
        return _of_timm(timm_networks.outline, architecture, classes)
    with torch.device("meta"):
        return _made(architecture, classes)


def _drawn(architecture: ArchitectureName, classes: int, seed: int) -> torch.nn.Module:
    with _generator, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not isinstance(architecture, Architecture):
            return _of_timm(timm_networks.build, architecture, classes)
        return _made(architecture, classes, **_INITIALISATION.get(architecture, {}))


def _of_timm(make: Callable[..., Any], architecture: TimmName, classes: int) -> torch.nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ArchitectureUnavailable(timm_networks.not_installed(architecture, _EXTRA)) from error
    try:
        made: torch.nn.Module = make(timm, torch.device("meta"), architecture, classes)
    except timm_networks.Unusable as error:
        raise ArchitectureUnavailable(str(error)) from error
    return made


def _made(architecture: Architecture, classes: int, **options: Any) -> torch.nn.Module:
    if architecture.grouped:
        options["norm_layer"] = _group_norm
    model: torch.nn.Module = get_model(architecture.torchvision, weights=None, num_classes=classes, **options)
    return model


def _group_norm(channels: int) -> torch.nn.GroupNorm:
    """In the place of batch normalisation, as nodes have it: Wu and He, "Group Normalization" (ECCV 2018)."""
    return torch.nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
