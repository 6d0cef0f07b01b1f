"""The main job as real processes, and everything that can be asked of it afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import pytest
from PIL import Image

SMALL = [
    *("--architecture", "mobilenet_v2", "--image-size", "32", "--rounds", "2"),
    *("--drawn-images", "640", "--max-images", "48", "--max-held-out", "40", "--batch-size", "16"),
]


# Real pictures where they lie beside the checkout, drawn ones elsewhere; the report says which.
REAL = Path(__file__).parents[3] / "shared" / "data" / "ham10000"
SOURCE = "HAM10000" if REAL.is_dir() else "drawn lesions"
PICTURES = REAL if REAL.is_dir() else Path("var/demo/drawn")


def concilia(*arguments: str, folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "concilia", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


@dataclass(frozen=True)
class Kept:
    """A demo that was kept, and its report."""

    folder: Path
    report: dict[str, Any]

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return concilia(*arguments, folder=self.folder, check=check)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], int]) -> Iterator[Kept]:
    folder = tmp_path_factory.mktemp("demo")
    try:
        data = ["--data", str(REAL)] if REAL.is_dir() else []
        done = concilia("demo", "--keep", "--json", "--port", str(free_ports(11)), *data, *SMALL, folder=folder)
        print(f"pictures used: {SOURCE}")
        yield Kept(folder, json.loads(done.stdout))
    finally:
        concilia("demo", "stop", folder=folder)
    assert not _alive(folder)


def _alive(folder: Path) -> list[str]:
    """Command lines of processes whose settings point into a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            text = " ".join([*process.cmdline(), *process.environ().values()])
        except psutil.Error:
            continue
        if str(folder) in text and process.pid != os.getpid() and "concilia_" in text:
            found.append(" ".join(process.cmdline()))
    return found


def test_every_update_is_logged_and_the_job_verifies(kept: Kept) -> None:
    report = kept.report
    assert report["source"] == SOURCE
    assert report["overlapping_lesions"] == 0
    assert report["updates_logged"] == 8
    assert report["signers"] == 4
    assert report["verdict"]["ok"]
    assert report["verdict"]["signatures"] == 8
    rounds = report["job"]["rounds"]
    assert [item["round"] for item in rounds] == [0, 1, 2]
    assert all(item["pooled"] is not None and len(item["sites"]) == 4 for item in rounds)
    assert sum(item["overlapping_lesions"] for item in rounds) == 0
    assert sum(item["probability"] for item in report["prediction"]["probabilities"]) == pytest.approx(1, abs=1e-9)
    assert report["prediction"]["model"] == report["verdict"]["published"]
    use = rounds[-1]["calibrated"]["use"]
    assert use["images"] == rounds[-1]["pooled"]["images"] >= 80
    assert 0.5 <= use["temperature"] <= 4
    assert report["prediction"]["unusual"]["threshold"] == use["unusual"]["threshold"]
    assert json.loads((kept.folder / "var/demo/report.json").read_text())["job"]["id"] == report["job"]["id"]


def test_what_people_ask_of_it(kept: Kept) -> None:
    job = kept.report["job"]["id"]
    assert [item["id"] for item in kept.json("job", "list")][-1] == job
    assert kept.json("job", "show", job[:10])["phase"] == "finished"
    assert len(kept.json("node", "status")) == 4
    picture = next((kept.folder / PICTURES).glob("**/*.jpg"))
    assert len(kept.json("predict", str(picture))["probabilities"]) == 7
    stored = {item["kind"]: item["files"] for item in kept.json("storage")["stored"]}
    assert (stored["initial"], stored["global"], stored["update"], stored["orphan"]) == (1, 2, 8, 0)
    verdict = kept.json("verify", job)
    assert verdict["ok"]
    folder = ["--artifacts", "var/demo/artifacts"]
    refused = kept.run("verify", job, *folder, check=False)
    assert refused.returncode == 1
    assert "sealing_key_unknown" in refused.stderr
    assert kept.json("verify", job, *folder, "--sealing-key", "var/demo/keys/sealing")["ok"]


