"""A network that trains an adapter over a trunk: what the adapter holds are its parameters, all else stays as it is.

The network's `state_dict` has exactly the adapter's tensors, by their names in its file, so that updates, what is kept
for a hospital and SCAFFOLD's corrections are by name as ever. Which tensors those are is in `concilia_kit.adapters`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from concilia_kit.adapters import SCALE, factors
from torch import Tensor, nn
from torch.func import functional_call


class LowRank(nn.Module):
    """A convolution or linear layer whose kernel is `W + SCALE * lora_b @ lora_a`, of which the factors are trained.

    The kernel is summed and used once, rather than the layer's inputs multiplied by each of the two in turn: the layer
    is then the very one that the merged model has, and costs as much whatever its pictures' size.
    """

    def __init__(self, layer: nn.Module, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.lora_a = nn.Parameter(a)
        self.lora_b = nn.Parameter(b)

    def forward(self, inputs: Tensor) -> Tensor:
        """What the layer computes with that kernel."""
        kernel = self.layer.weight
        assert isinstance(kernel, Tensor), "only layers that have one are made so"
        summed = kernel + SCALE * torch.mm(self.lora_b, self.lora_a).view(kernel.shape)
        outputs: Tensor = functional_call(self.layer, {"weight": summed}, (inputs,))
        return outputs


def put_over(network: nn.Module, adapter: Mapping[str, Tensor]) -> None:
    """Have a whole network compute what it does with an adapter, and train nothing but that. The adapter's names are
    those of `concilia_kit.adapters.layout`."""
    modules = dict(network.named_modules())
    for layer, module in modules.items():
        for what, parameter in list(module.named_parameters(recurse=False)):
            if f"{layer}.{what}" not in adapter:
                delattr(module, what)
                module.register_buffer(what, parameter.detach(), persistent=False)
        a, b = factors(layer)
        if a in adapter:
            parent, _, own = layer.rpartition(".")
            setattr(modules[parent], own, LowRank(module, adapter[a], adapter[b]))
    network.load_state_dict(adapter, strict=True, assign=True)
