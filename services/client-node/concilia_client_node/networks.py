"""torchvision architectures by name with seven outputs, and their weights as safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from concilia_kit import tensorfile
from concilia_kit.lesions import CLASSES
from concilia_kit.tensorfile import MalformedFile, TensorFile, TensorSpec
from concilia_kit.wire.training import Architecture
from torch import nn
from torchvision.models import get_model

from concilia_client_node.errors import WeightsError


def build(architecture: Architecture) -> nn.Module:
    """A network with fresh weights: RGB (n, 3, s, s), normalised, to logits (n, 7)."""
    network: nn.Module = get_model(architecture.value, weights=None, num_classes=len(CLASSES))
    return network


def load(architecture: Architecture, path: Path) -> nn.Module:
    """A network with the weights of a file, which must have exactly its tensors. Raises `WeightsError`."""
    try:
        file = TensorFile.open(path)
    except (MalformedFile, OSError) as error:
        raise WeightsError(f"the weights file cannot be used: {error}") from error
    with torch.device("meta"):  # no time spent on random numbers that are thrown away
        network = build(architecture)
    expected = _specs(network)
    for name in sorted(expected.keys() | set(file)):
        wanted, found = expected.get(name), file.header.tensors.get(name)
        if wanted is None or found is None:
            which = "lacks" if found is None else "has the foreign"
            raise WeightsError(f"the weights file {which} tensor {name}; it does not fit {architecture}")
        if (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
            raise WeightsError(
                f"tensor {name} is {found.dtype} {list(found.shape)}, {architecture} has {wanted.dtype} "
                f"{list(wanted.shape)}"
            )
    state = {name: torch.from_numpy(np.array(file.tensor(name))) for name in file}
    network.load_state_dict(state, strict=True, assign=True)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


def tensors(network: nn.Module) -> dict[str, npt.NDArray[Any]]:
    """Exactly the tensors of the state dict, on the processor; those that are there already are not copied."""
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in network.state_dict().items()}


def save(network: nn.Module, path: Path) -> str:
    """Write exactly the tensors of the state dict; equal tensors give equal bytes. Returns the SHA-256. Raises
    `OSError`."""
    return tensorfile.write(path, tensors(network))


def _specs(network: nn.Module) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(np.dtype(str(tensor.dtype).removeprefix("torch.")), tuple(tensor.shape))
        for name, tensor in network.state_dict().items()
    }
