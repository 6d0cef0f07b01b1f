"""Loaded models, and probabilities from them.

A model is loaded once, its tensors mapped from its file, or decrypted into memory where that is sealed; the least
recently used one goes when there are too many. An adapter is merged with its trunk at loading.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import safetensors.torch
import torch
from concilia_kit import class_shares, oddity
from concilia_kit.classification import LESIONS, VIEWS, Classification
from concilia_kit.sealing import NO_KEYS, Keyring
from concilia_kit.storedfile import digest_of
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.calibration import AS_IT_IS, Use
from concilia_kit.wire.training import ArchitectureName

from concilia_model import adapters, architectures
from concilia_model import attention as looking
from concilia_model.errors import ArtifactCorrupt
from concilia_model.network_process import Seen


class Predictor:
    """Classifies prepared pictures with models from files that are named by their digest. Thread-safe."""

    def __init__(self, capacity: int, keys: Keyring = NO_KEYS) -> None:
        self._capacity = capacity
        self._keys = keys
        self._lock = threading.Lock()
        self._models: OrderedDict[str, tuple[torch.nn.Module, oddity.Watch]] = OrderedDict()

    def see(
        self,
        digest: str,
        path: Path,
        architecture: ArchitectureName,
        batch: torch.Tensor,
        trunk: Path | None = None,
        *,
        attention: bool = False,
        classification: Classification = LESIONS,
        use: Use = AS_IT_IS,
    ) -> Seen:
        """What a model says of one picture: `batch` has shape (1, 3, side, side); `trunk` is an adapter's.

        With `attention` also where the network looked for each class (see `looking`), at the picture as it stands.
        Raises `ArtifactCorrupt`, `FileNotFoundError` and `SealingKeyUnknown`.
        """
        model, watch = self._model(digest, path, architecture, trunk, len(classification.classes))
        maps = None
        with torch.inference_mode():
            with watch.listening(really=use.unusual is not None) as heard:
                if attention:
                    first, maps = looking.look(model, architecture, batch)
                else:
                    first = model(batch)
            turned = VIEWS[classification.turns][1:] if use.flips else ()
            logits = torch.stack([first[0].double(), *(model(batch.flip(axes))[0].double() for axes in turned)]).mean(0)
            if use.class_counts is not None and use.own_counts is not None:
                logits += torch.from_numpy(class_shares.shift(use.own_counts, use.class_counts))
            which = None if use.critical is None else classification.codes.index(use.critical.code)
            return Seen(
                (logits / use.temperature).softmax(0).tolist(),
                None if maps is None else maps.tolist(),
                None if which is None else logits.softmax(0)[which].item(),
                float(oddity.oddities(heard)[0]) if heard else None,
            )

    def _model(
        self, digest: str, path: Path, architecture: ArchitectureName, trunk: Path | None, classes: int
    ) -> tuple[torch.nn.Module, oddity.Watch]:
        with self._lock:  # held while loading: two first requests load one model once
            if (model := self._models.get(digest)) is None:
                network = self._load(digest, path, architecture, trunk, classes)
                model = network, oddity.Watch(network)
                self._models[digest] = model
                if len(self._models) > self._capacity:
                    self._models.popitem(last=False)
            self._models.move_to_end(digest)
            return model

    def _load(
        self, digest: str, path: Path, architecture: ArchitectureName, trunk: Path | None, classes: int
    ) -> torch.nn.Module:
        self._check(digest, path)
        model = architectures.empty(architecture, classes)
        model.load_state_dict(self._state(path, trunk), strict=True, assign=True)
        return model

    def _check(self, digest: str, path: Path) -> None:
        if digest_of(path, self._keys) != digest:
            raise ArtifactCorrupt(f"the stored file of model {digest} no longer has this digest; restore it")

    def _state(self, path: Path, trunk: Path | None) -> dict[str, torch.Tensor]:
        file = TensorFile.open(path, self._keys)
        if (said := adapters.adapter_of(file)) is not None:
            if trunk is not None:
                self._check(said.trunk, trunk)
            made = adapters.whole(path, trunk, self._keys)
            return {name: torch.from_numpy(tensor.copy()) for name, tensor in made.items()}
        if not file.is_sealed:
            return safetensors.torch.load_file(path)
        return {name: torch.from_numpy(file.tensor(name).copy()) for name in file}
