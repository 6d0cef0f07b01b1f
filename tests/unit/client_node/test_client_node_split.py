"""Sites and held-out lesions: every lesion on exactly one side of every line, whatever the folder looks like."""

from __future__ import annotations

from collections import Counter

import pytest
from concilia_client_node import split
from concilia_client_node.split import SiteChoice
from concilia_kit.lesions import CLASSES
from hypothesis import given
from hypothesis import strategies as st

lesions = st.text(alphabet="HAM_0123456789é", min_size=1, max_size=12)
labels = st.dictionaries(lesions, st.integers(0, len(CLASSES) - 1), min_size=1, max_size=80)
seeds = st.integers(0, 2**32 - 1)


@given(labels, seeds)
def test_hold_out_divides_every_lesion_once(found: dict[str, int], seed: int) -> None:
    halves = split.hold_out(found, seed)
    assert not halves.training & halves.held_out
    assert halves.training | halves.held_out == found.keys()
    for label, count in Counter(found.values()).items():
        held_out = sum(found[lesion] == label for lesion in halves.held_out)
        assert held_out == 0 if count == 1 else 1 <= held_out < count
        assert abs(held_out - split.HELD_OUT_SHARE * count) <= 1


@given(labels, seeds, st.randoms())
def test_hold_out_does_not_depend_on_the_order_of_rows(found: dict[str, int], seed: int, random: object) -> None:
    items = list(found.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert split.hold_out(dict(items), seed) == split.hold_out(found, seed)


def test_hold_out_depends_on_the_seed() -> None:
    found = {f"L{index}": 5 for index in range(100)}
    assert split.hold_out(found, 0) != split.hold_out(found, 1)
    assert len(split.hold_out(found, 0).held_out) == 20


def test_hold_out_is_the_same_for_ever() -> None:
    found = {f"L{index}": 0 for index in range(10)}
    assert split.hold_out(found, 7).held_out == {"L1", "L2"}


@given(labels, st.integers(1, 9), seeds)
def test_iid_sites_take_every_lesion_in_equal_parts(found: dict[str, int], sites: int, seed: int) -> None:
    assigned = split.assign_iid(found, sites, seed)
    assert assigned.keys() == found.keys()
    assert assigned == split.assign_iid(dict(reversed(found.items())), sites, seed)
    sizes = Counter(assigned.values())
    assert max(sizes.values()) - min(sizes[site] for site in range(sites)) <= 1


@given(labels, st.integers(1, 9), st.floats(0.05, 100), seeds)
def test_dirichlet_sites_take_every_lesion(found: dict[str, int], sites: int, alpha: float, seed: int) -> None:
    assigned = split.assign_dirichlet(found, sites, alpha, seed)
    assert assigned.keys() == found.keys()
    assert set(assigned.values()) <= set(range(sites))
    assert assigned == split.assign_dirichlet(dict(reversed(found.items())), sites, alpha, seed)


def test_small_alpha_makes_sites_unlike_each_other() -> None:
    found = {f"L{index}": index % 7 for index in range(1400)}

    def spread(alpha: float) -> float:
        counts = Counter((found[lesion], site) for lesion, site in split.assign_dirichlet(found, 4, alpha, 0).items())
        return sum(abs(counts[label, site] - 50) for label in range(7) for site in range(4)) / 28

    assert spread(0.1) > 2 * spread(100) > 0


@given(st.lists(st.tuples(lesions, st.sampled_from("abcd")), min_size=1, max_size=60))
def test_a_lesion_goes_wholly_to_the_collection_with_most_of_it(images: list[tuple[str, str]]) -> None:
    chosen = split.collection_of_lesions(images)
    assert chosen.keys() == {lesion for lesion, _ in images}
    for lesion, collection in chosen.items():
        counts = Counter(name for other, name in images if other == lesion)
        assert counts[collection] == max(counts.values())
        assert all(counts[name] < counts[collection] for name in counts if name < collection)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.integers(1, 220), st.integers(0, 2**63 - 1))
def test_the_cap_keeps_the_classes_proportions(found: list[int], limit: int, seed: int) -> None:
    chosen = split.stratified_cap(found, limit, seed)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(limit, len(found))
    assert chosen == split.stratified_cap(found, limit, seed)
    before, after = Counter(found), Counter(found[position] for position in chosen)
    if limit >= len(before):
        for label, count in before.items():
            assert 1 <= after[label] <= count
            assert abs(after[label] - len(chosen) * count / len(found)) <= len(CLASSES)


@pytest.mark.parametrize("text", ["all", "collection:vidir_modern", "iid:0/4", "iid:3/4", "dirichlet:0.3:0/4"])
def test_choices_are_read_and_written_alike(text: str) -> None:
    assert str(SiteChoice.parse(text)) == text


@pytest.mark.parametrize("text", ["", "ALL", "collection:", "iid:4/4", "iid:0/0", "iid:-1/4", "dirichlet:0:0/4", "x"])
def test_other_words_name_no_site(text: str) -> None:
    with pytest.raises(ValueError, match=r"write 'all'"):
        SiteChoice.parse(text)
