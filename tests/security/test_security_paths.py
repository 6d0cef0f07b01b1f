"""Names from outside become no paths: of archives' members, digests and ids in addresses, tables of pictures, pages."""

from __future__ import annotations

import csv
import io
import re
import shlex
import stat
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from concilia.stack.front_door.pages import Pages
from concilia.verification.bundle import Bundle, BundleDamaged
from concilia_aggregator import api as aggregator
from concilia_auth import api as auth
from concilia_chain import api as chain
from concilia_client_node import dataset
from concilia_client_node.local_data import LocalData
from concilia_client_node.split import SiteChoice
from concilia_kit.digests import Digest, JobId
from concilia_kit.lesions import CLASSES
from concilia_kit.signing import Address
from concilia_model import api as model
from fastapi import FastAPI
from PIL import Image
from pydantic import TypeAdapter, ValidationError

ROOT = Path(__file__).parents[2]
HEX = "0123456789abcdef" * 4
TRICKS = (
    *("..", "../escape", "a/../../escape", "/etc/passwd", "//etc/passwd", "./a", "a//b", "a/", ""),
    *("..\\escape", "C:\\escape", "C:escape", "\\\\host\\share", "~/escape", "file:///etc/passwd"),
    *(
        "a\0b",
        "a\nb",
        HEX + "\n",
        HEX + "\0",
        HEX.upper(),
        HEX[:-1],
        HEX + "0",
        "\uff0e\uff0e\uff0fescape",
        "%2e%2e%2fescape",
    ),
    *("con", "a" * 5000, HEX[:-2] + "/.", "\u0660" * 64),
)


# ---------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize("kind", [Digest, JobId, Address], ids=["digest", "job", "address"])
@pytest.mark.parametrize("name", TRICKS)
def test_what_names_files_has_one_form(kind: Any, name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(name)


def test_every_text_in_an_address_has_a_form() -> None:
    app = FastAPI()
    for router in (auth.router, auth.well_known, model.router, aggregator.router, chain.router):
        app.include_router(router)
    seen = 0
    for path, operations in app.openapi()["paths"].items():
        for parameter in (
            each for one in operations.values() for each in one.get("parameters", ()) if each["in"] == "path"
        ):
            schema = parameter["schema"]
            seen += 1
            assert (
                schema.get("type") == "integer"
                or "$ref" in schema  # an enumeration
                or parameter["name"] in {"address", "hospital"}  # `Address`, see above
                or re.fullmatch(r"\^\[0-9a-f\]\{(32|64)\}\$", schema.get("pattern", ""))
            ), f"{path}: {parameter['name']}"
    assert seen > 20


@pytest.fixture
def pages(tmp_path: Path) -> Pages:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "index.html").write_text("page")
    (tmp_path / "dist" / ".hidden").write_text("secret")
    (tmp_path / "dist" / "link.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "dist" / "folder").symlink_to(tmp_path)
    return Pages(tmp_path / "dist", {})


@pytest.mark.parametrize(
    "address",
    [
        *(
            "/../secret.txt",
            "/..%2fsecret.txt",
            "/%2e%2e/secret.txt",
            "/assets/..%2f..%2fsecret.txt",
            "/..%5csecret.txt",
        ),
        *(
            "/%252e%252e/secret.txt",
            "/link.txt",
            "/folder/secret.txt",
            "/.hidden",
            "/%00",
            "//etc/passwd",
            "/%2fetc%2fpasswd",
        ),
    ],
)
async def test_pages_are_those_of_their_folder(pages: Pages, address: str) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(pages), base_url="http://a") as client:
        # as it is written: the client would tidy it up
        request = client.build_request("GET", "/")
        request.url = httpx.URL(f"http://a{address}")
        answer = await client.send(request)
        assert (await client.get("/")).text == "page"
    assert answer.status_code in (404, 400)
    assert "secret" not in answer.text


# ----------------------------------------------------------------------------------------------------------- archives


