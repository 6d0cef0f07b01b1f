"""The loader: every public spelling is read, every fault is told in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from concilia_client_node import check, dataset
from concilia_client_node.dataset import DRAWN_MARK
from concilia_client_node.errors import DatasetError, TooManyUnreadable
from concilia_client_node.local_data import LocalData
from concilia_client_node.pictures import decode
from concilia_client_node.split import SiteChoice

FolderMaker = Callable[..., Path]
ALL = SiteChoice.parse("all")


def nothing() -> None:
    """No reason to stop."""


@pytest.mark.parametrize("table", ["HAM10000_metadata", "HAM10000_metadata.csv"])
@pytest.mark.parametrize("with_dataset", [True, False])
@pytest.mark.parametrize(
    "parts",
    [
        ("HAM10000_images_part_1", "HAM10000_images_part_2"),
        ("HAM10000_images_part1", "HAM10000_images_part2"),
        ("images",),
        (".",),
    ],
)
def test_every_public_spelling_is_read(
    make_folder: FolderMaker, table: str, with_dataset: bool, parts: tuple[str, ...]
) -> None:
    folder = dataset.read(make_folder(tables={table: with_dataset}, parts=parts))
    assert len(folder.pictures) == 28
    assert all(picture.path is not None and picture.path.stem == picture.image for picture in folder.pictures)
    assert folder.collections() == (("east", "west") if with_dataset else ())
    assert folder.source == "HAM10000"


def test_of_two_tables_the_one_with_collections_counts(make_folder: FolderMaker) -> None:
    folder = make_folder(tables={"HAM10000_metadata": False, "HAM10000_metadata.csv": True})
    assert dataset.read(folder).collections() == ("east", "west")
    other = make_folder(tables={"HAM10000_metadata": True, "HAM10000_metadata.csv": False}, name="other")
    assert dataset.read(other).collections() == ("east", "west")


def test_png_and_upper_case_suffixes_are_found(make_folder: FolderMaker) -> None:
    assert all(picture.path for picture in dataset.read(make_folder(suffix=".PNG")).pictures)


def test_a_marked_folder_says_that_it_was_drawn(make_folder: FolderMaker) -> None:
    folder = make_folder()
    (folder / DRAWN_MARK).touch()
    assert dataset.read(folder).source == "drawn lesions"


def fault(path: Path, site: str = "all") -> str:
    with pytest.raises(DatasetError) as caught:
        dataset.choose(dataset.read(path), SiteChoice.parse(site), 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    assert "is no folder" in fault(tmp_path / "absent")
    message = fault(tmp_path)
    assert "HAM10000_metadata " in message
    assert "HAM10000_metadata.csv" in message


@pytest.mark.parametrize("column", ["lesion_id", "image_id", "dx"])
def test_a_missing_column_is_named(make_folder: FolderMaker, column: str) -> None:
    assert f"no column '{column}'" in fault(make_folder(without=(column,)))


def changed(row: int, **values: str) -> Callable[[list[dict[str, str]]], None]:
    return lambda rows: rows[row].update(values)


def test_a_foreign_label_is_named_with_its_row(make_folder: FolderMaker) -> None:
    message = fault(make_folder(change=changed(2, dx="melanoma")))
    assert "line 4" in message
    assert "'melanoma'" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed(0, image_id=" "), "must not be empty"),
        (changed(1, image_id="I00000"), "listed twice"),
        (changed(0, lesion_id="L6000"), "is vasc here and akiec before"),
    ],
)
def test_a_contradiction_is_named_with_its_row(
    make_folder: FolderMaker, change: Callable[[list[dict[str, str]]], None], words: str
) -> None:
    message = fault(make_folder(change=change))
    assert words in message
    assert "line " in message


def test_a_class_needs_two_lesions_in_the_whole_folder(make_folder: FolderMaker) -> None:
    assert "1 lesions of class akiec" in fault(make_folder(lesions=1))

    def drop_vasc(rows: list[dict[str, str]]) -> None:
        rows[:] = [row for row in rows if row["dx"] != "vasc"]

    assert "0 lesions of class vasc" in fault(make_folder(change=drop_vasc, name="second"))


def test_a_class_may_be_absent_from_one_site(make_folder: FolderMaker) -> None:
    def move(rows: list[dict[str, str]]) -> None:
        for row in rows:
            if row["dx"] == "vasc":
                row["dataset"] = "west"

    site = dataset.choose(dataset.read(make_folder(change=move)), SiteChoice.parse("collection:east"), 0)
    assert dataset.per_class(site.training)[-1] == dataset.per_class(site.held_out)[-1] == 0
    assert site.overlapping_lesions() == 0


def test_no_pictures_and_no_rows(make_folder: FolderMaker) -> None:
    assert "none of the 28 pictures" in fault(make_folder(pictures=False))
    empty = make_folder(name="empty")
    (empty / "HAM10000_metadata.csv").write_text("lesion_id,image_id,dx\n")
    assert "lists no images" in fault(empty)
    (empty / "HAM10000_metadata.csv").write_bytes(b"lesion_id,image_id,dx\n\xff\xfe,1,nv\n")
    assert "cannot be read as a table" in fault(empty)
    (empty / "HAM10000_metadata.csv").write_text("lesion_id,image_id,dx\nonly_one_field\n")
    assert "line 2" in fault(empty)


def test_an_empty_site_lists_the_sites_there_are(make_folder: FolderMaker) -> None:
    folder = make_folder()
    message = fault(folder, "collection:north")
    assert "collection:east, collection:west" in message
    plain = make_folder(tables={"HAM10000_metadata": False}, name="plain")
    assert "no 'dataset' column" in fault(plain, "collection:east")
    assert "has no pictures" in fault(folder, "iid:40/41")


def test_overlap_is_counted_from_the_lists(make_folder: FolderMaker) -> None:
    site = dataset.choose(dataset.read(make_folder()), ALL, 0)
    leaking = dataset.Site(site.name, site.source, site.training, (*site.held_out, site.training[0]), 0)
    assert (site.overlapping_lesions(), leaking.overlapping_lesions()) == (0, 1)


def local(folder: Path, share: float, scratch: Path) -> LocalData:
    return LocalData(dataset.choose(dataset.read(folder), ALL, 0), "here", scratch, 2, share)


def test_unreadable_pictures_below_the_share_are_skipped_and_counted(make_folder: FolderMaker, tmp_path: Path) -> None:
    folder = make_folder(lesions=10)
    part = folder / "HAM10000_images_part_1"
    files = sorted(part.iterdir())
    files[0].write_bytes(b"no picture")
    files[1].write_bytes(files[1].read_bytes()[:200])
    files[2].unlink()
    data = local(folder, 0.05, tmp_path / "scratch")
    assert data.skipped_images == 1
    decoded = data.at(8, nothing)
    assert data.skipped_images == data.registration().skipped_images == 3
    assert len(decoded.training) + len(decoded.held_out) == 67
    assert decoded.training.images.shape[1:] == (3, 8, 8)
    assert data.at(8, nothing) is decoded
    assert data.at(9, nothing).size == 9


def test_unreadable_pictures_above_the_share_refuse_in_one_line(make_folder: FolderMaker, tmp_path: Path) -> None:
    folder = make_folder(lesions=10)
    for path in sorted((folder / "HAM10000_images_part_1").iterdir())[:4]:
        path.write_bytes(b"")
    with pytest.raises(TooManyUnreadable) as caught:
        local(folder, 0.05, tmp_path / "scratch").at(8, nothing)
    assert str(caught.value).startswith("4 of 70 pictures")
    assert "I0" not in str(caught.value)


def test_decoded_pictures_belong_to_their_labels(make_folder: FolderMaker, tmp_path: Path) -> None:
    folder = make_folder(suffix=".png")
    (folder / "HAM10000_images_part_1" / "I00000.png").write_bytes(b"")
    decoded = local(folder, 0.1, tmp_path / "scratch").at(16, nothing)
    pictures = {p.image: p for p in dataset.read(folder).pictures}
    for side in (decoded.training, decoded.held_out):
        for position, lesion in enumerate(side.lesions):
            own = next(p for p in pictures.values() if p.lesion == lesion)
            assert own.path is not None
            assert (side.images[position].numpy() == decode(own.path, 16)).all()
            assert own.label == side.labels[position]


def run_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from concilia_client_node import check, drawn; status = check.main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_check_prints_one_line_of_json_without_torch(drawn_folder: Path, tmp_path: Path) -> None:
    done = run_check(str(drawn_folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert found["source"] == "drawn lesions"
    assert found["overlapping_lesions"] == 0
    assert len(found["sites"]) == 4
    assert sum(s["training_images"] + s["held_out_images"] for s in found["sites"]) == found["images"]
    assert all(count >= 2 for count in found["lesions_per_class"].values())
    done = run_check(str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("sites", ["iid:3", "dirichlet:0.5:3", "auto"])
def test_check_divides_a_folder_without_collections(make_folder: FolderMaker, sites: str) -> None:
    folder = make_folder(lesions=12, views=2, tables={"HAM10000_metadata": False})
    found = check.report(folder, sites)
    assert len(found["sites"]) == (4 if sites == "auto" else 3)
    assert sum(s["training_lesions"] + s["held_out_lesions"] for s in found["sites"]) == 84
    assert found["overlapping_lesions"] == 0


@pytest.mark.parametrize("sites", ["collections", "iid:0", "dirichlet:.:2", "half"])
def test_check_refuses_divisions_that_do_not_exist(make_folder: FolderMaker, sites: str) -> None:
    with pytest.raises(DatasetError):
        check.report(make_folder(tables={"HAM10000_metadata": False}), sites)
