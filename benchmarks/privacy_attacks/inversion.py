"""Pictures rebuilt from what an update gives away of a gradient: gradient inversion.

Geiping, Bauermeister, Dröge, Moeller, "Inverting Gradients - How easy is it to break privacy in federated learning?"
(NeurIPS 2020): among pictures, those whose gradient points the way that was seen, and that are smooth; by Adam on the
signs of the search's own gradient. Angles are taken tensor by tensor, not of all at once, which was 5 dB better here.
The attacker is the aggregator: it has the base, the task with its seed, and the
update's file. It is given the labels as well, which the last layer's bias gives away (`prevalence`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from concilia_kit.classification import LESIONS, Classification
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock

SPOKEN = 1e-3
"""Parameters whose gradient is less than this share of the longest tell nothing: float32 has lost them between base and
update."""
_SILENT = 1e-4


@dataclass(frozen=True)
class Search:
    """How long and how an attacker looks: steps, their size (in standard deviations of pixels), what unsmooth pictures
    cost beside the angles between gradients, and where the search begins."""

    steps: int = 300
    rate: float = 0.1
    smooth: float = 0.03
    seed: int = 0


def invert(
    network: nn.Module,
    gradient: Mapping[str, Tensor],
    labels: Sequence[int],
    size: int,
    search: Search,
    shown: Classification = LESIONS,
) -> Tensor:
    """Pictures (n, 3, size, size) in [0, 1] for as many labels, whose mean gradient at `network`, which is the base, is
    along `gradient` (by parameter's name). The network is left as it was."""
    network = without_silent_blocks(network)
    generator = torch.Generator().manual_seed(search.seed)
    targets = torch.tensor(labels)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (shown.mean, shown.std))
    lowest, highest = (0 - mean) / std, (1 - mean) / std
    pictures = torch.randn(len(labels), 3, size, size, generator=generator)
    pictures = torch.minimum(torch.maximum(pictures, lowest), highest)
    watched = _telling(network, pictures, targets, frozenset(gradient))
    seen = [gradient[name] for name in watched]
    pictures.requires_grad_(True)
    optimizer = torch.optim.Adam([pictures], lr=search.rate)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [search.steps * share // 8 for share in (3, 5, 7)], 0.1**0.5
    )
    for _ in range(search.steps):
        own = torch.autograd.grad(
            nn.functional.cross_entropy(network(pictures), targets), list(watched.values()), create_graph=True
        )
        angles = [nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0) for a, b in zip(own, seen, strict=True)]
        cost = 1 - torch.stack(angles).mean() + search.smooth * roughness(pictures)
        (pictures.grad,) = (each.sign() for each in torch.autograd.grad(cost, [pictures]))
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            pictures.clamp_(lowest, highest)
    return (pictures.detach() * std + mean).clamp(0, 1)


def roughness(pictures: Tensor) -> Tensor:
    """The total variation of pictures (n, c, s, s), by pixel (Rudin, Osher, Fatemi 1992, anisotropic)."""
    down = (pictures[:, :, 1:] - pictures[:, :, :-1]).abs().mean()
    return down + (pictures[:, :, :, 1:] - pictures[:, :, :, :-1]).abs().mean()


def without_silent_blocks(network: nn.Module) -> nn.Module:
    """A copy without the residual blocks that add next to nothing: ConvNeXt scales each block's output by factors that
    begin at a millionth (Liu et al. 2022), so an attacker who has the base can leave them out of every step."""
    network = copy.deepcopy(network)
    for stage in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for name, block in list(stage.named_children()):
            if isinstance(block, CNBlock) and float(block.layer_scale.detach().abs().max()) < _SILENT:
                setattr(stage, name, nn.Identity())
    return network


def _telling(network: nn.Module, pictures: Tensor, labels: Tensor, known: frozenset[str]) -> dict[str, Tensor]:
    """Parameters of those `known` that a gradient can be seen in at all, by the attacker's own trial with noise."""
    parameters = {name: each.requires_grad_(True) for name, each in network.named_parameters() if name in known}
    loss = nn.functional.cross_entropy(network(pictures), labels)
    found = torch.autograd.grad(loss, list(parameters.values()))
    lengths = {name: float(each.norm()) for name, each in zip(parameters, found, strict=True)}
    least = SPOKEN * max(lengths.values())
    return {name: each for name, each in parameters.items() if lengths[name] > least}
