"""torchvision's released weights, fetched: with timeouts, a bound, and a look at the hash that a release's name has."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from concilia_kit.wire.training import ArchitectureName

from concilia_model.errors import WeightsUnavailable

MAX_BYTES = 512 * 2**20
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.pth$")
_ADVICE = "upload a safetensors file and ask for weights 'file' instead"


class Releases:
    """Downloads published weights. Constructing it opens no connection."""

    def __init__(self, http: httpx.Client, url_of: Callable[[ArchitectureName], str]) -> None:
        self._http = http
        self._url_of = url_of

    @contextmanager
    def downloaded(self, architecture: ArchitectureName) -> Iterator[tuple[str, Path]]:
        """The release's address, and a folder that holds it for as long as the context lasts.

        Raises `WeightsUnavailable`.
        """
        url = self._url_of(architecture)
        with tempfile.TemporaryDirectory() as folder:
            try:
                self._download(url, Path(folder) / Path(httpx.URL(url).path).name)
            except (httpx.HTTPError, OSError) as error:
                raise WeightsUnavailable(f"{url} cannot be downloaded; {_ADVICE}") from error
            yield url, Path(folder)

    def _download(self, url: str, file: Path) -> None:
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
        named = HASH_IN_NAME.search(url)
        if named is None or not hasher.hexdigest().startswith(named.group(1)):
            raise WeightsUnavailable(f"{url} does not hash to what its name says; {_ADVICE}", status=502)
