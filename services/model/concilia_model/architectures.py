"""torchvision's architectures with a head for a number of classes; pure, apart from torch's global random generator.

Shapes and dtypes come from a model on torch's `meta` device, which allocates nothing and draws no random numbers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

import torch
from concilia_kit.lesions import CLASSES
from concilia_kit.tensorfile import TensorSpec
from concilia_kit.wire.training import Architecture
from torchvision.models import get_model

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
"""Name of the last linear layer, by architecture."""

# A residual network whose blocks begin as the identity learns from few pictures; from torchvision's default it did not
# leave chance within three rounds of a few hundred (Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1).
_INITIALISATION: dict[Architecture, dict[str, bool]] = {
    Architecture.RESNET50: {"zero_init_residual": True},
    Architecture.RESNET18: {"zero_init_residual": True},
    Architecture.RESNET18_GN: {"zero_init_residual": True},
}
_GROUPS = 32

# torch's initialisers draw from the one global generator: two models made at once would share its numbers.
_generator = threading.Lock()


def empty(architecture: Architecture, classes: int = len(CLASSES)) -> torch.nn.Module:
    """The model without storage, in evaluation mode; give it tensors by `load_state_dict(..., assign=True)`."""
    with torch.device("meta"):
        model = _made(architecture, classes)
    return model.eval()


def expected(architecture: Architecture, classes: int = len(CLASSES)) -> dict[str, TensorSpec]:
    """Name, dtype and shape of every tensor of a complete model, in torchvision's order."""
    return {
        name: TensorSpec(torch.empty(0, dtype=tensor.dtype).numpy().dtype, tuple(tensor.shape))
        for name, tensor in empty(architecture, classes).state_dict().items()
    }


def fresh(architecture: Architecture, seed: int, classes: int = len(CLASSES)) -> Mapping[str, Array]:
    """Every tensor of a model as torchvision initialises it from `seed`. The global generator is left as it was."""
    options = _INITIALISATION.get(architecture, {})
    with _generator, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _made(architecture, classes, **options)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def _made(architecture: Architecture, classes: int, **options: Any) -> torch.nn.Module:
    if architecture.grouped:
        options["norm_layer"] = _group_norm
    model: torch.nn.Module = get_model(architecture.torchvision, weights=None, num_classes=classes, **options)
    return model


def _group_norm(channels: int) -> torch.nn.GroupNorm:
    """In the place of batch normalisation, as nodes have it: Wu and He, "Group Normalization" (ECCV 2018)."""
    return torch.nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
