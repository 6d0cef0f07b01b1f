"""A split over a node's starts: what grows is welcome, what would have a model judged by what it knows is refused."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from concilia_client_node import check, fingerprints, main, manifest
from concilia_client_node.dataset import Site
from concilia_client_node.errors import DatasetError, SplitMoved, TooManyUnreadable
from concilia_client_node.fingerprints import Fingerprints
from concilia_client_node.kept_split import KeptSplit
from concilia_client_node.manifest import Manifest, Side
from concilia_client_node.settings import NodeSettings
from concilia_client_node.split import SiteChoice
from concilia_kit import digests, keystore
from concilia_kit.lesions import CLASSES
from structlog.testing import capture_logs

FolderMaker = Callable[..., Path]
Row = dict[str, str]


class Hospital:
    """A data folder that can be changed, and the node's own folder beside it."""

    def __init__(self, data: Path, directory: Path) -> None:
        self.data, self.directory = data, directory
        self.directory.mkdir()

    def start(self, site: str = "all", seed: int = 0, *, anew: bool = False, share: float = 0.5) -> Site:
        kept = KeptSplit(self.data, self.directory)
        return kept.settle(SiteChoice.parse(site), seed, share, anew=anew)

    def kept(self) -> Manifest:
        found = manifest.read(self.directory)
        assert found is not None
        return found

    def rows(self, change: Callable[[list[Row]], object]) -> None:
        path = self.data / "HAM10000_metadata.csv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        change(rows)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def file(self, image: str) -> Path:
        return next(self.data.rglob(f"{image}.jpg"))

    def add(self, image: str, lesion: str, like: str) -> None:
        """A picture of another lesion, with bytes of its own."""

        def append(rows: list[Row]) -> None:
            rows.append(next(row for row in rows if row["image_id"] == like) | {"image_id": image, "lesion_id": lesion})

        self.rows(append)
        path = self.file(like)
        path.with_name(f"{image}.jpg").write_bytes(path.read_bytes() + image.encode())

    def one(self, side: Side, label: str = "nv") -> manifest.Entry:
        return next(entry for entry in self.kept().pictures if (entry.side, entry.label) == (side, label))


@pytest.fixture
def hospital(make_folder: FolderMaker, tmp_path: Path) -> Hospital:
    return Hospital(make_folder(lesions=10, views=2), tmp_path / "node")


@pytest.fixture
def said() -> Iterator[list[Any]]:
    with capture_logs() as found:
        yield found


def lesions_of(site: Site) -> tuple[set[str], set[str]]:
    return {picture.lesion for picture in site.training}, {picture.lesion for picture in site.held_out}


def test_the_record_says_of_every_picture_what_it_is_for(hospital: Hospital, said: list[Any]) -> None:
    site = hospital.start(seed=3)
    kept = hospital.kept()
    assert (kept.site, kept.seed, kept.gone) == ("all", 3, {})
    assert [entry.image for entry in kept.pictures] == sorted(entry.image for entry in kept.pictures)
    sides = {picture.image: "training" for picture in site.training} | {
        picture.image: "held_out" for picture in site.held_out
    }
    assert {entry.image: entry.side.value for entry in kept.pictures} == sides
    assert len(sides) == 140
    for entry in kept.pictures:
        assert entry.digest == hashlib.sha256(hospital.file(entry.image).read_bytes()).hexdigest()
        assert CLASSES[int(entry.lesion[1])] == entry.label
    content = (hospital.directory / "split.json").read_bytes()
    assert content == kept.content()
    assert json.loads(content)["pictures"][0].keys() == {"image", "lesion", "label", "side", "digest"}
    assert digests.of_json(json.loads(content)) == hashlib.sha256(content).hexdigest() == kept.digest()
    assert [entry["sha256"] for entry in said if entry["event"] == "split"] == [kept.digest()]
    assert not [name for name in ("I0", "L0", ".jpg") if name in str(said)]


def test_an_unchanged_folder_is_the_same_split_and_reads_no_picture_again(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, said: list[Any]
) -> None:
    monkeypatch.setattr(fingerprints, "SETTLED_SECONDS", -60)
    first = hospital.start()
    kept = hospital.kept()
    monkeypatch.setattr(digests, "of_file", lambda path: pytest.fail(f"{path} was read again"))
    assert hospital.start() == first
    assert hospital.kept() == kept
    assert [entry for entry in said if entry["log_level"] == "warning"] == []


def test_a_file_that_changed_is_read_again_though_its_size_and_date_are_the_same(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, said: list[Any]
) -> None:
    monkeypatch.setattr(fingerprints, "SETTLED_SECONDS", -60)
    hospital.start()
    entry = hospital.one(Side.HELD_OUT)
    path = hospital.file(entry.image)
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    hospital.start()
    assert [entry["other_bytes"] for entry in said if "other_bytes" in entry] == [1]
    assert {each.image: each.digest for each in hospital.kept().pictures}[entry.image] == digests.of_file(path)


def test_a_file_that_was_just_written_is_not_believed_by_its_date(hospital: Hospital) -> None:
    hospital.start()
    assert not (hospital.directory / "files.json").exists()


