"""Where a network looked: class activation maps, from the last feature map and what follows it; pure.

Every architecture here ends in global average pooling and a head: one linear layer, or normalisation and one. The map
of a class is the channels of the feature map, each weighted by what the class's logit gains from the channel's mean:
the logit's gradient at the pooled features. Of a linear head that is the class's row. This is what Grad-CAM gives up to
a positive factor, with a backward pass through the head alone.

Source: Zhou et al., "Learning Deep Features for Discriminative Localization" (CVPR 2016), equation 2; Selvaraju et al.,
"Grad-CAM" (ICCV 2017), section 3.1.
"""

from __future__ import annotations

import torch
from concilia_kit.wire.training import Architecture
from torch import nn

_RESIDUAL = frozenset({Architecture.RESNET50, Architecture.RESNET18, Architecture.RESNET18_GN})


def look(model: nn.Module, architecture: Architecture, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a batch of one, shape (1, classes), equal to the model's own to the last bit; and a map a class, shape
    (classes, rows, columns) of the network's last feature map, values from 0 to 1.

    A map is what speaks for its class (negative values are zero), scaled to a largest value of 1; one where nothing
    does stays zero.
    """
    features = _trunk(model, architecture)(batch)
    head = _head(model, architecture)
    pooled = nn.functional.adaptive_avg_pool2d(features, (1, 1))
    logits: torch.Tensor = head(pooled)
    weights = _gains(head, pooled)
    evidence = torch.einsum("kc,crs->krs", weights.double(), features[0].double()).relu()
    largest = evidence.amax(dim=(1, 2), keepdim=True)
    return logits, torch.where(largest > 0, evidence / largest, 0.0)


def _trunk(model: nn.Module, architecture: Architecture) -> nn.Module:
    """Everything before the pooling."""
    if architecture in _RESIDUAL:
        return nn.Sequential(*list(model.children())[:-2])  # torchvision's ResNets run their children in order
    return model.get_submodule("features")


def _head(model: nn.Module, architecture: Architecture) -> nn.Module:
    """Everything after the pooling, from pooled features (1, channels, 1, 1)."""
    if architecture in _RESIDUAL:
        return nn.Sequential(nn.Flatten(1), model.get_submodule("fc"))
    classifier = model.get_submodule("classifier")
    if architecture is Architecture.CONVNEXT_TINY:
        return classifier  # it normalises over channels, and flattens then
    return nn.Sequential(nn.Flatten(1), classifier)


def _gains(head: nn.Module, pooled: torch.Tensor) -> torch.Tensor:
    """Gradients of the logits at the pooled features, (classes, channels)."""
    with torch.inference_mode(False), torch.enable_grad():
        at = pooled.clone().requires_grad_()
        logits = head(at)[0]
        rows = [torch.autograd.grad(logit, at, retain_graph=True)[0].flatten() for logit in logits]
    return torch.stack(rows)
