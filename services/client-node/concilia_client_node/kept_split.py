"""A node's split over its starts: made once, kept in its folder, and compared with whenever it starts again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concilia_kit import logs
from concilia_kit.classification import HAM10000, Declaration

from concilia_client_node import dataset, flushing, layouts, manifest
from concilia_client_node.dataset import Folder, Site
from concilia_client_node.errors import DatasetError, SplitMoved
from concilia_client_node.fingerprints import Fingerprints
from concilia_client_node.locks import FileLock
from concilia_client_node.manifest import Changes, Manifest, Side
from concilia_client_node.split import SiteChoice

_FILES = "files.json"
_LOCK_SECONDS = 0.1

_log = logs.get(__name__)


@dataclass(frozen=True)
class Found:
    """A site as it is divided now, its manifest, the one that was kept, and what changed since."""

    site: Site
    now: Manifest
    before: Manifest | None
    changes: Changes


class KeptSplit:
    """The split of the site of a data folder; what is known of it lies in a node's `directory`."""

    def __init__(self, data: Path, directory: Path, declaration: Declaration = HAM10000) -> None:
        self._data, self._directory, self._declaration = data, directory, declaration

    def settle(self, choice: SiteChoice, seed: int, unreadable_share: float, *, anew: bool = False) -> Site:
        """The site to work with; what is new is written down. `anew`: divide as if for the first time.

        Raises `SplitMoved` where lesions would change sides and `anew` is not said, `DatasetError` and `OSError`.
        """
        with self._alone():
            files = self._files()
            found = self._find(self._read(), choice, seed, unreadable_share, files, anew=anew)
            files.keep()
            if found.changes.are_refused and not anew:
                raise SplitMoved(sentence(found.changes))
            if found.before is None or found.now != found.before:
                flushing.write_whole(self._directory / manifest.NAME, found.now.content())
        _tell(found)
        return found.site

    def look(self) -> dict[str, Any]:
        """What is kept, and what a start with the same site and seed would find; changes nothing.

        Raises `DatasetError`, also where nothing is kept, and `OSError`.
        """
        if (kept := manifest.read(self._directory)) is None:
            raise DatasetError(f"{self._directory} holds no {manifest.NAME}: the node has not started with it yet")
        choice = SiteChoice.parse(kept.site)
        found = self._find(self._read(), choice, kept.seed, 1.0, self._files(), anew=False)
        return {
            "sha256": kept.digest(),
            "sha256_now": found.now.digest(),
            "site": kept.site,
            "seed": kept.seed,
            "training_images": kept.count(Side.TRAINING),
            "held_out_images": kept.count(Side.HELD_OUT),
            "equal_pictures_on_both_sides": list(found.now.twins()),
            "refused": found.changes.are_refused,
            "changes": {name: list(getattr(found.changes, name)) for name in found.changes.counts()},
        }

    def _find(
        self, folder: Folder, choice: SiteChoice, seed: int, share: float, files: Fingerprints, *, anew: bool
    ) -> Found:
        before = self._before(anew)
        held = None if anew or before is None or before.seed != seed else before
        site = dataset.choose(folder, choice, seed)
        site.accept(0, share)  # before everything is read
        if held is not None:
            sides = manifest.remembered(held, (*site.training, *site.held_out), files)
            site = dataset.choose(folder, choice, seed, sides)
        now = manifest.of_site(site, seed, self._declaration.classification.codes, files, held)
        changes = Changes() if before is None else manifest.compare(before, now, folder)
        return Found(site, now, before, changes)

    def _read(self) -> Folder:
        return layouts.read(self._data, self._declaration)

    def _before(self, anew: bool) -> Manifest | None:
        try:
            return manifest.read(self._directory)
        except DatasetError:
            if not anew:
                raise
            return None

    def _files(self) -> Fingerprints:
        return Fingerprints(self._directory / _FILES, self._data)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process of the hospital compares and writes."""
        lock = FileLock(self._directory / "split.lock")
        while not lock.take():
            time.sleep(_LOCK_SECONDS)
        try:
            yield
        finally:
            lock.release()


def sentence(changes: Changes) -> str:
    """Why a start is refused, in one line that says what to do and names no picture."""
    parts = []
    if changes.to_training:
        parts.append(f"{len(changes.to_training)} pictures that were held out would be trained on")
    if changes.to_held_out:
        parts.append(f"{len(changes.to_held_out)} pictures that were trained on would be held out")
    if changes.elsewhere:
        parts.append(f"{len(changes.elsewhere)} pictures would belong to other sites of the folder")
    undo = "put the data back as they were"
    if changes.seed is not None:
        undo = f"set CONCILIA_NODE_SPLIT_SEED back to {changes.seed[0]}"
    return (
        f"{', '.join(parts)}, and models would be judged by what they know: {undo} (concilia_client_node.check "
        "--directory names the pictures), or set CONCILIA_NODE_SPLIT_ANEW=1 for one start to divide anew"
    )


def _tell(found: Found) -> None:
    changes, counts = found.changes, found.changes.counts()
    if found.before is not None and found.now != found.before:
        tell = _log.info if counts.keys() <= {"new"} and not (changes.seed or changes.site) else _log.warning
        other = {name: f"{was} is now {now}" for name, (was, now) in _settings(changes)}
        tell("the split's pictures changed", **counts, **other, earlier=found.before.digest())
    if twins := found.now.twins():
        _log.warning("held-out pictures are byte for byte among those trained on too", pictures=len(twins))
    _log.info(
        "split",
        sha256=found.now.digest(),
        seed=found.now.seed,
        training=found.now.count(Side.TRAINING),
        held_out=found.now.count(Side.HELD_OUT),
    )


def _settings(changes: Changes) -> Iterator[tuple[str, tuple[object, object]]]:
    for name, pair in (("split_seed", changes.seed), ("split_site", changes.site)):
        if pair is not None:
            yield name, pair
