"""`python -m concilia_client_node.claim`: a node that takes a site and a key which no other replica has.

For the demo profile, where `docker compose up --scale client-node=N` starts N equal replicas over one shared volume.
Each takes an exclusive lock on the lowest free `slot-<i>/lock` of that volume and keeps it until it dies (`locks` says
why `docker kill` frees it at once). A slot has a key of its own, made once, a folder for work and a site of the data,
so a replica that comes back to a slot goes on as the hospital it was: an update that was made is sent again, not
made again. A replica that finds every slot taken stands by, healthy, and tries again each second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concilia_kit import keystore, logs, web
from concilia_kit.classification import HAM10000, Declaration
from concilia_kit.settings import read
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from concilia_client_node import health, layouts
from concilia_client_node.__main__ import begin, complaints, work
from concilia_client_node.errors import DatasetError
from concilia_client_node.locks import FileLock
from concilia_client_node.settings import NodeSettings
from concilia_client_node.split import SiteChoice

COLLECTIONS = "collections"
TRY_SECONDS = 1.0

_log = logs.get(__name__)


class ClaimSettings(BaseSettings):
    """Where the slots are and which site belongs to which; the rest of the node's settings are `CONCILIA_NODE_*`."""

    model_config = SettingsConfigDict(env_prefix="CONCILIA_CLAIM_", extra="ignore", frozen=True)

    directory: Path = Field(description="folder that all replicas share; holds a folder a slot")
    slots: int = Field(default=8, ge=1, le=1024, description="most sites; replicas beyond them stand by")
    sites: str = Field(
        default=COLLECTIONS,
        description="'collections': slot i has the i-th collection of the data folder by name; else a site with "
        "{slot} and {slots} in it, as in iid:{slot}/{slots} or dirichlet:0.5:{slot}/{slots}",
    )

    @field_validator("sites")
    @classmethod
    def _sites_differ(cls, text: str) -> str:
        if text != COLLECTIONS:
            if "{slot}" not in text:
                raise ValueError("write 'collections', or a site with {slot} in it: iid:{slot}/{slots}")
            SiteChoice.parse(_filled(text, 0, 1024))
        return text


@dataclass(frozen=True)
class Site:
    """What a slot trains on: the node's setting `site`, and the name shown to others."""

    choice: str
    name: str


@dataclass(frozen=True)
class Slot:
    """A slot that is this process's own for as long as it lives."""

    number: int
    directory: Path
    lock: FileLock

    def node_settings(self, site: Site) -> dict[str, Any]:
        """The node's settings that come from the slot; makes its key the first time.

        Raises `KeystoreError`, `OSError`.
        """
        key, password = self.directory / "keystore.json", self.directory / "password"
        if password.exists() and not key.exists():
            # A crash came between the two, which are written in this order: this password opens nothing.
            password.replace(self.directory / "password.unused")
        keystore.ensure(key, password)
        return {
            "keystore": key,
            "password_file": password,
            "site": site.choice,
            "site_name": site.name,
            "directory": self.directory / "work",
        }


def sites_of(settings: ClaimSettings, data: Path, declaration: Declaration = HAM10000) -> list[Site]:
    """The site of each slot there is, in order. Raises `DatasetError`."""
    if settings.sites == COLLECTIONS:
        names = layouts.read(data, declaration).collections()
        if not names:
            raise DatasetError(
                "the table has no 'dataset' column, so there are no collections; "
                "set CONCILIA_CLAIM_SITES to iid:{slot}/{slots}"
            )
        return [Site(f"collection:{name}", name[:64]) for name in names[: settings.slots]]
    numbers = range(settings.slots)
    return [Site(_filled(settings.sites, number, settings.slots), f"site-{number}") for number in numbers]


def take(directory: Path, slots: int) -> Slot | None:
    """The lowest free slot, or None where each has a living owner. Raises `OSError`."""
    for number in range(slots):
        folder = directory / f"slot-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        if lock.take():
            return Slot(number, folder, lock)
    return None


def wait_for(directory: Path, slots: int, pause: Callable[[], None]) -> Slot:
    """The lowest free slot, as soon as there is one. Raises `OSError`."""
    said = False
    while (slot := take(directory, slots)) is None:
        if not said:
            _log.info("every slot is taken, standing by", slots=slots)
            said = True
        pause()
    return slot


def main() -> None:
    """Take a slot and be its node. Ends with status 2 and one line where settings, folder, data or port do not do."""
    claim = read(ClaimSettings)
    # Any slot's values do for now: what else is wrong with the node's settings is told before anything is taken.
    folder = claim.directory
    settings = read(NodeSettings, keystore=folder, password_file=folder, directory=folder, site="all", site_name="")
    begin(settings)
    with complaints(settings):
        sites = sites_of(claim, settings.data, layouts.declared(settings.classification))
        listening = web.bind(settings)
        # A replica that stands by does all that it is to do: it is ready as well as alive.
        standing_by = health.Served(web.application("Concilia standby", ready={"standby": lambda: None}), listening)
        slot = wait_for(folder, len(sites), lambda: time.sleep(TRY_SECONDS))
        own = slot.node_settings(sites[slot.number])
        standing_by.stop()
    _log.info("slot taken", slot=slot.number, site=own["site_name"])
    work(read(NodeSettings, **own), listening)


def _filled(template: str, slot: int, slots: int) -> str:
    return template.replace("{slot}", str(slot)).replace("{slots}", str(slots))


if __name__ == "__main__":
    main()
