"""The hospital's own record of its split: each picture's side, lesion and class, and the SHA-256 of its file.

It lies in the node's folder as `split.json` and never leaves the hospital. Its own SHA-256 is what a hospital can write
into a study's protocol: as long as it is the same, the same pictures were held out. Lesions that were recorded stay on
their sides when others come, and lesions that went away are remembered, for they may come back. What cannot stay so,
because the seed is another or a picture belongs to another lesion now, is refused: models would be judged by what they
know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import rfc8785
from concilia_kit.digests import Digest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from concilia_client_node.dataset import Folder, Picture, Site
from concilia_client_node.errors import DatasetError
from concilia_client_node.fingerprints import Fingerprints
from concilia_client_node.split import Split

NAME = "split.json"


class Side(StrEnum):
    """What a lesion is for."""

    TRAINING = "training"
    HELD_OUT = "held_out"


class Entry(BaseModel):
    """One picture; `digest` is of its file's bytes, None where they cannot be read; of a picture in an archive it is of
    the archive's digest and the picture's place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    lesion: str
    label: str
    side: Side
    digest: Digest | None


class Manifest(BaseModel):
    """A split: pictures by name, and the sides of lesions that were there once. `site` is as the setting spells it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    site: str
    seed: int = Field(ge=0, lt=2**32)
    pictures: tuple[Entry, ...]
    gone: dict[str, Side]

    def content(self) -> bytes:
        """Canonical JSON (RFC 8785), as it lies on disk."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    def digest(self) -> str:
        """SHA-256 of `content`, as `sha256sum` says it of the file."""
        return hashlib.sha256(self.content()).hexdigest()

    def sides(self) -> Split:
        """Of every lesion that is or was there."""
        every = self.gone | {entry.lesion: entry.side for entry in self.pictures}
        held_out = frozenset(lesion for lesion, side in every.items() if side is Side.HELD_OUT)
        return Split(frozenset(every) - held_out, held_out)

    def count(self, side: Side) -> int:
        """Pictures of a side."""
        return sum(entry.side is side for entry in self.pictures)

    def twins(self) -> tuple[str, ...]:
        """Held-out pictures whose bytes are a training picture's too, under another lesion."""
        trained = {entry.digest for entry in self.pictures if entry.side is Side.TRAINING}
        return tuple(
            entry.image
            for entry in self.pictures
            if entry.side is Side.HELD_OUT and entry.digest is not None and entry.digest in trained
        )


@dataclass(frozen=True)
class Changes:
    """What is not as it was, as names of pictures; what is refused first.

    `to_training` and `to_held_out`: on the other side now, by lesion or by bytes. `elsewhere`: in the folder still, but
    of another site, though site and seed are the same.
    """

    to_training: tuple[str, ...] = ()
    to_held_out: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    other_bytes: tuple[str, ...] = ()
    other_class: tuple[str, ...] = ()
    seed: tuple[int, int] | None = None
    site: tuple[str, str] | None = None

    @property
    def are_refused(self) -> bool:
        """Whether a lesion that some model was trained on may be one to judge it by, or the reverse."""
        return bool(self.to_training or self.to_held_out or self.elsewhere)

    def counts(self) -> dict[str, int]:
        """How many of each, where there are any; names no picture."""
        lists = {name: value for name, value in vars(self).items() if name not in {"seed", "site"}}
        return {name: len(value) for name, value in lists.items() if value}


def of_site(site: Site, seed: int, classes: Sequence[str], files: Fingerprints, before: Manifest | None) -> Manifest:
    """The manifest of a site. `before`: what is remembered from."""
    sides = ((Side.TRAINING, site.training), (Side.HELD_OUT, site.held_out))
    entries = [_entry(picture, side, classes, files) for side, pictures in sides for picture in pictures]
    there = {entry.lesion for entry in entries}
    known = before.sides() if before is not None else Split(frozenset(), frozenset())
    gone = dict.fromkeys(known.training - there, Side.TRAINING) | dict.fromkeys(known.held_out - there, Side.HELD_OUT)
    return Manifest(site=site.name, seed=seed, pictures=tuple(sorted(entries, key=lambda e: e.image)), gone=gone)


