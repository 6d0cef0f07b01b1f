"""torchvision architectures by name with seven outputs, and their weights as safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from concilia_kit import tensorfile
from concilia_kit.lesions import CLASSES
from concilia_kit.tensorfile import MalformedFile, TensorFile, TensorSpec
from concilia_kit.wire.training import Architecture, Personal
from torch import nn
from torchvision.models import get_model

from concilia_client_node.errors import WeightsError


def build(architecture: Architecture) -> nn.Module:
    """A network with fresh weights: RGB (n, 3, s, s), normalised, to logits (n, 7)."""
    network: nn.Module = get_model(architecture.value, weights=None, num_classes=len(CLASSES))
    return network


def load(architecture: Architecture, path: Path, instead: Mapping[str, npt.NDArray[Any]] | None = None) -> nn.Module:
    """A network with the weights of a file, which must have exactly its tensors, but for those of `instead`, which take
    their places where they have their shapes. Raises `WeightsError`."""
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
    for name, tensor in (instead or {}).items():
        if (wanted := expected.get(name)) is not None and (wanted.shape, wanted.dtype) == (tensor.shape, tensor.dtype):
            state[name] = torch.from_numpy(np.array(tensor))
    network.load_state_dict(state, strict=True, assign=True)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


def personal(architecture: Architecture, which: Personal) -> frozenset[str]:
    """Names of the tensors that a hospital keeps to itself: of batch normalisation, or of the last linear layer."""
    if which is Personal.NOTHING:
        return frozenset()
    with torch.device("meta"):
        network = build(architecture)
    if which is Personal.NORMALISATION:
        found = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    else:
        found = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1:]
    return frozenset(name for name in network.state_dict() if name.rpartition(".")[0] in found)


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
