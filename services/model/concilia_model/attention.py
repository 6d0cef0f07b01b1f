"""Where a network looked: class activation maps, from the last feature map and what follows it; pure.

torchvision's architectures here end in global average pooling and a head: one linear layer, or normalisation and one.
The map of a class is the channels of the feature map, each weighted by what the class's logit gains from the channel's
mean: the logit's gradient at the pooled features. Of a linear head that is the class's row. This is what Grad-CAM gives
up to a positive factor, with a backward pass through the head alone. Of timm's networks, whose heads may do more, the
gradient is taken at the feature map itself, as Grad-CAM has it.

Source: Zhou et al., "Learning Deep Features for Discriminative Localization" (CVPR 2016), equation 2; Selvaraju et al.,
"Grad-CAM" (ICCV 2017), section 3.1.
"""

from __future__ import annotations

from typing import Any

import torch
from concilia_kit.wire.training import Architecture, ArchitectureName
from torch import nn

_RESIDUAL = frozenset({Architecture.RESNET50, Architecture.RESNET18, Architecture.RESNET18_GN})


def look(
    model: nn.Module, architecture: ArchitectureName, batch: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits of a batch of one, shape (1, classes), equal to the model's own to the last bit; and a map a class, shape
    (classes, rows, columns) of the network's last feature map, values from 0 to 1.

    A map is what speaks for its class (negative values are zero), scaled to a largest value of 1; one where nothing
    does stays zero. There are none where a network has no feature map at its end, but a list of patches.
    """
    if not isinstance(architecture, Architecture):
        return _look_at_timms(model, batch)
    features = _trunk(model, architecture)(batch)
    head = _head(model, architecture)
    pooled = nn.functional.adaptive_avg_pool2d(features, (1, 1))
    logits: torch.Tensor = head(pooled)
    weights = _gains(head, pooled)
    return logits, _maps(weights, features[0])


def _maps(weights: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """From weights (classes, channels) and features (channels, rows, columns)."""
    evidence = torch.einsum("kc,crs->krs", weights.double(), features.double()).relu()
    largest = evidence.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, evidence / largest, 0.0)


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


def _look_at_timms(model: Any, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same of a network of timm, whose answer is `forward_head` of `forward_features`."""
    features = model.forward_features(batch)
    if features.ndim != 4 or model.num_features not in (features.shape[1], features.shape[3]):
        return model.forward_head(features), None
    # Once, and no second time for the logits: somebody may listen to layers of the head (`concilia_kit.oddity`).
    with torch.inference_mode(False), torch.enable_grad():
        at = features.clone().requires_grad_()
        logits = model.forward_head(at.clone())  # some heads work in place
        rows = torch.stack([torch.autograd.grad(logit, at, retain_graph=True)[0][0] for logit in logits[0]])
    if features.shape[1] == model.num_features:
        return logits.detach(), _maps(rows.mean((2, 3)), features[0])
    return logits.detach(), _maps(rows.mean((1, 2)), features[0].permute(2, 0, 1))  # channels come last, as in Swin
