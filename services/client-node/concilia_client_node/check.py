"""What a data folder holds, as one line of JSON; exit 2 with one line where it cannot be used. Imports no torch.

`python -m concilia_client_node.check FOLDER [--sites collections|iid:4|dirichlet:0.3:4] [--seed 0]`
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from concilia_kit.lesions import CLASSES

from concilia_client_node import dataset
from concilia_client_node.dataset import Folder, Site
from concilia_client_node.errors import DatasetError
from concilia_client_node.split import SiteChoice


def choices(folder: Folder, sites: str) -> list[SiteChoice]:
    """All sites of a division: `collections`, `iid:N` or `dirichlet:ALPHA:N`; `auto` takes collections where there are
    any, else four IID sites. Raises `DatasetError`."""
    if sites in ("auto", "collections") and (names := folder.collections()):
        return [SiteChoice.parse(f"collection:{name}") for name in names]
    if sites == "collections":
        raise DatasetError("the table has no 'dataset' column, so there are no collections; choose 'iid:4'")
    division = "iid:4" if sites == "auto" else sites
    if (match := re.fullmatch(r"(iid|dirichlet:[\d.]+):([1-9]\d{0,5})", division)) is None:
        raise DatasetError(f"'{sites}' divides nothing; write 'collections', 'iid:4' or 'dirichlet:0.3:4'")
    try:
        return [SiteChoice.parse(f"{match[1]}:{index}/{match[2]}") for index in range(int(match[2]))]
    except ValueError as error:
        raise DatasetError(str(error)) from error


def report(path: Path, sites: str = "auto", seed: int = 0) -> dict[str, Any]:
    """What `main` prints. Raises `DatasetError`.

    `overlapping_lesions` compares the training lesions of all sites with the held-out lesions of all sites.
    """
    folder = dataset.read(path)
    chosen = [dataset.choose(folder, choice, seed) for choice in choices(folder, sites)]
    training = {picture.lesion for site in chosen for picture in site.training}
    held_out = {picture.lesion for site in chosen for picture in site.held_out}
    return {
        "source": folder.source,
        "seed": seed,
        "images": len(folder.pictures),
        "missing_images": sum(picture.path is None for picture in folder.pictures),
        "lesions_per_class": _named(folder.lesions().values()),
        "overlapping_lesions": len(training & held_out),
        "sites": [_site(site) for site in chosen],
    }


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="concilia_client_node.check", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sites", default="auto", help="collections, iid:4, dirichlet:0.3:4 (default: what fits)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default 0)")
    given = parser.parse_args(arguments)
    try:
        sys.stdout.write(json.dumps(report(given.folder, given.sites, given.seed)) + "\n")
    except DatasetError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _site(site: Site) -> dict[str, Any]:
    lesions = {picture.lesion: picture.label for picture in (*site.training, *site.held_out)}
    return {
        "site": site.name,
        "training_images": len(site.training),
        "held_out_images": len(site.held_out),
        "training_lesions": len({picture.lesion for picture in site.training}),
        "held_out_lesions": len({picture.lesion for picture in site.held_out}),
        "missing_images": site.missing,
        "lesions_per_class": _named(lesions.values()),
    }


def _named(labels: Any) -> dict[str, int]:
    counts = Counter(labels)
    return {code: counts[label] for label, code in enumerate(CLASSES)}


if __name__ == "__main__":
    sys.exit(main())
