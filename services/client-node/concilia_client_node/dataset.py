"""HAM10000 in its public layout: the metadata table, the pictures it names, and one site of it.

Accepted: `HAM10000_metadata` or `HAM10000_metadata.csv`, with or without the `dataset` column (a table that has it is
preferred), and pictures in `HAM10000_images_part_1`, `..._part1`, any other folder below, or beside the table.
Nothing is decoded here. Source: Tschandl, Rosendahl, Kittler, Sci Data 5:180161 (2018).
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from concilia_kit.classification import LESIONS, Classification

from concilia_client_node import split
from concilia_client_node.errors import DatasetError, TooManyUnreadable
from concilia_client_node.split import Scheme, SiteChoice, Split

TABLES = ("HAM10000_metadata", "HAM10000_metadata.csv")
COLUMNS = ("lesion_id", "image_id", "dx")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
DEPTH = 3  # folders below the data folder that are looked into
DRAWN_MARK = "DRAWN.txt"
"""A folder with this file holds drawn pictures and no patient's."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One row: image, lesion, class (position in its classification), collection where known, file where there is one;
    of a file that is an archive, the array in it and the row in that."""

    image: str
    lesion: str
    label: int
    collection: str | None
    path: Path | None
    place: tuple[str, int] | None = None


@dataclass(frozen=True)
class Folder:
    """A data folder as read: all pictures of its table, what they are, what they are told apart as, and on which side
    each lesion is where whoever made the set has said so."""

    pictures: tuple[Picture, ...]
    source: str
    classification: Classification = LESIONS
    sides: Split | None = None

    def lesions(self) -> dict[str, int]:
        """The class of each lesion."""
        return {picture.lesion: picture.label for picture in self.pictures}

    def collections(self) -> tuple[str, ...]:
        """Names in the `dataset` column; empty where there is no such column."""
        return tuple(sorted({picture.collection for picture in self.pictures if picture.collection is not None}))


@dataclass(frozen=True)
class Site:
    """One hospital's pictures that have a file, divided by lesion; `missing` counts rows without a file."""

    name: str
    source: str
    training: tuple[Picture, ...]
    held_out: tuple[Picture, ...]
    missing: int
    classification: Classification = LESIONS

    def overlapping_lesions(self) -> int:
        """Lesions on more than one side, counted from the lists that are used."""
        sides = ({picture.lesion for picture in side} for side in (self.training, self.held_out))
        return sum(count > 1 for count in Counter(lesion for side in sides for lesion in side).values())

    def accept(self, broken: int, share: float) -> None:
        """Raise `TooManyUnreadable` where missing and `broken` pictures exceed `share` of the site's rows."""
        rows = len(self.training) + len(self.held_out) + self.missing
        if (unreadable := self.missing + broken) > share * rows:
            raise TooManyUnreadable(
                f"{unreadable} of {rows} pictures cannot be found or decoded, more than the {share:.1%} accepted; "
                "restore them, or raise CONCILIA_NODE_UNREADABLE_SHARE"
            )


def per_class(pictures: Iterable[Picture], classes: int = len(LESIONS.classes)) -> tuple[int, ...]:
    """Images of each class, in their classification's order."""
    counts = Counter(picture.label for picture in pictures)
    return tuple(counts[label] for label in range(classes))


def source_of(folder: Path, classification: Classification) -> str:
    """What a folder's pictures are, in words."""
    if not (folder / DRAWN_MARK).exists():
        return classification.name
    return "drawn lesions" if classification == LESIONS else f"drawn pictures of {classification.name}"


def read(folder: Path, classification: Classification = LESIONS) -> Folder:
    """Read a folder's table and find its pictures. Raises `DatasetError`."""
    codes = classification.codes
    table, rows = _table(folder)
    files = _scan(folder)
    pictures: list[Picture] = []
    labels: dict[str, int] = {}
    seen: set[str] = set()
    for number, row in rows:
        lesion, image, dx = (str(row[column] or "").strip() for column in COLUMNS)
        where = f"{table.name}, line {number}"
        if not image or not lesion:
            raise DatasetError(f"{where}: image_id and lesion_id must not be empty")
        if dx not in codes:
            raise DatasetError(f"{where}: dx is '{dx}', not one of {', '.join(codes)}")
        if image in seen:
            raise DatasetError(f"{where}: image {image} is listed twice")
        label = codes.index(dx)
        if labels.setdefault(lesion, label) != label:
            raise DatasetError(f"{where}: lesion {lesion} is {dx} here and {codes[labels[lesion]]} before")
        seen.add(image)
        pictures.append(Picture(image, lesion, label, (row.get("dataset") or "").strip() or None, files.get(image)))
    if not any(picture.path for picture in pictures):
        raise DatasetError(
            f"{folder} holds none of the {len(pictures)} pictures that {table.name} lists; they are looked for as "
            "IMAGE_ID.jpg in HAM10000_images_part_1, HAM10000_images_part1 or any folder below"
        )
    counts = Counter(labels.values())
    for label, code in enumerate(codes):
        if counts[label] < 2:
            raise DatasetError(
                f"{table.name} has {counts[label]} lesions of class {code}; two are needed, one to train on and one "
                "to hold out"
            )
    return Folder(tuple(pictures), source_of(folder, classification), classification)


