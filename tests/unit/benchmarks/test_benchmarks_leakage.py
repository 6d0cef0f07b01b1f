"""What a split by picture would give away, and that the benchmarks' hospitals give nothing away."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from concilia_client_node import dataset, drawn, split
from concilia_client_node.dataset import Folder, Picture
from concilia_client_node.errors import DatasetError
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import federated_sites, leakage

HAM10000 = Path(__file__).parents[4] / "shared" / "data" / "ham10000"
real = pytest.mark.skipif(not HAM10000.is_dir(), reason="HAM10000 does not lie beside the checkout")


def drawn_folder(images: int, seed: int) -> Folder:
    """The generator's lesions, collections and pictures, without drawing any."""
    pictures = []
    for number, (code, collection) in enumerate(drawn.plan(images, seed)):
        for view in range(drawn._views(seed, number)):
            name = f"{number}_{view}"
            pictures.append(Picture(name, f"L{number}", drawn.CLASSES.index(code), collection, Path(name)))
    return Folder(tuple(pictures), "drawn lesions")


@given(st.lists(st.sampled_from("ABCD"), min_size=2, max_size=7), st.floats(0.3, 0.7))
def test_the_expected_leak_is_the_mean_over_all_draws(lesions: list[str], share: float) -> None:
    held_out = round(len(lesions) * share)
    leaks = []
    for chosen in itertools.combinations(range(len(lesions)), held_out):
        rest = {lesion for position, lesion in enumerate(lesions) if position not in chosen}
        leaks.append(sum(lesions[position] in rest for position in chosen) / held_out)
    assert leakage.expected_by_picture(lesions, share) == pytest.approx(np.mean(leaks))


def test_a_draw_leaks_about_what_is_expected_and_lesions_of_one_picture_nothing() -> None:
    lesions = [picture.lesion for picture in drawn_folder(4000, 1).pictures]
    expected = leakage.expected_by_picture(lesions)
    assert 0.3 < expected < 0.5
    draws = [leakage.by_picture(lesions, seed) for seed in range(40)]
    assert np.mean(draws) == pytest.approx(expected, abs=0.01)
    alone = [str(number) for number in range(50)]
    assert leakage.by_picture(alone, 0) == leakage.expected_by_picture(alone) == 0
    with pytest.raises(ValueError, match="is none"):
        leakage.by_picture(["A", "B"], 0)


def test_by_lesion_nothing_of_the_same_pictures_leaks() -> None:
    folder = drawn_folder(4000, 1)
    halves = split.hold_out(folder.lesions(), 0)
    held_out = [picture.lesion for picture in folder.pictures if picture.lesion in halves.held_out]
    assert len(held_out) / len(folder.pictures) == pytest.approx(0.2, abs=0.02)
    assert sum(lesion in halves.training for lesion in held_out) == 0


@real
def test_of_ham10000_a_split_by_picture_gives_two_of_five_held_out_pictures_away() -> None:
    lesions = [picture.lesion for picture in dataset.read(HAM10000).pictures]
    assert leakage.expected_by_picture(lesions) == pytest.approx(0.3866, abs=0.0001)
    draws = [leakage.by_picture(lesions, seed) for seed in range(20)]
    assert np.mean(draws) == pytest.approx(0.3866, abs=0.01)


@pytest.mark.parametrize("division", federated_sites.SPLITS)
def test_no_lesion_of_the_drawn_hospitals_is_at_two_sites(division: str) -> None:
    folder = drawn_folder(2000, 0)
    sites = federated_sites.chosen(folder, division, 1)
    owners = Counter(
        lesion for site in sites for lesion in {picture.lesion for picture in (*site.training, *site.held_out)}
    )
    assert set(owners.values()) == {1}
    assert owners.keys() == folder.lesions().keys()


@real
def test_no_lesion_of_ham10000s_four_collections_is_at_two_sites() -> None:
    folder = dataset.read(HAM10000)
    spanning = {picture.lesion: set[str]() for picture in folder.pictures}
    for picture in folder.pictures:
        spanning[picture.lesion].add(str(picture.collection))
    sites = federated_sites.chosen(folder, "collections", 0)
    assert (len(sites), sum(len(names) > 1 for names in spanning.values())) == (4, 9)
    assert sum(len({p.lesion for p in (*site.training, *site.held_out)}) for site in sites) == len(spanning)


def test_a_lesion_at_two_sites_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if collections were taken by picture."""
    folder = drawn_folder(400, 0)
    stray = next(each for each in folder.pictures if each.image.endswith("_1") and each.collection != "drawn_west")
    moved = tuple(replace(each, collection="drawn_west") if each is stray else each for each in folder.pictures)
    monkeypatch.setattr(
        dataset,
        "_lesions_of",
        lambda folder, choice, _seed: {p.lesion for p in folder.pictures if p.collection == choice.name},
    )
    with pytest.raises(DatasetError, match="1 lesions are at two sites"):
        federated_sites.chosen(Folder(moved, "drawn lesions"), "collections", 0)
