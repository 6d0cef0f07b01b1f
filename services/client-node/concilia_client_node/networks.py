"""torchvision's architectures by name, and timm's where its extra is installed, with an output a class; and their
weights as safetensors files: whole models, and adapters over them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from concilia_kit import tensorfile, timm_networks
from concilia_kit.adapters import layout
from concilia_kit.lesions import CLASSES
from concilia_kit.tensorfile import MalformedFile, TensorFile, TensorSpec
from concilia_kit.wire.adapter import Adapter
from concilia_kit.wire.training import Architecture, ArchitectureName, Personal, TimmName
from torch import nn
from torchvision.models import get_model

from concilia_client_node import adapters
from concilia_client_node.errors import WeightsError

GROUPS = 32
_EXTRA = "concilia-client-node[timm]"
_NORM = re.compile("Norm(?!Free)")
"""In the name of a normalisation layer's class, torch's and timm's: BatchNorm2d, BatchNormAct2d, RmsNorm. What such
layers are in is called so too (Conv2dNormActivation), and has no tensor of its own."""


def build(architecture: ArchitectureName, classes: int = len(CLASSES)) -> nn.Module:
    """A network with fresh weights: RGB (n, 3, s, s), normalised, to logits (n, classes). Raises `WeightsError` where
    it is timm's, and not to be had here."""
    if not isinstance(architecture, Architecture):
        return _of_timm(timm_networks.build, architecture, classes)
    options = {"norm_layer": group_norm} if architecture.grouped else {}
    network: nn.Module = get_model(architecture.torchvision, weights=None, num_classes=classes, **options)
    return network


def outline(architecture: ArchitectureName, classes: int = len(CLASSES)) -> nn.Module:
    """The same without storage, and so without the time that random numbers take. Raises `WeightsError`."""
    if not isinstance(architecture, Architecture):
        return _of_timm(timm_networks.outline, architecture, classes)
    with torch.device("meta"):
        return build(architecture, classes)


def _of_timm(make: Callable[..., Any], architecture: TimmName, classes: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise WeightsError(timm_networks.not_installed(architecture, _EXTRA)) from error
    try:
        network: nn.Module = make(timm, torch.device("meta"), architecture, classes)
    except timm_networks.Unusable as error:
        raise WeightsError(str(error)) from error
    return network


def group_norm(channels: int) -> nn.GroupNorm:
    """In the place of batch normalisation, as Opacus has it (`ModuleValidator.fix`): 32 groups, or as many as divide
    both. Source: Wu and He, "Group Normalization" (ECCV 2018)."""
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)


def load(
    architecture: ArchitectureName,
    path: Path,
    instead: Mapping[str, npt.NDArray[Any]] | None = None,
    classes: int = len(CLASSES),
    trunk: Path | None = None,
) -> nn.Module:
    """A network with the weights of a file, which must have exactly its tensors, but for those of `instead`, which take
    their places where they have their shapes. All its parameters train; where the file is an adapter over `trunk`, they
    are the adapter's, and so is the network's state. Raises `WeightsError`."""
    file = _opened(path)
    network = outline(architecture, classes)
    whole = _specs(network)
    if timm_networks.has_own_buffers(network):
        with torch.random.fork_rng(devices=[]):
            network = build(architecture, classes)
    said = adapter_of(file)
    expected = whole if said is None else layout(whole, said.kind)
    what = str(architecture) if said is None else f"an adapter {said.kind} of {architecture}"
    _see_fit(file, expected, "weights file", what)
    state = _state(file)
    for name, tensor in (instead or {}).items():
        if (wanted := expected.get(name)) is not None and (wanted.shape, wanted.dtype) == (tensor.shape, tensor.dtype):
            state[name] = torch.from_numpy(np.array(tensor))
    if said is None:
        network.load_state_dict(state, strict=True, assign=True)
    else:
        if trunk is None:
            raise WeightsError("the weights file is an adapter, and its trunk is not at hand")
        over = _opened(trunk)
        if adapter_of(over) is not None:
            raise WeightsError("the adapter's trunk is an adapter itself")
        _see_fit(over, whole, "adapter's trunk", str(architecture))
        network.load_state_dict(_state(over), strict=True, assign=True)
        adapters.put_over(network, state)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


def see_side(network: nn.Module, side: int) -> None:
    """Raises `WeightsError` where a network takes pictures of one size alone, and not of that one."""
    if (only := timm_networks.side_of(network)) not in (None, side):
        raise WeightsError(f"the network takes pictures of {only} pixels a side alone, and the job's have {side}")


def adapter_of(file: TensorFile) -> Adapter | None:
    """What a weights file says of its trunk, None of a whole model's. Raises `WeightsError` where that cannot be."""
    try:
        return Adapter.of(file.header.metadata)
    except ValueError as error:
        raise WeightsError(f"the weights file cannot be used: {error}") from error


def _opened(path: Path) -> TensorFile:
    try:
        return TensorFile.open(path)
    except (MalformedFile, OSError) as error:
        raise WeightsError(f"the weights file cannot be used: {error}") from error


def _see_fit(file: TensorFile, expected: Mapping[str, TensorSpec], which: str, what: str) -> None:
    for name in sorted(expected.keys() | set(file)):
        wanted, found = expected.get(name), file.header.tensors.get(name)
        if wanted is None or found is None:
            has = "lacks" if found is None else "has the foreign"
            raise WeightsError(f"the {which} {has} tensor {name}; it does not fit {what}")
        if (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
            raise WeightsError(
                f"tensor {name} is {found.dtype} {list(found.shape)}, {what} has {wanted.dtype} {list(wanted.shape)}"
            )


def _state(file: TensorFile) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(file.tensor(name))) for name in file}


def personal(architecture: ArchitectureName, which: Personal) -> frozenset[str]:
    """Names of the tensors that a hospital keeps to itself: of normalisation, or of the last linear layer. Raises
    `WeightsError` where there are none."""
    if which is Personal.NOTHING:
        return frozenset()
    network = outline(architecture)
    if which is Personal.NORMALISATION:
        found = [name for name, module in network.named_modules() if _NORM.search(type(module).__name__)]
    else:
        found = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1:]
    kept = frozenset(name for name in network.state_dict() if name.rpartition(".")[0] in found)
    if not kept:
        raise WeightsError(f"{architecture} has no {which}, which a hospital was to keep to itself")
    return kept


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
