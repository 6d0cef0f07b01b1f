"""torchvision's ImageNet weights: the one place where a file that is no safetensors file is read.

torchvision publishes its weights as `.pth` files, which are pickles inside. Nobody else's are accepted, and theirs only
so: the address is the one compiled into torchvision, the bytes must hash to what the file's name says, and torch's
restricted unpickler (`weights_only=True`) reads them, which builds tensors and containers and can call nothing else.
What comes out is checked tensor by tensor like any other weights and stored as safetensors. A machine without a way to
the internet, or an operator who wants none of this, names a safetensors file instead.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx
import torch
from concilia_kit.wire.training import Architecture
from torchvision.models import get_model_weights

from concilia_model.errors import WeightsUnavailable
from concilia_model.weights import Array

MAX_BYTES = 512 * 2**20
_ADVICE = "upload a safetensors file and ask for weights 'file' instead"
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.pth$")


def torchvision_url(architecture: Architecture) -> str:
    """Where torchvision publishes its best ImageNet weights."""
    return str(get_model_weights(architecture.value).DEFAULT.url)


class Pretrained:
    """Downloads and reads published weights. Constructing it opens no connection."""

    def __init__(self, http: httpx.Client, url_of: Callable[[Architecture], str] = torchvision_url) -> None:
        self._http = http
        self._url_of = url_of

    def tensors(self, architecture: Architecture) -> dict[str, Array]:
        """ImageNet weights by torchvision's names. Raises `WeightsUnavailable`."""
        url = self._url_of(architecture)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(httpx.URL(url).path).name
            try:
                self._download(url, file)
                state = torch.hub.load_state_dict_from_url(
                    url, model_dir=folder, map_location="cpu", progress=False, check_hash=True, weights_only=True
                )
                return {name: tensor.detach().numpy() for name, tensor in state.items()}
            except (httpx.HTTPError, OSError) as error:
                raise WeightsUnavailable(f"{url} cannot be downloaded; {_ADVICE}") from error
            except WeightsUnavailable:
                raise
            except Exception as error:  # the unpickler's refusals, and what is no dictionary of tensors
                raise WeightsUnavailable(f"{url} cannot be read; {_ADVICE}", status=502) from error

    def _download(self, url: str, file: Path) -> None:
        """Put the file where torch.hub looks before it downloads: ours has timeouts and a bound, its has neither."""
        hasher = hashlib.sha256()
        size = 0
        with self._http.stream("GET", url) as response, file.open("wb") as out:
            response.raise_for_status()
            for chunk in response.iter_bytes(2**20):
                size += len(chunk)
                if size > MAX_BYTES:
                    raise WeightsUnavailable(f"{url} is larger than expected; {_ADVICE}", status=502)
                hasher.update(chunk)
                out.write(chunk)
        named = _HASH_IN_NAME.search(url)
        if named is None or not hasher.hexdigest().startswith(named.group(1)):
            raise WeightsUnavailable(f"{url} does not hash to what its name says; {_ADVICE}", status=502)
