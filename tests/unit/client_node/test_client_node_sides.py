"""No lesion on two sides nor at two sites, in folders like HAM10000's: by every scheme, as they grow, and with a third
side."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from concilia_client_node import check, dataset, split
from concilia_client_node.dataset import Folder, Picture, Site
from concilia_client_node.errors import DatasetError
from concilia_client_node.split import SiteChoice, Split
from hypothesis import given
from hypothesis import strategies as st

HAM10000 = Path(__file__).parents[4] / "shared" / "data" / "ham10000"
COLLECTIONS = ("dias", "modern", "molemax", "rosendahl")
seeds = st.integers(0, 2**32 - 1)


@st.composite
def folders(draw: st.DrawFn) -> Folder:
    """Lesions of one to six pictures, classes as unequal as HAM10000's, some lesions in two collections, of some
    pictures no file."""
    source = np.random.default_rng(draw(seeds))
    classes, lesions = draw(st.integers(2, 9)), draw(st.integers(4, 120))
    shares = source.dirichlet(np.full(classes, 0.5))
    pictures = []
    for lesion in range(lesions):
        label = lesion % classes if lesion < 2 * classes else int(source.choice(classes, p=shares))
        home = COLLECTIONS[int(source.integers(len(COLLECTIONS)))]
        for view in range(min(6, int(source.geometric(0.75)))):
            strays = source.random() < 0.05
            there = source.random() < 0.97
            pictures.append(
                Picture(
                    image=f"I{lesion:04d}_{view}",
                    lesion=f"HAM_{lesion:07d}",
                    label=label,
                    collection=COLLECTIONS[int(source.integers(len(COLLECTIONS)))] if strays else home,
                    path=Path(f"I{lesion:04d}_{view}.jpg") if there else None,
                )
            )
    return Folder(tuple(pictures), "drawn lesions")


def sites_of(folder: Folder, division: str, seed: int) -> list[Site]:
    choices = [SiteChoice.parse("all")] if division == "all" else check.choices(folder, division)
    found = []
    for choice in choices:
        try:
            found.append(dataset.choose(folder, choice, seed))
        except DatasetError:  # nothing came to this site
            continue
    return found


def nothing_is_shared(sites: list[Site], folder: Folder) -> None:
    """Counted anew, from the pictures of each list."""
    owners: dict[str, set[tuple[int, str]]] = {}
    images: Counter[str] = Counter()
    for number, site in enumerate(sites):
        for side in ("training", "held_out"):
            for picture in getattr(site, side):
                owners.setdefault(picture.lesion, set()).add((number, side))
                images[picture.image] += 1
    assert {lesion for lesion, places in owners.items() if len(places) > 1} == set()
    assert images == Counter(picture.image for picture in folder.pictures if picture.path is not None)


@pytest.mark.parametrize("division", ["all", "collections", "iid:3", "dirichlet:0.3:3"])
@given(folder=folders(), seed=seeds)
def test_no_lesion_is_on_two_sides_or_at_two_sites(division: str, folder: Folder, seed: int) -> None:
    sites = sites_of(folder, division, seed)
    nothing_is_shared(sites, folder)
    assert dataset.shared_lesions(sites) == sum(site.overlapping_lesions() for site in sites) == 0


@pytest.mark.skipif(not HAM10000.is_dir(), reason="HAM10000 does not lie beside the checkout")
@pytest.mark.parametrize("division", ["all", "collections", "iid:4", "dirichlet:0.3:4"])
def test_no_lesion_of_ham10000_is_on_two_sides_or_at_two_sites(division: str) -> None:
    folder = dataset.read(HAM10000)
    collections: dict[str, set[str | None]] = {}
    for picture in folder.pictures:
        collections.setdefault(picture.lesion, set()).add(picture.collection)
    assert sum(len(names) > 1 for names in collections.values()) == 9
    nothing_is_shared(sites_of(folder, division, 0), folder)


def test_a_lesion_that_two_sites_have_is_counted() -> None:
    one, other = (Picture(image, lesion, 0, None, Path(image)) for image, lesion in (("a", "L1"), ("b", "L2")))
    first, second = Site("1", "", (one,), (), 0), Site("2", "", (), (one, other), 0)
    assert dataset.shared_lesions([first, second]) == 1
    assert dataset.shared_lesions([first, Site("2", "", (other,), (other,), 0)]) == 0


labels = st.dictionaries(st.text("HAM_0123", min_size=1, max_size=6), st.integers(0, 8), min_size=1, max_size=60)


@given(labels, labels, st.sets(st.text("HAM_0123", min_size=1, max_size=6)), seeds)
def test_lesions_stay_on_their_sides_when_others_come_and_go(
    first: dict[str, int], later: dict[str, int], leaving: set[str], seed: int
) -> None:
    before = split.hold_out(first, seed)
    grown = {lesion: label for lesion, label in (later | first).items() if lesion not in leaving}
    now = split.hold_out(grown, seed, before=before)
    assert now.training | now.held_out == grown.keys()
    assert not now.training & now.held_out
    assert not now.training & before.held_out
    assert not now.held_out & before.training
    if not leaving:
        for label, count in Counter(grown.values()).items():
            held_out = sum(grown[lesion] == label for lesion in now.held_out)
            earlier = sum(first.get(lesion) == label for lesion in before.held_out)
            assert held_out == max(earlier, min(count - 1, max(1, round(0.2 * count))))


def test_without_that_memory_a_growing_folder_moves_lesions() -> None:
    """Why it is needed: a lesion that is earlier in the order takes the place of one that was held out."""
    small = {f"L{number}": 0 for number in range(40)}
    large = {f"L{number}": 0 for number in range(60)}
    before = split.hold_out(small, 1)
    assert before.held_out & split.hold_out(large, 1).training
    assert not before.held_out & split.hold_out(large, 1, before=before).training
    assert len(split.hold_out(large, 1, before=before).held_out) == 12


@given(labels, seeds)
def test_nothing_remembered_is_as_if_nothing_were_said(found: dict[str, int], seed: int) -> None:
    assert split.hold_out(found, seed, before=Split(frozenset(), frozenset())) == split.hold_out(found, seed)