def test_what_is_remembered_of_files_may_be_lost_or_nonsense(hospital: Hospital) -> None:
    (hospital.directory / "files.json").write_text('{"a": [1]}')
    hospital.start()
    assert Fingerprints(hospital.directory / "files.json", hospital.data).of(hospital.data / "nowhere.jpg") is None


def test_a_training_set_that_grows_is_welcome_and_moves_nothing(hospital: Hospital, said: list[Any]) -> None:
    training, held_out = lesions_of(hospital.start())
    before = hospital.kept()
    like = hospital.one(Side.TRAINING).image
    for number in range(40):
        hospital.add(f"N{number:03d}", f"NEW{number:03d}", like)
    now_training, now_held_out = lesions_of(hospital.start())
    assert training < now_training
    assert held_out < now_held_out
    assert len(now_held_out) == len(held_out) + 8
    told = [entry for entry in said if entry["event"] == "the split's pictures changed"]
    assert [(entry["log_level"], entry["new"], entry["earlier"]) for entry in told] == [("info", 40, before.digest())]
    assert hospital.kept().digest() != before.digest()


def test_a_lesion_that_went_away_comes_back_to_its_side(hospital: Hospital, said: list[Any], tmp_path: Path) -> None:
    hospital.start()
    lesions = {entry.lesion for entry in hospital.kept().pictures if (entry.side, entry.label) == ("held_out", "nv")}
    files = {
        hospital.file(entry.image) for entry in hospital.kept().pictures if entry.lesion in lesions and entry.digest
    }
    for path in files:
        shutil.move(path, tmp_path / path.name)
    training, held_out = lesions_of(hospital.start())
    assert not lesions & (training | held_out)
    assert hospital.kept().gone == dict.fromkeys(lesions, Side.HELD_OUT)
    assert [(entry["log_level"], entry["gone"]) for entry in said if "gone" in entry] == [("warning", len(files))]
    like = hospital.one(Side.TRAINING).image
    for number in range(2):  # which take their places
        hospital.add(f"N{number}", f"NEW{number}", like)
    assert {"NEW0", "NEW1"} <= lesions_of(hospital.start())[1]
    for path in files:
        shutil.move(tmp_path / path.name, path)
    assert lesions <= lesions_of(hospital.start())[1]
    assert hospital.kept().gone == {}


def test_another_seed_is_refused_until_the_operator_says_so(hospital: Hospital) -> None:
    first = hospital.start()
    before = hospital.kept()
    with pytest.raises(SplitMoved) as caught:
        hospital.start(seed=1)
    message = str(caught.value)
    assert "set CONCILIA_NODE_SPLIT_SEED back to 0" in message
    assert "CONCILIA_NODE_SPLIT_ANEW=1" in message
    assert message.count("\n") == 0
    assert "I0" not in message
    assert hospital.kept() == before
    assert hospital.start() == first
    anew = hospital.start(seed=1, anew=True)
    assert lesions_of(anew) != lesions_of(first)
    assert hospital.start(seed=1) == anew


def test_a_held_out_picture_that_becomes_another_lesions_is_refused(hospital: Hospital) -> None:
    hospital.start()
    image, lesion = hospital.one(Side.HELD_OUT).image, hospital.one(Side.TRAINING).lesion

    def give(rows: list[Row]) -> None:
        for row in rows:
            if row["image_id"] == image:
                row["lesion_id"] = lesion

    hospital.rows(give)
    with pytest.raises(SplitMoved, match=r"^1 pictures that were held out would be trained on, "):
        hospital.start()
    found = KeptSplit(hospital.data, hospital.directory).look()
    assert found["refused"]
    assert found["changes"] == {"to_training": [image]}


@pytest.mark.parametrize("side", list(Side))
def test_a_picture_is_known_by_its_bytes_under_another_name(hospital: Hospital, side: Side) -> None:
    """As where lesions got new pseudonyms, or a class is where a file lies."""
    before = lesions_of(hospital.start())
    images = [entry.image for entry in hospital.kept().pictures if (entry.side, entry.label) == (side, "nv")]
    for copy, image in enumerate(images * 3):
        hospital.add(f"COPY{copy}", f"LESION{copy}", image)
        hospital.file(f"COPY{copy}").write_bytes(hospital.file(image).read_bytes())
    now = lesions_of(hospital.start())
    place = list(Side).index(side)
    assert {f"LESION{copy}" for copy in range(3 * len(images))} == now[place] - before[place]
    assert before[1 - place] == now[1 - place]


def test_a_lesion_of_pictures_from_both_sides_is_refused(hospital: Hospital) -> None:
    hospital.start()
    for side in Side:
        image = hospital.one(side).image
        hospital.add(f"COPY{side}", "BOTH", image)
        hospital.file(f"COPY{side}").write_bytes(hospital.file(image).read_bytes())
    with pytest.raises(SplitMoved, match=r"^1 pictures that were (held out would be trained on|trained on would be)"):
        hospital.start()


