"""Loaded models, and probabilities from them.

A model is loaded once, its tensors mapped from its file, or decrypted into memory where that is sealed; the least
recently used one goes when there are too many.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import safetensors.torch
import torch
from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.storedfile import digest_of
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.training import Architecture

from concilia_model import architectures, attention
from concilia_model.errors import ArtifactCorrupt


class Predictor:
    """Classifies prepared pictures with models from files that are named by their digest. Thread-safe."""

    def __init__(self, capacity: int, keys: Keyring = NO_KEYS) -> None:
        self._capacity = capacity
        self._keys = keys
        self._lock = threading.Lock()
        self._models: OrderedDict[str, torch.nn.Module] = OrderedDict()

    def probabilities(self, digest: str, path: Path, architecture: Architecture, batch: torch.Tensor) -> list[float]:
        """Class probabilities of one picture, in the order of `concilia_kit.lesions.CLASSES`; they sum to one.

        `batch` has shape (1, 3, side, side). Raises `ArtifactCorrupt`, `FileNotFoundError` and
        `SealingKeyUnknown`.
        """
        model = self._model(digest, path, architecture)
        with torch.inference_mode():
            shares: list[float] = model(batch)[0].double().softmax(0).tolist()
        return shares

    def look(
        self, digest: str, path: Path, architecture: Architecture, batch: torch.Tensor
    ) -> tuple[list[float], list[list[list[float]]]]:
        """The same probabilities, and for each class a grid of where the network looked (see `attention`).

        Raises as `probabilities` does.
        """
        model = self._model(digest, path, architecture)
        with torch.inference_mode():
            logits, maps = attention.look(model, architecture, batch)
            return logits[0].double().softmax(0).tolist(), maps.tolist()

    def _model(self, digest: str, path: Path, architecture: Architecture) -> torch.nn.Module:
        with self._lock:  # held while loading: two first requests load one model once
            if (model := self._models.get(digest)) is None:
                model = self._load(digest, path, architecture)
                self._models[digest] = model
                if len(self._models) > self._capacity:
                    self._models.popitem(last=False)
            self._models.move_to_end(digest)
            return model

    def _load(self, digest: str, path: Path, architecture: Architecture) -> torch.nn.Module:
        if digest_of(path, self._keys) != digest:
            raise ArtifactCorrupt(f"the stored file of model {digest} no longer has this digest; restore it")
        model = architectures.empty(architecture)
        model.load_state_dict(self._state(path), strict=True, assign=True)
        return model

    def _state(self, path: Path) -> dict[str, torch.Tensor]:
        file = TensorFile.open(path, self._keys)
        if not file.is_sealed:
            return safetensors.torch.load_file(path)
        return {name: torch.from_numpy(file.tensor(name).copy()) for name in file}
