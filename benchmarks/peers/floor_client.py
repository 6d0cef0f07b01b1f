"""A client of the floor: fetches the model, adds a constant, sends it back.

`python floor_client.py URL CLIENT ROUNDS FOLDER`.

`--lean` sends with sendfile and receives into one buffer, as little as Python can do; without it httpx streams.
"""

from __future__ import annotations

import hashlib
import http.client
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
from payload import STEP

CHUNK = 1 << 20


def pieces(path: Path) -> Iterator[bytes]:
    """A file in pieces."""
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece


def plain(url: str, client: int, path: Path) -> None:
    """One round with httpx."""
    with httpx.Client(base_url=url, timeout=600) as http_client:
        with http_client.stream("GET", "/model") as response, path.open("wb") as file:
            for chunk in response.iter_bytes(CHUNK):
                file.write(chunk)
        digest = train(path)
        headers = {"Content-Length": str(path.stat().st_size)}
        answer = http_client.put(f"/updates/{client}", content=pieces(path), headers=headers)
        if answer.json()["digest"] != digest:
            raise SystemExit("the server received other bytes")


def lean(url: str, client: int, path: Path) -> None:
    """One round with as few copies as there can be."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)
    connection.request("GET", "/model")
    response = connection.getresponse()
    buffer = memoryview(bytearray(CHUNK))
    with path.open("wb") as file:
        while count := response.readinto(buffer):
            file.write(buffer[:count])
    digest = train(path)
    connection.putrequest("PUT", f"/updates/{client}")
    connection.putheader("Content-Length", str(path.stat().st_size))
    connection.endheaders()
    with path.open("rb") as file:
        connection.sock.sendfile(file)
    if digest.encode() not in connection.getresponse().read():
        raise SystemExit("the server received other bytes")
    connection.close()


def train(path: Path) -> str:
    """What stands for training; the SHA-256 of the result."""
    values = np.fromfile(path, np.float32)
    values += STEP
    values.tofile(path)
    return hashlib.sha256(values).hexdigest()


if __name__ == "__main__":
    url, client, rounds, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    one = lean if "--lean" in sys.argv else plain
    for number in range(1, rounds + 1):
        httpx.get(f"{url}/rounds/{number}", timeout=600).raise_for_status()
        one(url, client, folder / f"client-{client}")
    httpx.get(f"{url}/rounds/{rounds + 1}", timeout=600).raise_for_status()
