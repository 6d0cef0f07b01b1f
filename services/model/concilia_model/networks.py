"""All that this service does with networks, behind four calls of plain values: what runs in a process of its own.

Only here and in the modules that this one calls is torch imported.
"""

from __future__ import annotations

from pathlib import Path

import torch
from concilia_kit import tensorfile
from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.storedfile import size_of
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.training import Architecture

from concilia_model import architectures, images, pretrained, weights
from concilia_model.incoming import full_disk_is_no_space
from concilia_model.network_process import Grids, InitialWeights
from concilia_model.predictor import Predictor


class Networks:
    """Predictions and initial weights. Thread-safe."""

    def __init__(self, threads: int, models_in_memory: int, max_pixels: int, keys: Keyring = NO_KEYS) -> None:
        torch.set_num_threads(threads)
        self._keys = keys
        self._predictor = Predictor(models_in_memory, keys)
        self._max_pixels = max_pixels

    def predict(
        self, digest: str, path: Path, architecture: Architecture, side: int, picture: bytes, *, attention: bool
    ) -> tuple[list[float], Grids | None]:
        """Class probabilities of a picture as it was sent, and where the network looked if that is asked for.

        `digest` names the model, whose file lies at `path`. Raises `ImageTooLarge`, `ImageUnreadable`,
        `ArtifactCorrupt` and `SealingKeyUnknown`.
        """
        batch = images.prepare(images.decode(picture, self._max_pixels), side)
        if attention:
            return self._predictor.look(digest, path, architecture, batch)
        return self._predictor.probabilities(digest, path, architecture, batch), None

    def make_initial(
        self,
        architecture: Architecture,
        seed: int,
        target: Path,
        *,
        offered: Path | None = None,
        named: str | None = None,
        release: str | None = None,
    ) -> InitialWeights:
        """Write initial weights to `target`, sealed where the store is: random ones, overlaid with those of a
        safetensors file at `offered`, or with torchvision's release from `release`, downloaded to `offered`. The same
        call gives the same bytes.

        `named` says in words where they come from. Raises `WeightsDoNotFit`, `WeightsUnavailable`, `NoSpace` and
        `SealingKeyUnknown`.
        """
        initial = architectures.fresh(architecture, seed)
        fitted = weights.Fitted(initial, 0, len(initial), None)
        if offered is not None:
            given = self._tensors(offered) if release is None else pretrained.read(release, offered)
            expected = architectures.expected(architecture)
            fitted = weights.fit(given, expected, initial, architectures.HEADS[architecture])
        origin = f"{named or 'random'}: {fitted.loaded} tensors loaded, {fitted.fresh} fresh (seed {seed})"
        if fitted.replaced_head is not None:
            origin += f", head for {fitted.replaced_head} classes replaced"
        with full_disk_is_no_space():
            digest = tensorfile.write(target, fitted.tensors, {"origin": origin}, keys=self._keys)
        return InitialWeights(digest, size_of(target), fitted.loaded, fitted.fresh, origin)

    def check(self, architecture: Architecture, path: Path) -> None:
        """Whether a file has every tensor of a complete model, and no other. Raises `WeightsDoNotFit` and
        `SealingKeyUnknown`."""
        weights.check(self._tensors(path), architectures.expected(architecture))

    def release(self, architecture: Architecture) -> str:
        """Where torchvision publishes its ImageNet weights."""
        return pretrained.torchvision_url(architecture)

    def _tensors(self, path: Path) -> dict[str, weights.Array]:
        file = TensorFile.open(path, self._keys)
        return {name: file.tensor(name) for name in file}
