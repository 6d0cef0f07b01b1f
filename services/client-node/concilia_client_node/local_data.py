"""The hospital's pictures as tasks need them: decoded once at the size in use, counted, and never handed on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from concilia_kit import logs
from concilia_kit.wire.encoding import ABILITIES
from concilia_kit.wire.nodes import NodeRegistration

from concilia_client_node import pictures
from concilia_client_node.dataset import Site, per_class
from concilia_client_node.pictures import DecodedSite
from concilia_client_node.trainer import Extent

_log = logs.get(__name__)
_NAMED = 5  # broken files named in the hospital's own log


class LocalData:
    """One site; the decoded pictures of the last size asked for stay."""

    def __init__(self, site: Site, name: str, directory: Path, threads: int, unreadable_share: float) -> None:
        self._site = site
        self._name = name
        self._directory = directory
        self._threads = threads
        self._share = unreadable_share
        self._lock = threading.Lock()
        self._decoded: DecodedSite | None = None
        self._broken = 0

    def at(self, size: int, check: Callable[[], None]) -> DecodedSite:
        """All pictures at one size. Raises `TooManyUnreadable`, `OSError` where there is no room for them, and
        whatever `check` raises."""
        with self._lock:
            if self._decoded is None or self._decoded.size != size:
                self._decoded = None  # the old size goes before the new one comes
                decoded = pictures.decode_site(self._site, size, self._directory, self._threads, check)
                self._broken = len(decoded.broken)
                for picture in decoded.broken[:_NAMED]:
                    _log.warning("picture cannot be decoded, skipped", image=picture.image)
                self._site.accept(self._broken, self._share)
                _log.info("pictures decoded", size=size, skipped=self.skipped_images)
                self._decoded = decoded
            return self._decoded

    @property
    def classes(self) -> int:
        """How many the pictures are told apart as."""
        return len(self._site.classification.classes)

    @property
    def skipped_images(self) -> int:
        """Pictures that are missing or, as far as is known, broken."""
        return self._site.missing + self._broken

    def extent(self, most: int | None) -> Extent:
        """What a training on at most so many images is on, if every picture can be decoded."""
        images = min(len(self._site.training), most or len(self._site.training))
        return Extent(images, len({picture.lesion for picture in self._site.training}))

    def registration(self) -> NodeRegistration:
        """What the node says of itself: counts only."""
        site = self._site
        return NodeRegistration(
            site=self._name,
            source=site.source,
            training_images=per_class(site.training, len(site.classification.classes)),
            held_out_images=per_class(site.held_out, len(site.classification.classes)),
            training_lesions=len({picture.lesion for picture in site.training}),
            held_out_lesions=len({picture.lesion for picture in site.held_out}),
            overlapping_lesions=site.overlapping_lesions(),
            skipped_images=self.skipped_images,
            encodings=ABILITIES,
            classification=site.classification,
        )