def test_a_folder_is_predicted_with_maps_of_attention(kept: Kept) -> None:
    folder = kept.folder / "pictures"
    folder.mkdir()
    for picture in sorted((kept.folder / PICTURES).glob("**/*.jpg"))[:3]:
        shutil.copy(picture, folder)
    (folder / "zz.png").write_bytes(b"no picture")
    done = kept.run("predict", "pictures", "--attention", "maps", "--json", check=False)
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert (told["pictures"], told["predicted"]) == (4, 3)
    assert 0 < told["p50_ms"] <= told["p95_ms"]
    assert "image_unreadable" in told["answers"][3]["fault"]
    for each in told["answers"][:3]:
        with Image.open(kept.folder / each["attention_file"]) as made, Image.open(kept.folder / each["file"]) as given:
            assert made.size == given.size
            assert kept.report["verdict"]["published"] in made.text["Source"]  # type: ignore[attr-defined]


def test_a_model_is_exported_for_others(kept: Kept) -> None:
    """What ONNX Runtime makes of pictures, scaled by Pillow, is what the service says of them."""
    made = kept.json("export", "--onnx", "model.onnx")
    assert made["model"] == kept.report["verdict"]["published"]
    assert made["largest_difference"] <= 1e-4
    session = onnxruntime.InferenceSession(kept.folder / "model.onnx", providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    assert (told["concilia.model"], told["concilia.job"]) == (made["model"], kept.report["job"]["id"])
    codes = [each["code"] for each in json.loads(told["concilia.classes"])]
    for picture in sorted((kept.folder / PICTURES).glob("**/*.jpg"))[:3]:
        side = made["image_size"]
        with Image.open(picture) as opened:
            pixels = np.asarray(opened.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
        (found,), _ = session.run(None, {"picture": pixels.transpose(2, 0, 1)[None]})
        said = kept.json("predict", str(picture))["probabilities"]
        assert [each["code"] for each in said] == codes
        assert [each["probability"] for each in said] == pytest.approx(list(found), abs=1e-4)


def test_a_model_has_a_card(kept: Kept) -> None:
    text = kept.run("card").stdout
    rounds = kept.report["job"]["rounds"]
    for digest in (
        kept.report["job"]["id"],
        kept.report["job"]["spec"]["initial"],
        *(each["model"] for each in rounds),
    ):
        assert f"`{digest}`" in text
    assert f"| Balanced accuracy | {rounds[-1]['pooled']['balanced_accuracy']:.3f} (" in text
    for site in rounds[-1]["sites"]:
        assert site["hospital"] in text
        assert f"| {site['scores']['images']} | {site['scores']['balanced_accuracy']:.3f} (" in text
    assert ("drawn by a program" in text) == (SOURCE == "drawn lesions")
    assert "card.md" in kept.run("card", kept.report["verdict"]["published"][:12], "--out", "card.md").stdout
    assert (kept.folder / "card.md").read_text() == text


def test_what_each_update_was_worth_is_shown(kept: Kept) -> None:
    told = kept.json("contributions", "latest", "--round", "1")
    assert told["round"] == 1
    assert len({each["hospital"] for each in told["updates"]}) == 4
    for what in ("samples", "shapley"):
        assert sum(each[what] for each in told["updates"]) == pytest.approx(1.0)
    assert all(0 < each["agreement"] <= 1 for each in told["updates"])
    assert "round 2: how 4 updates lie to each other" in kept.run("contributions").stdout
    refused = kept.run("contributions", "latest", "--round", "9", check=False)
    assert refused.returncode == 2


def test_one_flipped_byte_is_found_and_named(kept: Kept) -> None:
    job = kept.report["job"]["id"]
    events = [item for item in kept.report["transactions"] if item["function"] == "submitUpdates"]
    assert len(events) == 8
    update = _updates(kept)[3]
    path = kept.folder / "var/demo/artifacts" / update["digest"][:2] / update["digest"]
    mode = path.stat().st_mode
    path.chmod(0o600)
    content = path.read_bytes()
    path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    try:
        done = kept.run("verify", job, check=False)
    finally:
        path.write_bytes(content)
        path.chmod(mode)
    assert done.returncode == 1
    assert f"FOUND round {update['round']} · hospital {update['hospital']} · {update['digest']}" in done.stdout
    assert kept.run("verify", job).returncode == 0


def _updates(kept: Kept) -> list[dict[str, Any]]:
    """A finished job's updates, read through the Python client."""
    script = (
        "import json\nfrom pathlib import Path\n"
        "from concilia.client import Client\nfrom concilia.connection import Connection, Endpoints\n"
        "to = Client(Connection(Endpoints.read(Path('var/demo/concilia.json'))))\n"
        f"job = to.ledger_job('{kept.report['job']['id']}')\n"
        "print(json.dumps([u.update.model_dump() for r in job.rounds for u in r.updates]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=kept.folder, capture_output=True, text=True, check=True
    )
    updates: list[dict[str, Any]] = json.loads(done.stdout)
    return updates


def test_the_contract_refuses_with_its_own_errors(kept: Kept) -> None:
    attempts = kept.json("demo", "refusals")
    errors = [item["answer"].get("contract_error") for item in attempts]
    assert errors == [
        "InvalidSignature",
        "NotHospital",
        "BaseMismatch",
        "RoundNotOpen",
        None,
        None,  # the same update again: it is there already
        "AlreadySubmitted",
    ]
    for item in attempts:
        if item["answer"]:
            assert {"type", "title", "status", "code", "detail"} <= set(item["answer"])
            assert 400 <= item["answer"]["status"] < 500


def test_a_job_that_moves_an_adapter_alone(kept: Kept) -> None:
    """Hospitals fetch its trunk once, and the model that comes of it is read, verified and bundled like any other."""
    training = ["--image-size", "32", "--max-images", "32", "--batch-size", "16", "--rounds", "2", "--quorum", "4"]
    job = kept.json(
        *("job", "create", "--architecture", "mobilenet_v2", "--weights", "random", "--seed", "9"),
        *("--adapter", "lora:2", "--encoding", "float16", "--watch", *training),
    )
    assert job["phase"] == "finished", job["detail"]
    first, second = (item for item in job["rounds"] if item["round"])
    assert first["accepted"] == second["accepted"] == 4
    whole = kept.report["job"]["rounds"][2]["bytes_moved"]
    assert 0 < second["bytes_moved"] < 0.1 * whole
    stored = {item["kind"]: item["files"] for item in kept.json("storage")["stored"]}
    assert stored["trunk"] == 1
    picture = next((kept.folder / PICTURES).glob("**/*.jpg"))
    assert kept.json("predict", str(picture))["model"] == job["model"]
    assert kept.json("verify", job["id"])["ok"]
    kept.run("bundle", job["id"], "--out", "adapter.zip")
    assert kept.json("verify", "--offline", "adapter.zip")["ok"]


def test_a_second_demo_beside_a_kept_one_is_refused(kept: Kept) -> None:
    done = kept.run("demo", *SMALL, check=False)
    assert done.returncode == 2
    assert "make demo-stop" in done.stderr


def _spoil_folder(folder: Path) -> list[str]:
    (folder / "nothing").mkdir()
    return ["--data", "nothing"]


def _spoil_weights(folder: Path) -> list[str]:
    (folder / "weights").write_bytes(b"\x80\x02}q\x00.")
    return ["--weights", "weights"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda _: ["--data", "missing"], "is no folder"),
        (_spoil_folder, "HAM10000_metadata"),
        (lambda _: ["--weights", "missing"], "neither"),
        (_spoil_weights, "no safetensors file"),
        (lambda _: ["--learning-rate", "0"], "learning"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, spoil: Callable[[Path], list[str]], words: str) -> None:
    done = concilia("demo", *SMALL, *spoil(tmp_path), folder=tmp_path, check=False)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not _alive(tmp_path)


def test_a_taken_port_is_named(tmp_path: Path, free_ports: Callable[[int], int]) -> None:
    first = free_ports(11)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 3))
        taken.listen()
        done = concilia("demo", "--port", str(first), *SMALL, folder=tmp_path, check=False)
    assert done.returncode == 2
    assert f"port {first + 3}" in done.stderr


def test_interrupting_stops_everything(tmp_path: Path, free_ports: Callable[[int], int]) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "concilia", "demo", "--port", str(free_ports(11)), *SMALL],
            cwd=tmp_path,
            stdout=output,
            stderr=output,
            # Tests that run in the background inherit that interrupts are ignored; a terminal's do not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        for _ in range(1200):
            if b"enrolling" in log.read_bytes():
                break
            assert demo.poll() is None, log.read_text()
            time.sleep(0.1)
        assert len(_alive(tmp_path)) >= 8
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=60) == 130
    assert not _alive(tmp_path)
