"""Transfers over lines that break, to a service that is killed: what is promised of them, counted in bytes."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from concilia_kit import digests, http, storedfile, transfer
from concilia_kit.problems import Problem, Unavailable
from concilia_kit.roles import Role
from concilia_kit.sealing import MAGIC, OVERHEAD, Keyring, StoreKey

from .breaking_line import BreakingLine
from .model_process import Peers, Running, tensor_file

pytestmark = pytest.mark.integration

ALICE, BOB = "0x" + "1" * 40, "0x" + "2" * 40
CHUNK = 2**20
Start = Callable[[], Running]


class Bearer(httpx.Auth):
    """A token that is there already."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers.update(self._headers)
        yield request


def hospital(peers: tuple[Peers, str], url: str, address: str = ALICE) -> httpx.Client:
    return http.client(url, Bearer(peers[0].headers(address, Role.HOSPITAL)))


@pytest.fixture
def file(tmp_path: Path) -> tuple[str, Path]:
    digest, content = tensor_file(16)
    path = tmp_path / "update.safetensors"
    path.write_bytes(content)
    return digest, path


def address_of(service: Running) -> str:
    return f"http://127.0.0.1:{service.port}"


def test_a_file_comes_through_a_line_that_breaks_both_ways(
    start: Start, peers: tuple[Peers, str], file: tuple[str, Path], tmp_path: Path
) -> None:
    service, (digest, path) = start(), file
    size = path.stat().st_size
    with BreakingLine(service.port, rate=20e6, reset_bytes=3 * 2**20) as line, hospital(peers, line.url) as client:
        sent = transfer.upload(client, digest, path, chunk=CHUNK)
        assert line.resets >= 5
        assert sent.size == size
        assert sent.breaks >= line.resets
        assert sent.again <= sent.breaks * CHUNK
        assert line.passed <= size + sent.breaks * CHUNK + 2**18  # and the heads of requests
        before = line.resets
        got = transfer.download(client, digest, tmp_path / "got")
        assert line.resets >= before + 5
        assert (got.size, got.moved, got.again) == (size, size, 0)
    assert (tmp_path / "got").read_bytes() == path.read_bytes()
    assert service.files() == [service.directory / digest[:2] / digest]
    log = service.stop()
    assert "Traceback" not in log


def test_a_service_that_is_killed_in_the_middle_goes_on_where_it_was(
    start: Start, peers: tuple[Peers, str], file: tuple[str, Path]
) -> None:
    service, (digest, path) = start(), file
    done: list[transfer.Transferred] = []
    with BreakingLine(service.port, rate=5e6) as line, hospital(peers, line.url) as client:
        sending = threading.Thread(
            target=lambda: done.append(transfer.upload(client, digest, path, chunk=CHUNK, patience=120))
        )
        sending.start()
        while line.passed < 6 * 2**20:
            time.sleep(0.02)
        service.kill()
        kept = sum(item.stat().st_size for item in service.files())
        assert 4 * 2**20 < kept < path.stat().st_size
        service = start()
        sending.join()
    (sent,) = done
    assert sent.breaks >= 1
    assert sent.again <= CHUNK
    assert service.files() == [service.directory / digest[:2] / digest]
    assert storedfile.digest_of(service.files()[0], service.keys) == digest


