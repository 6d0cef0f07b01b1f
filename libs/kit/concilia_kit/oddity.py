"""How odd a network finds a picture: how far its activations are from those that batch normalisation remembers.

Each normalisation layer keeps, by channel, the mean and variance of what training sent through it, averaged over
hospitals like all weights: so a model carries a description of what it was made from, and nobody has to send one. Of a
picture the same can be taken over its own positions. Per channel the distance is the Kullback-Leibler divergence of the
two normal distributions, of a layer the mean over channels; a picture's oddity is the mean of the layers' logarithms.

Nodes and whoever predicts must agree to the threshold's precision, so this is the only place where it is computed. No
torch is imported here: whoever has a network has it.

Source: of the statistics, Ioffe and Szegedy, "Batch Normalization" (ICML 2015); of comparing a picture's with them, Yin
et al., "Dreaming to Distill" (CVPR 2020), equation 4; docs/decisions/0041 measures it against other scores.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LEAST_RATIO = 1e-6
"""Of variances, below which less makes nothing odder: a picture of one colour has none at all."""
_LEAST_DISTANCE = 1e-9


class Watch:
    """Listens to a network's normalisation layers until it is closed. Thread-safe: each thread hears of the pictures
    that it sends through."""

    def __init__(self, network: Any) -> None:
        """`network` is a torch module."""
        self._mine = threading.local()
        layers = [each for each in network.modules() if getattr(each, "running_mean", None) is not None]
        self._ears = [layer.register_forward_pre_hook(self._heard) for layer in layers]

    def close(self) -> None:
        """Leave the network as it was."""
        for ear in self._ears:
            ear.remove()

    @contextmanager
    def listening(self, *, really: bool = True) -> Iterator[list[Any]]:
        """Hear this thread's pictures: a list that each layer adds its distances to, (n,) in double precision. It stays
        empty where nobody `really` wants to know."""
        heard: list[Any] = []
        self._mine.heard = heard if really else None
        try:
            yield heard
        finally:
            self._mine.heard = None

    def _heard(self, layer: Any, inputs: tuple[Any, ...]) -> None:
        heard = getattr(self._mine, "heard", None)
        if heard is not None and inputs[0].ndim == 4:  # what has no places has no variance over them
            heard.append(_distance(layer, inputs[0]))


def oddities(heard: list[Any]) -> Any:
    """The oddity of each picture (n,) from what one pass of them through a network was heard as."""
    return sum(each.clamp(min=_LEAST_DISTANCE).log() for each in heard) / len(heard)


def _distance(layer: Any, activations: Any) -> Any:
    """Of a batch (n, channels, rows, columns): the divergences' mean over channels, (n,)."""
    mean = activations.mean((2, 3))
    # torch's own variance takes longer than the network; a norm is one pass, and precise enough.
    squares = activations.flatten(2).norm(dim=2).double().square() / activations[0, 0].numel()
    spread = squares - mean.double().square()
    expected = layer.running_var + layer.eps
    ratio = (spread / expected).clamp(min=_LEAST_RATIO)
    divergence = (ratio + (mean - layer.running_mean).square() / expected - 1 - ratio.log()) / 2
    return divergence.mean(1)