def bundle_with(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("events.json", b"[]"), ("updates.json", b"[]"), ("manifest.json", b"{}"), *members):
            archive.writestr(name, content)
    return path


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "name", [*TRICKS, f"artifacts/../{HEX}", f"artifacts/01/../{HEX}", f"artifacts/02/{HEX}", "Events.json"]
)
def test_a_bundle_has_members_of_known_names_only(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = bundle_with(folder / "b.zip", (name.split("\0")[0] or "/", b"x"))
    with pytest.raises(BundleDamaged):
        Bundle(path)
    assert [each.name for each in tmp_path.rglob("*")] == ["in", "b.zip"]


def test_a_link_in_a_bundle_is_bytes(tmp_path: Path) -> None:
    """Nothing extracts by what a member says that it is: a link's target comes out as the bytes of a file."""
    path = bundle_with(tmp_path / "b.zip", (link(f"artifacts/01/{HEX}"), b"/etc/passwd"))
    opened = object.__new__(Bundle)
    opened._archive = zipfile.ZipFile(path)
    with opened:
        opened._members = {info.filename: info for info in opened._archive.infolist()}
        fetched = opened.fetch(HEX, tmp_path)
    assert not fetched.is_symlink()
    assert fetched.read_bytes() == b"/etc/passwd"


def test_two_members_of_one_name(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = bundle_with(tmp_path / "b.zip", ("events.json", b"[1]"))
    with pytest.raises(BundleDamaged, match="two of one name"):
        Bundle(path)


def hostile_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:

        def put(name: str, content: bytes = b"x", **attributes: Any) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content) if info.isreg() and not attributes else 0
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))

        put("fine")
        put("../escaped")
        put("a/../../escaped")
        put("/tmp/concilia-test-escaped")  # that nothing is written there is the test
        put("link", type=tarfile.SYMTYPE, linkname="..")
        put("link/escaped")
        put("absolute", type=tarfile.SYMTYPE, linkname="/tmp")
        put("absolute/concilia-test-escaped")
    return out.getvalue()


def test_a_backups_archive_stays_in_its_volume(tmp_path: Path) -> None:
    """`deploy/restore`'s own command for tar, on an archive of names that lead out of it."""
    script = (ROOT / "deploy/restore").read_text()
    flags = re.search(r'-C /to (-\S+) "/from/\$name\.tar"', script)
    assert flags is not None, "restore unpacks by another command: change this test with it"
    volume, archive = tmp_path / "volume", tmp_path / "a.tar"
    volume.mkdir()
    archive.write_bytes(hostile_tar())
    done = subprocess.run(
        ["tar", "-C", volume, *shlex.split(flags[1]), archive], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, "tar says that something was wrong"
    assert (volume / "fine").read_bytes() == b"x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "volume"]
    assert not Path("/tmp/concilia-test-escaped").exists()


def test_a_restore_takes_nothing_that_its_list_does_not_vouch_for() -> None:
    script = (ROOT / "deploy/restore").read_text()
    assert script.index("sha256sum --check") < script.index("tar") < script.index("pg_restore")
    assert "--network none --read-only" in script


# ------------------------------------------------------------------------------------------------- tables of pictures


def folder_of(path: Path, names: dict[str, str]) -> Path:
    """A data folder of two lesions a class; `names` replaces ids of images in the table alone."""
    (path / "HAM10000_images_part_1").mkdir(parents=True)
    with (path / "HAM10000_metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(dataset.COLUMNS)
        for number in range(4 * len(CLASSES)):
            image = f"I{number}"
            writer.writerow([f"L{number}", names.get(image, image), CLASSES[number % len(CLASSES)]])
            Image.new("RGB", (8, 8)).save(path / "HAM10000_images_part_1" / f"{image}.jpg")
    return path


@pytest.mark.parametrize("name", [name for name in TRICKS if name.strip() and "\0" not in name])
def test_a_tables_names_are_looked_up_and_never_opened(name: str, tmp_path: Path) -> None:
    outside = tmp_path / "escape.jpg"
    Image.new("RGB", (8, 8)).save(outside)
    folder = folder_of(tmp_path / "data", {"I0": name})
    found = dataset.read(folder)
    assert [picture.path for picture in found.pictures].count(None) == 1
    assert all(picture.path is None or folder in picture.path.parents for picture in found.pictures)


def test_what_is_no_picture_is_not_read_for_being_named_so(tmp_path: Path) -> None:
    """Links to folders are not followed; a link to a file that is no picture counts as broken."""
    folder = folder_of(tmp_path / "data", {})
    secret = tmp_path / "secret"
    secret.mkdir()
    Image.new("RGB", (8, 8)).save(secret / "I99.jpg")
    (folder / "linked").symlink_to(secret)
    (folder / "loop").symlink_to(folder)
    first = folder / "HAM10000_images_part_1" / "I0.jpg"
    first.unlink()
    first.symlink_to("/etc/passwd")
    found = dataset.read(folder)
    assert not any(picture.path and "linked" in picture.path.parts for picture in found.pictures)
    data = LocalData(dataset.choose(found, SiteChoice.parse("all"), 0), "here", tmp_path / "scratch", 1, 0.5)
    data.at(8, lambda: None)
    assert data.skipped_images == 1