def test_files_that_are_sealed_on_this_side_come_and_go_over_a_line_that_breaks(
    start: Start, peers: tuple[Peers, str], file: tuple[str, Path], tmp_path: Path
) -> None:
    service, (digest, path) = start(), file
    content, keys = path.read_bytes(), Keyring(StoreKey.new())
    seal = keys.seal()
    assert seal is not None
    path.write_bytes(seal.header + seal.at(0)(content))
    target, partial = tmp_path / "got", tmp_path / "got.partial"
    with BreakingLine(service.port, rate=20e6, reset_bytes=3 * 2**20) as line, hospital(peers, line.url) as client:
        sent = transfer.upload(client, digest, path, chunk=CHUNK, keys=keys)
        assert line.resets >= 5
        assert sent.size == len(content)
        partial.write_bytes(content[: 2**20])  # what came before there was a key is fetched again, and sealed
        got = transfer.download(client, digest, target, keys=keys)
        assert (got.size, got.moved, got.again) == (len(content), len(content), 0)
        assert target.read_bytes().startswith(MAGIC)
        assert storedfile.digest_of(target, keys) == digest
        partial.write_bytes(target.read_bytes()[: 5 * 2**20])
        target.unlink()
        got = transfer.download(client, digest, target, keys=keys)
        assert got.moved == len(content) - 5 * 2**20 + OVERHEAD
        assert storedfile.digest_of(target, keys) == digest


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(
    start: Start, peers: tuple[Peers, str], file: tuple[str, Path], tmp_path: Path
) -> None:
    class GaveUp(Exception):
        pass

    def until(seen: Callable[[], bool]) -> Callable[[], None]:
        def check() -> None:
            if seen():
                raise GaveUp

        return check

    service, (digest, path) = start(), file
    size = path.stat().st_size
    with BreakingLine(service.port, rate=40e6) as line, hospital(peers, line.url) as client:
        with pytest.raises(GaveUp):
            transfer.upload(client, digest, path, check=until(lambda: line.passed > 8 * 2**20))
        sent = transfer.upload(client, digest, path)
        assert 0 < sent.moved < size - 6 * 2**20
        assert transfer.upload(client, digest, path).moved == 0
        target = tmp_path / "got"
        partial = tmp_path / "got.partial"
        with pytest.raises(GaveUp):
            transfer.download(
                client, digest, target, check=until(lambda: partial.exists() and partial.stat().st_size > 8 * 2**20)
            )
        half = partial.stat().st_size
        got = transfer.download(client, digest, target)
        assert got.moved == size - half
        assert digests.of_file(target) == digest
        target.unlink()
        # What lies there may be broken: then all of it is fetched, once.
        partial.write_bytes(bytes(size // 2))
        assert transfer.download(client, digest, target).size == size
        assert digests.of_file(target) == digest
        assert not partial.exists()


def test_other_bytes_than_were_named_are_gone(start: Start, peers: tuple[Peers, str], file: tuple[str, Path]) -> None:
    service, (_, path) = start(), file
    with hospital(peers, address_of(service)) as client, pytest.raises(Problem) as caught:
        transfer.upload(client, "0" * 64, path, chunk=CHUNK)
    assert (caught.value.problem_status, caught.value.problem_code) == (422, "digest_mismatch")
    assert service.files() == []


def test_two_hospitals_bring_the_same_bytes(start: Start, peers: tuple[Peers, str], file: tuple[str, Path]) -> None:
    service, (digest, path) = start(), file
    with ThreadPoolExecutor(2) as pool:

        def bring(address: str) -> transfer.Transferred:
            with hospital(peers, address_of(service), address) as client:
                return transfer.upload(client, digest, path, chunk=CHUNK)

        sent = list(pool.map(bring, (ALICE, BOB)))
    assert [item.moved for item in sent] == [path.stat().st_size] * 2  # naming bytes is not bringing them
    for address in (ALICE, BOB):
        with hospital(peers, address_of(service), address) as client:
            assert client.get(f"/v1/artifacts/{digest}/info").status_code == 200
    assert service.files() == [service.directory / digest[:2] / digest]


def test_a_connection_that_hangs_is_taken_over_from(
    start: Start, peers: tuple[Peers, str], file: tuple[str, Path]
) -> None:
    service, (digest, path) = start(), file
    headers = {"Tus-Resumable": "1.0.0", **peers[0].headers(ALICE, Role.HOSPITAL)}
    named = base64.b64encode(digest.encode()).decode()
    begun = service.http.post(
        "/v1/uploads",
        headers={**headers, "Upload-Length": str(path.stat().st_size), "Upload-Metadata": f"digest {named}"},
    )
    with socket.create_connection(("127.0.0.1", service.port)) as hanging:
        head = {
            **headers,
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(path.stat().st_size),
            "Upload-Offset": "0",
            "Host": "model",
        }
        lines = [f"PATCH /v1/{begun.headers['location']} HTTP/1.1", *(": ".join(item) for item in head.items()), "", ""]
        hanging.sendall("\r\n".join(lines).encode() + path.read_bytes()[: 5 * 2**20])
        while not sum(item.stat().st_size for item in service.files()) > 2**20:
            time.sleep(0.02)
        with hospital(peers, address_of(service)) as client:
            sent = transfer.upload(client, digest, path)
        assert (sent.again, sent.breaks) == (0, 0)
        assert sent.moved <= path.stat().st_size - 4 * 2**20  # what the hanging one brought was kept
        answer = hanging.recv(65536)
        assert answer.startswith(b"HTTP/1.1 409 ")
        assert b"upload_taken_over" in answer


def test_eight_large_uploads_at_once_take_little_memory(start: Start, peers: tuple[Peers, str], tmp_path: Path) -> None:
    service = start()
    size = 100 * 10**6
    files = [_large(tmp_path / f"{number}.safetensors", number, size) for number in range(8)]

    def bring(path: Path) -> None:
        with hospital(peers, address_of(service), f"0x{int(path.stem) + 1:040x}") as client:
            transfer.upload(client, digests.of_file(path), path, patience=120)

    bring(files[0])
    before = _peak(service.process.pid)
    with ThreadPoolExecutor(7) as pool:
        list(pool.map(bring, files[1:]))
    assert _peak(service.process.pid) - before < 8 * 6 * 2**20
    assert len(service.files()) == 8


def test_nobody_is_waited_for_longer_than_said(peers: tuple[Peers, str], file: tuple[str, Path]) -> None:
    digest, path = file
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    with hospital(peers, url) as client:
        for move in (transfer.upload, transfer.download):
            with pytest.raises(Unavailable):
                move(client, digest, path, patience=0.3)


def _large(path: Path, number: int, size: int) -> Path:
    """A tensor of zeros, which takes no room on this disk."""
    header = {"__metadata__": {"of": str(number)}, "w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + size)
    return path


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
