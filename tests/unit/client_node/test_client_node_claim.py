"""Slots: who gets which, what belongs to one, and that nothing which happens to a key bricks one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from concilia_client_node import claim
from concilia_client_node.claim import ClaimSettings, Site
from concilia_client_node.consortium import Consortium
from concilia_client_node.errors import DatasetError, Stopped
from concilia_client_node.locks import FileLock
from concilia_client_node.settings import NodeSettings
from concilia_client_node.split import SiteChoice
from concilia_client_node.store import UPDATES_KEPT, NodeFolder, Trained
from concilia_kit import http, keystore
from concilia_kit.keystore import KeystoreError
from concilia_kit.wire.auth import Audience
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

JOB = "ab" * 32
SITE = Site("iid:0/2", "site-0")


def settings(tmp_path: Path, **values: Any) -> ClaimSettings:
    return ClaimSettings(directory=tmp_path, **values)


# --------------------------------------------------------------------------------------------------------------- slots


def test_the_lowest_free_slot_is_taken_and_none_twice(tmp_path: Path) -> None:
    slots = [claim.take(tmp_path, 3) for _ in range(4)]
    assert [slot and slot.number for slot in slots] == [0, 1, 2, None]
    for index in (2, 1):
        slot = slots[index]
        assert slot is not None
        slot.lock.release()
    again = claim.take(tmp_path, 3)
    assert again is not None
    assert again.number == 1


def test_who_finds_none_free_waits_until_one_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    owner = claim.take(tmp_path, 1)
    assert owner is not None
    tries = iter(range(3))

    def pause() -> None:
        if next(tries, None) is None:
            owner.lock.release()

    assert claim.wait_for(tmp_path, 1, pause).number == 0
    assert next(tries, None) is None


def test_a_lock_is_exclusive_or_shared(tmp_path: Path) -> None:
    first, second, third = (FileLock(tmp_path / "lock") for _ in range(3))
    assert first.take(shared=True)
    assert second.take(shared=True)
    assert not third.take()
    first.release()
    second.release()
    second.release()
    assert third.take()
    assert third.take()
    assert not first.take(shared=True)


# --------------------------------------------------------------------------------------------------------------- sites


def test_collections_go_by_name_and_there_are_no_more_slots_than_they(
    tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    data = make_folder()
    assert claim.sites_of(settings(tmp_path), data) == [
        Site("collection:east", "east"),
        Site("collection:west", "west"),
    ]
    assert claim.sites_of(settings(tmp_path, slots=1), data) == [Site("collection:east", "east")]


def test_a_folder_without_collections_is_told_what_to_set(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    data = make_folder(tables={"HAM10000_metadata.csv": False})
    with pytest.raises(DatasetError, match="CONCILIA_CLAIM_SITES"):
        claim.sites_of(settings(tmp_path), data)


@given(slots=st.integers(1, 30), template=st.sampled_from(["iid:{slot}/{slots}", "dirichlet:0.5:{slot}/{slots}"]))
def test_a_template_gives_each_slot_a_site_of_its_own(slots: int, template: str) -> None:
    made = claim.sites_of(settings(Path("unused"), slots=slots, sites=template), Path("unused"))
    parsed = [SiteChoice.parse(site.choice) for site in made]
    assert [choice.index for choice in parsed] == list(range(slots))
    assert {choice.sites for choice in parsed} == {slots}
    assert len({site.name for site in made}) == slots


@pytest.mark.parametrize("sites", ["all", "iid:0/4", "iid:{slot}", "{slot}", "dirichlet:0:{slot}/{slots}", ""])
def test_a_template_that_gives_no_sites_is_refused(tmp_path: Path, sites: str) -> None:
    with pytest.raises(ValidationError):
        settings(tmp_path, sites=sites)


# ---------------------------------------------------------------------------------------------------------------- keys


def test_a_slot_s_key_is_made_once_and_overrides_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = claim.take(tmp_path, 1)
    assert slot is not None
    first = slot.node_settings(SITE)
    made = keystore.load(first["keystore"], first["password_file"]).address
    assert slot.node_settings(SITE) == first
    assert keystore.load(first["keystore"], first["password_file"]).address == made
    for name in ("BROKER_URL", "AUTH_URL", "MODEL_URL", "CHAIN_URL", "AGGREGATOR_URL", "DATA"):
        monkeypatch.setenv(f"CONCILIA_NODE_{name}", "x")
    for name in ("KEYSTORE", "PASSWORD_FILE", "DIRECTORY", "SITE", "SITE_NAME"):
        monkeypatch.setenv(f"CONCILIA_NODE_{name}", "all")
    monkeypatch.setenv("CONCILIA_NODE_PORT", "9000")
    node = NodeSettings(**first)
    assert (node.keystore, node.site, node.site_name) == (tmp_path / "slot-0" / "keystore.json", "iid:0/2", "site-0")
    assert node.directory == tmp_path / "slot-0" / "work"


def test_a_crash_between_password_and_key_does_not_brick_the_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = claim.take(tmp_path, 1)
    assert slot is not None
    with monkeypatch.context() as patch:
        patch.setattr(keystore.json, "dumps", lambda _: (_ for _ in ()).throw(OSError("power cut")))  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="power cut"):
            slot.node_settings(SITE)
    left = (slot.directory / "password").read_text()
    assert not (slot.directory / "keystore.json").exists()
    made = slot.node_settings(SITE)
    assert keystore.load(made["keystore"], made["password_file"]).address
    assert (slot.directory / "password.unused").read_text() == left  # not lost, should it belong to something


def test_a_key_without_its_password_is_told_and_kept(tmp_path: Path) -> None:
    slot = claim.take(tmp_path, 1)
    assert slot is not None
    slot.node_settings(SITE)
    (slot.directory / "password").unlink()
    before = (slot.directory / "keystore.json").read_bytes()
    with pytest.raises(KeystoreError, match="password is missing"):
        slot.node_settings(SITE)
    assert (slot.directory / "keystore.json").read_bytes() == before


# ----------------------------------------------------------------------------------------- a work folder that is shared


def trained(base: str = "0" * 64) -> Trained:
    return Trained(
        base=base,
        digest="1" * 64,
        size=1,
        loss=0.1,
        accuracy=0.5,
        images=1,
        lesions=1,
        skipped_images=0,
        epochs=1,
        seconds_download=0,
        seconds_training=0,
        bytes_download=0,
    )


def test_a_starting_process_leaves_a_living_one_s_half_written_files_alone(tmp_path: Path) -> None:
    NodeFolder(tmp_path).open()  # died: this process dropped its hold
    script = (
        "import sys, time; from pathlib import Path; from concilia_client_node.store import NodeFolder\n"
        "folder = NodeFolder(Path(sys.argv[1])); folder.open()\n"
        "(folder.scratch / 'own').touch(); folder.base('half').with_suffix('.partial').touch()\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    half = [tmp_path / "shared" / "scratch" / "own", tmp_path / "shared" / "bases" / "half.partial"]
    command = [sys.executable, "-c", script, str(tmp_path / "shared")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sibling:
        try:
            assert sibling.stdout is not None
            assert sibling.stdout.readline() == "ready\n"
            NodeFolder(tmp_path / "shared").open()
            assert all(path.exists() for path in half)
        finally:
            sibling.kill()


def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    folder = NodeFolder(tmp_path)
    folder.open()
    folder.base("half").with_suffix(".partial").touch()
    (folder.scratch / "left").touch()
    folder.open()  # gives its own hold up first, as the kernel does for the dead
    assert not list(tmp_path.rglob("*.partial"))
    assert folder.scratch.is_dir()
    assert not list(folder.scratch.iterdir())


def test_an_update_has_one_worker_at_a_time(tmp_path: Path) -> None:
    first, second = NodeFolder(tmp_path), NodeFolder(tmp_path)
    first.open()
    second.open()
    order: list[str] = []
    asked = threading.Event()

    def wait() -> None:
        with second.alone(JOB, 1, asked.set):
            order.append("second")

    with first.alone(JOB, 1, pytest.fail), first.alone(JOB, 2, pytest.fail):
        other = threading.Thread(target=wait)
        other.start()
        assert asked.wait(10)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]


def test_waiting_for_an_update_ends_with_the_node(tmp_path: Path) -> None:
    folder = NodeFolder(tmp_path)
    folder.open()

    def stopped() -> None:
        raise Stopped("the node is shutting down")

    with folder.alone(JOB, 1, pytest.fail), pytest.raises(Stopped), folder.alone(JOB, 1, stopped):
        pytest.fail("was let in")
    with folder.alone(JOB, 1, pytest.fail):
        pass


def test_tensors_that_a_sibling_is_sending_are_not_cleared_away(tmp_path: Path) -> None:
    folder, sibling = NodeFolder(tmp_path), NodeFolder(tmp_path)
    folder.open()
    sibling.update(JOB, 0).touch()
    with sibling.alone(JOB, 0, pytest.fail):
        for number in range(1, UPDATES_KEPT + 2):
            time.sleep(0.002)  # the clock of the file system
            folder.update(JOB, number).touch()
            folder.keep_trained(JOB, number, trained())
        assert sibling.update(JOB, 0).exists()
    folder.keep_trained(JOB, UPDATES_KEPT + 1, trained())
    assert not sibling.update(JOB, 0).exists()
    assert len(list(tmp_path.rglob("update.safetensors"))) == UPDATES_KEPT


def test_two_that_fetch_the_same_base_do_not_write_into_each_other_s_file(consortium: Any, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    digest, target = consortium.keep(content), tmp_path / "base.safetensors"
    account = Account.create()
    auth = http.client(consortium.url)
    model = http.client(consortium.url, http.WalletAuth(auth, account, Audience.MODEL))
    node, seen = Consortium(model, model, model, auth), []

    def check() -> None:
        partials = sorted(path for path in tmp_path.iterdir() if path.suffix == ".partial" and path.stat().st_size)
        if partials and not seen:  # the second comes in the middle of the first
            seen.extend(partials)
            assert node.fetch(digest, target, lambda: None) == len(content)
            assert target.read_bytes() == content

    with auth, model:
        assert node.fetch(digest, target, check) == len(content)
    assert seen
    assert target.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]