def remembered(before: Manifest, pictures: Iterable[Picture], files: Fingerprints) -> Split:
    """The sides of every lesion that is or was there, and of those of `pictures` that have another name now, but whose
    pictures' bytes were all on one side."""
    known = before.sides()
    every, by_bytes = known.training | known.held_out, _by_bytes(before)
    seen: dict[str, set[Side]] = {}
    for picture in pictures:
        if picture.lesion not in every:
            digest = _digest(picture, files)
            seen.setdefault(picture.lesion, set()).update(side for side in Side if digest in by_bytes[side])
    renamed = {side: {lesion for lesion, sides in seen.items() if sides == {side}} for side in Side}
    return Split(known.training | renamed[Side.TRAINING], known.held_out | renamed[Side.HELD_OUT])


def compare(before: Manifest, now: Manifest, folder: Folder) -> Changes:
    """What changed. `folder`: where `now` is of, for what other sites have of it."""
    earlier = {entry.image: entry for entry in before.pictures}
    present = {entry.image: entry for entry in now.pictures}
    both = [(earlier[image], entry) for image, entry in present.items() if image in earlier]
    moved = _moved(before, now)
    elsewhere: Iterable[str] = ()
    if (before.site, before.seed) == (now.site, now.seed):
        lesions = {entry.lesion for entry in now.pictures}
        others = {each.lesion for each in folder.pictures if each.path is not None} - lesions
        elsewhere = (entry.image for entry in before.pictures if entry.lesion in others)
    return Changes(
        to_training=tuple(entry.image for entry in moved if entry.side is Side.TRAINING),
        to_held_out=tuple(entry.image for entry in moved if entry.side is Side.HELD_OUT),
        elsewhere=tuple(elsewhere),
        new=tuple(image for image in present if image not in earlier),
        gone=tuple(image for image in earlier if image not in present),
        other_bytes=tuple(entry.image for old, entry in both if entry.digest != old.digest),
        other_class=tuple(entry.image for old, entry in both if entry.label != old.label),
        seed=(before.seed, now.seed) if before.seed != now.seed else None,
        site=(before.site, now.site) if before.site != now.site else None,
    )


def read(directory: Path) -> Manifest | None:
    """The one that is kept; None before the first start. Raises `DatasetError` where it is damaged, and `OSError`."""
    path = directory / NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise DatasetError(
            f"{path} is no record of a split, so nobody can tell which lesions were held out: restore it from a "
            "backup, or set CONCILIA_NODE_SPLIT_ANEW=1 for one start to divide anew"
        ) from error


def _moved(before: Manifest, now: Manifest) -> list[Entry]:
    """Pictures of which the lesion or the bytes were on the other side and not on this."""
    known = before.sides()
    lesions = {Side.TRAINING: known.training, Side.HELD_OUT: known.held_out}
    digests = _by_bytes(before)
    other = {Side.TRAINING: Side.HELD_OUT, Side.HELD_OUT: Side.TRAINING}
    return [
        entry
        for entry in now.pictures
        if entry.lesion in lesions[other[entry.side]]
        or (entry.digest in digests[other[entry.side]] and entry.digest not in digests[entry.side])
    ]


def _by_bytes(manifest: Manifest) -> dict[Side, set[Digest]]:
    return {
        side: {entry.digest for entry in manifest.pictures if entry.side is side and entry.digest is not None}
        for side in Side
    }


def _entry(picture: Picture, side: Side, classes: Sequence[str], files: Fingerprints) -> Entry:
    return Entry(
        image=picture.image,
        lesion=picture.lesion,
        label=classes[picture.label],
        side=side,
        digest=_digest(picture, files),
    )


def _digest(picture: Picture, files: Fingerprints) -> Digest | None:
    digest = None if picture.path is None else files.of(picture.path)
    if digest is not None and picture.place is not None:  # pictures of one archive are none the other's twins
        digest = hashlib.sha256(f"{digest}:{picture.place[0]}:{picture.place[1]}".encode()).hexdigest()
    return digest
