"""Where a network looked: class activation maps, from the last feature map and the head's weights; pure.

Every architecture here ends in global average pooling and one linear layer. For such a network the map of a class (the
channels of the feature map, weighted by that class's row of the head) is what Grad-CAM gives up to a positive factor,
without a backward pass.

Source: Zhou et al., "Learning Deep Features for Discriminative Localization" (CVPR 2016), equation 2; Selvaraju et al.,
"Grad-CAM" (ICCV 2017), section 3.1.
"""

from __future__ import annotations

import torch
from concilia_kit.wire.training import Architecture

from concilia_model.architectures import HEADS

_RESIDUAL = frozenset({Architecture.RESNET50, Architecture.RESNET18})


def look(model: torch.nn.Module, architecture: Architecture, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a batch of one, shape (1, classes), equal to the model's own to the last bit; and a map a class, shape
    (classes, rows, columns) of the network's last feature map, values from 0 to 1.

    A map is what speaks for its class (negative values are zero), scaled to a largest value of 1; one where nothing
    does stays zero.
    """
    features = _trunk(model, architecture)(batch)
    head = model.get_submodule(HEADS[architecture])
    pooled = torch.nn.functional.adaptive_avg_pool2d(features, (1, 1)).flatten(1)
    logits: torch.Tensor = head(pooled)
    weights = model.get_parameter(f"{HEADS[architecture]}.weight")
    evidence = torch.einsum("kc,crs->krs", weights.double(), features[0].double()).relu()
    largest = evidence.amax(dim=(1, 2), keepdim=True)
    return logits, torch.where(largest > 0, evidence / largest, 0.0)


def _trunk(model: torch.nn.Module, architecture: Architecture) -> torch.nn.Module:
    """Everything before the pooling."""
    if architecture in _RESIDUAL:
        return torch.nn.Sequential(*list(model.children())[:-2])  # torchvision's ResNets run their children in order
    return model.get_submodule("features")
