"""The process that holds torch: begun when needed, ended when idle, begun again when it died; the rest goes on."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from concilia_kit.wire.training import Architecture
from concilia_model import network_process
from concilia_model.errors import ImageUnreadable, NetworksUnavailable, WeightsDoNotFit
from concilia_model.network_process import NetworkProcess
from concilia_model.networks import Networks
from PIL import Image

NET = Architecture.MOBILENET_V2
Maker = Callable[..., NetworkProcess]


@pytest.fixture
def make() -> Iterator[Maker]:
    made: list[NetworkProcess] = []

    def begin(idle_seconds: float = 600) -> NetworkProcess:
        options = {"threads": 1, "models_in_memory": 2, "max_pixels": 10**6, "at_once": 2}
        made.append(NetworkProcess(**options, idle_seconds=idle_seconds))
        return made[-1]

    yield begin
    for process in made:
        process.close()


def picture() -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(out, "PNG")
    return out.getvalue()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_answers_as_the_networks_here_do_and_begins_again(make: Maker, tmp_path: Path) -> None:
    here, process = Networks(1, 2, 10**6), make()
    process.ready()
    assert process.pid is None  # nothing was asked yet
    made = process.make_initial(NET, 5, tmp_path / "there")
    assert here.make_initial(NET, 5, tmp_path / "here") == made
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    asked = (made.digest, tmp_path / "here", NET, 64, picture())
    for attention in (False, True):
        assert process.predict(*asked, attention=attention) == here.predict(*asked, attention=attention)
    with pytest.raises(ImageUnreadable):
        process.predict(made.digest, tmp_path / "here", NET, 64, b"no picture", attention=False)
    process.check(NET, tmp_path / "there")
    with pytest.raises(WeightsDoNotFit) as caught:
        process.check(Architecture.RESNET18, tmp_path / "there")
    assert len(caught.value.extra["tensors"]) == 5

    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: process.predict(*asked, attention=False), range(4)))
    assert answers == [here.predict(*asked, attention=False)] * 4
    second = process.pid
    assert second not in (None, first)
    process.close()
    assert second is not None
    assert not alive(second)
    assert process.release(NET).startswith("https://")  # and once more


def test_it_ends_when_nobody_asks(make: Maker) -> None:
    process = make(idle_seconds=0.2)
    process.release(NET)
    pid = process.pid
    assert pid is not None
    while alive(pid):
        time.sleep(0.05)
    while process.pid is not None:
        time.sleep(0.05)
    process.ready()


def test_it_ends_with_the_process_that_asked() -> None:
    script = (
        "import os\n"
        "from concilia_model.network_process import NetworkProcess\n"
        "from concilia_kit.wire.training import Architecture\n"
        "made = NetworkProcess(threads=1, models_in_memory=1, max_pixels=1, at_once=1, idle_seconds=600)\n"
        "made.release(Architecture.RESNET18)\n"
        "print(made.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == -9
    pid = int(ended.stdout)
    while alive(pid):
        time.sleep(0.05)


def test_a_process_that_cannot_begin_is_said_to_be_missing(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    process = make()
    monkeypatch.setattr(network_process.sys, "executable", "/bin/false")
    with pytest.raises(NetworksUnavailable):
        process.release(NET)
    with pytest.raises(NetworksUnavailable):
        process.ready()
    monkeypatch.undo()
    process.release(NET)
    process.ready()


def test_the_service_itself_is_without_torch_and_numpy() -> None:
    script = "import sys, concilia_model.main; assert not {'torch', 'torchvision', 'PIL', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
