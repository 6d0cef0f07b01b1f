"""What a data folder holds, as one line of JSON; exit 2 with one line where it cannot be used. Imports no torch.

`python -m concilia_client_node.check FOLDER [--sites collections|iid:4|dirichlet:0.3:4] [--seed 0]`; with `--directory
NODE` it says what that node's split is, by the record in its folder, and which pictures changed since.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from concilia_kit.classification import HAM10000, Declaration
from PIL import Image

from concilia_client_node import archive, dataset, layouts
from concilia_client_node.dataset import Folder, Site
from concilia_client_node.errors import DatasetError
from concilia_client_node.kept_split import KeptSplit
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


def report(path: Path, sites: str = "auto", seed: int = 0, declaration: Declaration = HAM10000) -> dict[str, Any]:
    """What `main` prints. Raises `DatasetError`.

    `overlapping_lesions` compares the training lesions of all sites with the held-out lesions of all sites;
    `shared_lesions` are those of more than one site.
    """
    folder = layouts.read(path, declaration)
    codes = folder.classification.codes
    chosen = [dataset.choose(folder, choice, seed) for choice in choices(folder, sites)]
    training = {picture.lesion for site in chosen for picture in site.training}
    held_out = {picture.lesion for site in chosen for picture in site.held_out}
    return {
        "source": folder.source,
        "seed": seed,
        "images": len(folder.pictures),
        "missing_images": sum(picture.path is None for picture in folder.pictures),
        "lesions_per_class": _named(folder.lesions().values(), codes),
        "overlapping_lesions": len(training & held_out),
        "shared_lesions": dataset.shared_lesions(chosen),
        "sites": [_site(site) for site in chosen],
    }


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="concilia_client_node.check", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sites", default="auto", help="collections, iid:4, dirichlet:0.3:4 (default: what fits)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default 0)")
    parser.add_argument("--classification", type=Path, help="file that declares classes and layout, if not HAM10000's")
    parser.add_argument("--picture", type=Path, help="also write a held-out picture into this file, a PNG")
    parser.add_argument("--directory", type=Path, help="a node's own folder: say what its split is and what changed")
    given = parser.parse_args(arguments)
    try:
        declaration = layouts.declared(given.classification)
        if given.directory is not None:
            found = KeptSplit(given.folder, given.directory, declaration).look()
        else:
            found = report(given.folder, given.sites, given.seed, declaration)
        if given.picture is not None:
            _show(layouts.read(given.folder, declaration), given.seed, given.picture)
        sys.stdout.write(json.dumps(found) + "\n")
    except (DatasetError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _show(folder: Folder, seed: int, target: Path) -> None:
    site = dataset.choose(folder, SiteChoice.parse("all"), seed)
    picture = (site.held_out or site.training)[0]
    assert picture.path is not None  # what a site has, is there
    if picture.place is None:
        with Image.open(picture.path, formats=("JPEG", "PNG")) as image:
            image.save(target, "PNG")
        return
    name, row = picture.place
    pixels = next(itertools.islice(archive.rows(picture.path, name), row, None))
    Image.fromarray(pixels).save(target, "PNG")


def _site(site: Site) -> dict[str, Any]:
    lesions = {picture.lesion: picture.label for picture in (*site.training, *site.held_out)}
    return {
        "site": site.name,
        "training_images": len(site.training),
        "held_out_images": len(site.held_out),
        "training_lesions": len({picture.lesion for picture in site.training}),
        "held_out_lesions": len({picture.lesion for picture in site.held_out}),
        "missing_images": site.missing,
        "lesions_per_class": _named(lesions.values(), site.classification.codes),
    }


def _named(labels: Iterable[int], codes: Sequence[str]) -> dict[str, int]:
    counts = Counter(labels)
    return {code: counts[label] for label, code in enumerate(codes)}


if __name__ == "__main__":
    sys.exit(main())