def shared_lesions(sites: Iterable[Site]) -> int:
    """Lesions that more than one of these sites has, on whichever side."""
    owners = Counter(
        lesion for site in sites for lesion in {picture.lesion for picture in (*site.training, *site.held_out)}
    )
    return sum(count > 1 for count in owners.values())


def choose(folder: Folder, choice: SiteChoice, seed: int, before: Split | None = None) -> Site:
    """One site of a folder with its held-out split; lesions of `before` stay on their sides, and of the others those of
    the folder's `sides` on theirs.

    Raises `DatasetError` where the site is empty.
    """
    lesions = _lesions_of(folder, choice, seed)
    mine = [picture for picture in folder.pictures if picture.lesion in lesions]
    present = [picture for picture in mine if picture.path is not None]
    if not present:
        raise DatasetError(f"site {choice} has no pictures; {_sites_there_are(folder)}")
    labels = {picture.lesion: picture.label for picture in present}
    halves = split.hold_out(labels, seed, before=_said(before, folder.sides))
    return Site(
        name=str(choice),
        source=folder.source,
        training=tuple(picture for picture in present if picture.lesion in halves.training),
        held_out=tuple(picture for picture in present if picture.lesion in halves.held_out),
        missing=len(mine) - len(present),
        classification=folder.classification,
    )


def _said(before: Split | None, sides: Split | None) -> Split | None:
    if before is None or sides is None:
        return before or sides
    known = before.training | before.held_out
    return Split(before.training | (sides.training - known), before.held_out | (sides.held_out - known))


def _lesions_of(folder: Folder, choice: SiteChoice, seed: int) -> set[str]:
    labels = folder.lesions()
    if choice.scheme is Scheme.ALL:
        return set(labels)
    if choice.scheme is Scheme.COLLECTION:
        named = ((p.lesion, p.collection) for p in folder.pictures if p.collection is not None)
        return {lesion for lesion, name in split.collection_of_lesions(named).items() if name == choice.name}
    if choice.scheme is Scheme.IID:
        assigned = split.assign_iid(labels, choice.sites, seed)
    else:
        assigned = split.assign_dirichlet(labels, choice.sites, choice.alpha, seed)
    return {lesion for lesion, site in assigned.items() if site == choice.index}


def _sites_there_are(folder: Folder) -> str:
    if names := folder.collections():
        return "there are " + ", ".join(f"collection:{name}" for name in names)
    return "the table has no 'dataset' column, so choose 'all', 'iid:0/4' or 'dirichlet:0.3:0/4'"


def _table(folder: Path) -> tuple[Path, list[tuple[int, dict[str, str | None]]]]:
    """The table and its rows with line numbers; of two tables the one with a `dataset` column."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder; name the one that holds {TABLES[1]}")
    found = [folder / name for name in TABLES if (folder / name).is_file()]
    if not found:
        raise DatasetError(f"{folder} has no metadata table; looked for {' and '.join(TABLES)}")
    tables = [(path, *_rows(path)) for path in found]
    path, columns, rows = next((table for table in tables if "dataset" in table[1]), tables[0])
    for column in COLUMNS:
        if column not in columns:
            raise DatasetError(f"{path.name} has no column '{column}'; it has {', '.join(columns) or 'none'}")
    if not rows:
        raise DatasetError(f"{path.name} lists no images")
    return path, rows


def _rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str | None]]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
            return list(reader.fieldnames or ()), rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as a table: {error}") from error


def _scan(folder: Path) -> dict[str, Path]:
    """Every picture file below by its name without suffix; of two with one name the first by path."""
    files: dict[str, Path] = {}
    for directory, folders, names in os.walk(folder):
        here = Path(directory)
        folders[:] = sorted(folders) if len(here.relative_to(folder).parts) < DEPTH else []
        for name in sorted(names):
            path = here / name
            if path.suffix.lower() in SUFFIXES:
                files.setdefault(path.stem, path)
    return files
