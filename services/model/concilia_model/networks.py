"""All that this service does with networks, behind five calls of plain values: what runs in a process of its own.

Only here and in the modules that this one calls is torch imported.
"""

from __future__ import annotations

from pathlib import Path

import torch
from concilia_kit import tensorfile
from concilia_kit.classification import LESIONS, Classification
from concilia_kit.lesions import CLASSES
from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.storedfile import size_of
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.adapter import Adapter
from concilia_kit.wire.calibration import AS_IT_IS, Use
from concilia_kit.wire.training import ArchitectureName

from concilia_model import adapters, architectures, images, pretrained, weights
from concilia_model.incoming import full_disk_is_no_space
from concilia_model.network_process import InitialWeights, Seen
from concilia_model.predictor import Predictor


class Networks:
    """Predictions and initial weights. Thread-safe."""

    def __init__(self, threads: int, models_in_memory: int, max_pixels: int, keys: Keyring = NO_KEYS) -> None:
        torch.set_num_threads(threads)
        self._keys = keys
        self._predictor = Predictor(models_in_memory, keys)
        self._max_pixels = max_pixels

    def predict(
        self,
        digest: str,
        path: Path,
        architecture: ArchitectureName,
        side: int,
        picture: bytes,
        *,
        attention: bool,
        trunk: Path | None = None,
        classification: Classification = LESIONS,
        use: Use = AS_IT_IS,
    ) -> Seen:
        """Class probabilities of a picture as it was sent, in the order of the model's `classification`, read as `use`
        has it, and where the network looked if that is asked for.

        `digest` names the model, whose file lies at `path`, and an adapter's trunk at `trunk`. Raises `ImageTooLarge`,
        `ImageUnreadable`, `ArtifactCorrupt` and `SealingKeyUnknown`.
        """
        batch = images.prepare(images.decode(picture, self._max_pixels), side, classification)
        return self._predictor.see(
            digest, path, architecture, batch, trunk, attention=attention, classification=classification, use=use
        )

    def make_initial(
        self,
        architecture: ArchitectureName,
        seed: int,
        target: Path,
        *,
        offered: Path | None = None,
        trunk: Path | None = None,
        named: str | None = None,
        release: str | None = None,
        classes: int = len(CLASSES),
    ) -> InitialWeights:
        """Write initial weights to `target`, sealed where the store is: random ones, overlaid with those of a
        safetensors file at `offered`, merged with its `trunk` where it is an adapter, or with torchvision's release
        from `release`, downloaded to `offered`. Its head tells `classes` apart. The same call gives the same bytes.

        `named` says in words where they come from. Raises `ArchitectureUnavailable`, as every call here,
        `WeightsDoNotFit`, `WeightsUnavailable`, `NoSpace` and `SealingKeyUnknown`.
        """
        initial = architectures.fresh(architecture, seed, classes)
        fitted = weights.Fitted(initial, 0, len(initial), None)
        if offered is not None:
            given = adapters.whole(offered, trunk, self._keys) if release is None else pretrained.read(release, offered)
            expected = architectures.expected(architecture, classes)
            fitted = weights.fit(given, expected, initial, architectures.head_of(architecture, classes))
        origin = f"{named or 'random'}: {fitted.loaded} tensors loaded, {fitted.fresh} fresh (seed {seed})"
        if fitted.replaced_head is not None:
            origin += f", head for {fitted.replaced_head} classes replaced"
        with full_disk_is_no_space():
            digest = tensorfile.write(target, fitted.tensors, {"origin": origin}, keys=self._keys)
        return InitialWeights(digest, size_of(target), fitted.loaded, fitted.fresh, origin)

    def make_adapter(
        self,
        architecture: ArchitectureName,
        seed: int,
        target: Path,
        *,
        trunk: Path,
        digest: str,
        kind: str,
        classes: int = len(CLASSES),
    ) -> InitialWeights:
        """Write to `target` an adapter of a kind over the whole model at `trunk`, which `digest` names; see
        `adapters.fresh`. The same call gives the same bytes. Raises `WeightsDoNotFit`, `NoSpace` and
        `SealingKeyUnknown`."""
        over = TensorFile.open(trunk, self._keys)
        expected = architectures.expected(architecture, classes)
        adapters.check(over, None, expected)
        tensors, fresh = adapters.fresh({name: over.tensor(name) for name in over}, expected, kind, seed)
        origin = f"adapter {kind} (seed {seed}) over {digest}: {over.header.metadata.get('origin', 'origin not told')}"
        metadata = {"origin": origin, **Adapter(digest, kind).metadata()}
        with full_disk_is_no_space():
            made = tensorfile.write(target, tensors, metadata, keys=self._keys)
        return InitialWeights(made, size_of(target), len(tensors) - fresh, fresh, origin)

    def check(
        self, architecture: ArchitectureName, path: Path, trunk: Path | None = None, classes: int = len(CLASSES)
    ) -> None:
        """Whether a file, an adapter over its `trunk`, has every tensor that it must, and no other. Raises
        `WeightsDoNotFit` and `SealingKeyUnknown`."""
        over = None if trunk is None else TensorFile.open(trunk, self._keys)
        adapters.check(TensorFile.open(path, self._keys), over, architectures.expected(architecture, classes))

    def release(self, architecture: ArchitectureName) -> str:
        """Where torchvision publishes its ImageNet weights."""
        return pretrained.torchvision_url(architecture)
