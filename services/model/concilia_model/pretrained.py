"""torchvision's ImageNet weights: the one place where a file that is no safetensors file is read.

torchvision publishes its weights as `.pth` files, which are pickles inside. Nobody else's are accepted, and theirs only
so: the address is the one compiled into torchvision, the bytes must hash to what the file's name says, and torch's
restricted unpickler (`weights_only=True`) reads them, which builds tensors and containers and can call nothing else.
What comes out is checked tensor by tensor like any other weights and stored as safetensors. A machine without a way to
the internet, or an operator who wants none of this, names a safetensors file instead.
"""

from __future__ import annotations

from pathlib import Path

import torch
from concilia_kit.wire.training import Architecture, ArchitectureName
from torchvision.models import get_model_weights

from concilia_model.errors import WeightsUnavailable
from concilia_model.weights import Array


def torchvision_url(architecture: ArchitectureName) -> str:
    """Where torchvision publishes its best ImageNet weights. Raises `WeightsUnavailable` where it has none."""
    if not isinstance(architecture, Architecture):
        raise WeightsUnavailable(
            f"no weights are downloaded for {architecture}: ask for random ones, or upload a safetensors file",
            status=400,
        )
    if architecture.grouped:
        raise WeightsUnavailable(
            f"there are no ImageNet weights of {architecture}: torchvision's are for batch normalisation; ask for "
            "random ones, or upload a safetensors file",
            status=400,
        )
    return str(get_model_weights(architecture.value).DEFAULT.url)


def read(url: str, folder: Path) -> dict[str, Array]:
    """The weights of the release `url`, by torchvision's names. `folder` holds its file: torch.hub looks there before
    it would download, which has neither timeouts nor a bound. Raises `WeightsUnavailable`."""
    try:
        state = torch.hub.load_state_dict_from_url(
            url, model_dir=str(folder), map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
        return {name: tensor.detach().numpy() for name, tensor in state.items()}
    except Exception as error:  # the unpickler's refusals, and what is no dictionary of tensors
        raise WeightsUnavailable(
            f"{url} cannot be read; upload a safetensors file and ask for weights 'file' instead", status=502
        ) from error