def test_a_folder_that_gives_a_sites_lesions_to_another_is_refused(hospital: Hospital) -> None:
    """Dealt out by position, lesions change sites when others come."""
    hospital.start("iid:0/2")
    like = hospital.one(Side.TRAINING, "akiec").image
    hospital.add("N0", "A_NEW_ONE", like)
    with pytest.raises(SplitMoved, match="would belong to other sites of the folder"):
        hospital.start("iid:0/2")
    assert hospital.start("iid:0/2", anew=True).name == "iid:0/2"


def test_another_site_is_told_and_moves_nothing(hospital: Hospital, said: list[Any]) -> None:
    before = lesions_of(hospital.start("collection:east"))
    after = lesions_of(hospital.start("all"))
    assert not before[0] & after[1]
    assert not before[1] & after[0]
    assert [entry["split_site"] for entry in said if "split_site" in entry] == ["collection:east is now all"]


def test_another_class_is_told_and_moves_nothing(hospital: Hospital, said: list[Any]) -> None:
    hospital.start()
    before = {entry.image: entry.side for entry in hospital.kept().pictures}
    lesion = hospital.one(Side.HELD_OUT).lesion

    def correct(rows: list[Row]) -> None:
        for row in rows:
            if row["lesion_id"] == lesion:
                row["dx"] = "mel"

    hospital.rows(correct)
    hospital.start()
    assert {entry.image: entry.side for entry in hospital.kept().pictures} == before
    assert [entry["other_class"] for entry in said if "other_class" in entry] == [2]


def test_equal_pictures_on_both_sides_are_told(hospital: Hospital, said: list[Any]) -> None:
    hospital.start()
    held_out, trained = (hospital.one(side).image for side in (Side.HELD_OUT, Side.TRAINING))
    shutil.rmtree(hospital.directory)
    hospital.directory.mkdir()
    hospital.file(held_out).write_bytes(hospital.file(trained).read_bytes())
    hospital.start()
    assert [entry["pictures"] for entry in said if entry["log_level"] == "warning"] == [1]
    assert hospital.kept().twins() == (held_out,)


def test_a_damaged_record_is_refused_until_the_operator_says_so(hospital: Hospital) -> None:
    first = hospital.start()
    path = hospital.directory / "split.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DatasetError, match="no record of a split"):
        hospital.start()
    assert hospital.start(anew=True) == first
    assert hospital.start() == first


def test_too_many_missing_pictures_are_refused_before_anything_is_written(hospital: Hospital) -> None:
    for path in list(hospital.data.rglob("*.jpg"))[:20]:
        path.unlink()
    with pytest.raises(TooManyUnreadable):
        hospital.start(share=0.02)
    assert manifest.read(hospital.directory) is None


def test_check_shows_the_record_and_names_what_changed(
    hospital: Hospital, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hospital.start("collection:east", 5)
    gone = hospital.one(Side.TRAINING).image
    hospital.file(gone).unlink()
    before = sorted((path.name, path.read_bytes()) for path in hospital.directory.iterdir())
    capsys.readouterr()
    assert check.main([str(hospital.data), "--directory", str(hospital.directory)]) == 0
    found = json.loads(capsys.readouterr().out)
    kept = hospital.kept()
    assert (found["sha256"], found["site"], found["seed"]) == (kept.digest(), "collection:east", 5)
    assert found["training_images"] + found["held_out_images"] == len(kept.pictures)
    assert found["sha256_now"] != found["sha256"]
    assert (found["refused"], found["changes"]) == (False, {"gone": [gone]})
    assert sorted((path.name, path.read_bytes()) for path in hospital.directory.iterdir()) == before
    assert check.main([str(hospital.data), "--directory", str(tmp_path)]) == 2
    assert "has not started" in capsys.readouterr().err


def test_a_name_is_erased_from_the_record_by_hand(hospital: Hospital) -> None:
    hospital.start()
    entry = hospital.one(Side.TRAINING)
    for each in hospital.kept().pictures:
        if each.lesion == entry.lesion:
            hospital.file(each.image).unlink()
    before = hospital.start()
    path = hospital.directory / "split.json"
    document = json.loads(path.read_bytes())
    assert document["gone"].pop(entry.lesion) == "training"
    path.write_text(json.dumps(document, indent=2))
    assert hospital.start() == before
    assert entry.lesion not in path.read_text()


def test_a_node_starts_with_its_kept_split_and_ends_where_it_moved(hospital: Hospital, tmp_path: Path) -> None:
    keystore.create(tmp_path / "key.json", tmp_path / "password")

    def build(**changed: Any) -> None:
        urls = {f"{name}_url": "http://127.0.0.1:9" for name in ("auth", "model", "chain", "aggregator")}
        files = {"keystore": tmp_path / "key.json", "password_file": tmp_path / "password", "data": hospital.data}
        main.build(NodeSettings(port=1, **urls, **files, directory=hospital.directory, **changed))

    build()
    first = hospital.kept()
    with pytest.raises(SplitMoved):
        build(split_seed=1)
    assert hospital.kept() == first
    build(split_seed=1, split_anew=True)
    assert hospital.kept().seed == 1
