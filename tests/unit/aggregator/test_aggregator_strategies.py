"""Strategies over files: streamed as in memory, to the bit; strategies of other packages; what a hospital is given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from concilia_aggregator import exact, measuring, strategies, windows
from concilia_aggregator.facts import FAR, RoundFacts
from concilia_aggregator.folding import AVERAGED, Recipe, fold, remember
from concilia_aggregator.strategies import Blockwise, Noised, Setting, Stateful, StrategyUnknown, Weighing, registry
from concilia_aggregator.strategies.fedopt import FedAvgM, Optimised
from concilia_aggregator.strategies.geometry import Geometry, gram_of
from concilia_aggregator.windows import Input
from concilia_kit import gaussians, tensorfile
from concilia_kit.sealing import Keyring, StoreKey
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.metadata import state_name
from concilia_kit.wire.strategy import Mixing, Strategy, StrategyName
from concilia_kit.wire.training import Architecture, LocalTraining, Personal
from pydantic import ValidationError

from .conftest import METRICS

SHAPES = {"a.weight": (70, 130), "a.bias": (70,), "b": (1,), "c.weight": (5000,), "n": ()}
COUNT = 9

Arrays = dict[str, npt.NDArray[Any]]


def model(seed: int, spread: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    made: Arrays = {name: (spread * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}
    return {**made, "n": np.array(seed, np.int64)}


BASE = model(0)
UPDATES = [{name: BASE[name] + change for name, change in model(10 + at, 0.1).items()} for at in range(COUNT)]
UPDATES[3] = {name: (-30 * value).astype(value.dtype) for name, value in UPDATES[3].items()}
SAMPLES = [10 * (at + 1) for at in range(COUNT)]
FACTS = RoundFacts(
    learning_rate=0.1,
    hospitals=12,
    reach=tuple(0.1 * (at + 1) for at in range(COUNT)),
    first_loss=tuple(1.0 + at / 10 for at in range(COUNT)),
    root=1,
    class_counts=tuple((3 * at, 7, COUNT - at) for at in range(COUNT)),
)
NOISE = bytes(range(32))
SPECS = [
    *(
        Strategy(name=name)
        for name in StrategyName
        if name not in {StrategyName.FLTRUST, StrategyName.FEDBUFF, StrategyName.DP_FEDAVG}
    ),
    Strategy(name=StrategyName.DP_FEDAVG, radius=3.0, noise=0.5),
    Strategy(name=StrategyName.FLTRUST, root="0x" + "11" * 20),
    *(
        Strategy(name=name, mixing=mixing, hostile=0.3)
        for mixing in Mixing
        for name in (StrategyName.MEDIAN, StrategyName.TRIMMED_MEAN, StrategyName.BULYAN, StrategyName.GEOMETRIC_MEDIAN)
    ),
]


def put(folder: Path, name: str, arrays: Arrays, keys: Keyring | None = None) -> TensorFile:
    path = folder / name
    tensorfile.write(path, arrays, keys=keys or Keyring())
    return TensorFile.open(path, keys or Keyring())


def recipe(spec: Strategy, number: int = 2) -> Recipe:
    has_none = isinstance(strategies.make(spec), Blockwise | Noised)
    return Recipe(Architecture.RESNET18, number, spec, facts=None if has_none else FACTS)


def in_memory(spec: Strategy, state: Arrays | None) -> tuple[Arrays, Arrays]:
    """The model and what is remembered, from whole tensors."""
    made = strategies.make(spec, FACTS.setting(2))
    if isinstance(made, Blockwise):
        return {name: made.fold([each[name].ravel() for each in UPDATES], SAMPLES) for name in SHAPES}, {}
    floating = sorted(name for name in SHAPES if name != "n")

    def gram() -> Any:
        total = np.zeros((COUNT, COUNT))
        for name in floating:
            start = BASE[name].astype(np.float64).ravel()
            rows = np.stack([each[name].astype(np.float64).ravel() - start for each in UPDATES])
            for at in range(0, rows.shape[1], 4096):
                total += gram_of(rows[:, at : at + 4096])
        return total

    geometry = Geometry(FACTS.facts(SAMPLES), gram, FACTS.root)
    if isinstance(made, Weighing):
        folding = made.prepare(geometry)
        return {name: folding.fold([each[name].ravel() for each in UPDATES], BASE[name].ravel()) for name in SHAPES}, {}
    if isinstance(made, Noised):
        noising, at, found = made.noised(geometry), 0, {"n": BASE["n"].ravel()}
        for name in floating:
            start = BASE[name].ravel()
            numbers = gaussians.keyed(NOISE, at, start.size)
            found[name] = noising.fold([each[name].ravel() for each in UPDATES], start, numbers)
            at += start.size
        return found, {}
    stepping, found, kept = made.remember(geometry, 2), {}, {}
    for name in SHAPES:
        names = [state_name(what, name) for what in made.state] if name != "n" else []
        before = [np.zeros(BASE[name].size, np.float32) if state is None else state[each].ravel() for each in names]
        found[name], after = stepping.step([each[name].ravel() for each in UPDATES], BASE[name].ravel(), before)
        kept.update(dict(zip(names, after, strict=True)))
    return found, kept


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.name}+{spec.mixing}")
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_streamed_is_as_in_memory_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: Strategy, sealed: bool
) -> None:
    keys = Keyring(StoreKey.new() if sealed else None)
    base = put(tmp_path, "base", BASE, keys)
    files = [put(tmp_path, str(at), each, keys) for at, each in enumerate(UPDATES)]
    made, before = recipe(spec), None
    if isinstance(strategies.make(spec), Stateful):
        rng = np.random.default_rng(5)
        names = strategies.make(spec).state  # type: ignore[union-attr]
        state: Arrays = {
            state_name(what, name): rng.uniform(0, 1, shape).astype(np.float32)
            for name, shape in SHAPES.items()
            for what in names
            if name != "n"
        }
        before = put(tmp_path, "before", state, keys)
        expected, kept = in_memory(spec, state)
    else:
        expected, kept = in_memory(spec, None)
    digests = set()
    for threads, room in ((1, 16 << 20), (3, 1 << 17), (2, 1)):
        monkeypatch.setattr(windows, "MAPPED", room)
        monkeypatch.setattr(windows, "DECODED", room)
        monkeypatch.setattr(windows, "_LEAST_OF_GROUP", 1024)
        monkeypatch.setattr(windows, "_LEAST", 1024)
        how: dict[str, Any] = {"before": before, "noise": NOISE, "threads": threads, "keys": keys}
        digests.add(fold(files, SAMPLES, made, tmp_path / "folded", base, **how))
        if kept:
            digest = remember(files, SAMPLES, made, tmp_path / "kept", base, before, threads=threads, keys=keys)
            digests.add("kept " + digest)
    assert len(digests) == (2 if kept else 1)
    found = TensorFile.open(tmp_path / "folded", keys)
    for name, values in expected.items():
        assert found.tensor(name).ravel().tobytes() == values.tobytes(), name
    if kept:
        remembered = TensorFile.open(tmp_path / "kept", keys)
        assert set(remembered) == set(kept)
        for name, values in kept.items():
            assert remembered.tensor(name).ravel().tobytes() == values.tobytes(), name


SERVER = ("fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold")


@pytest.mark.parametrize("name", SERVER)
def test_statistics_are_averaged_whatever_a_server_steps_by(tmp_path: Path, name: str) -> None:
    """Round after round of the same change takes momentum below zero; what was measured stays what was measured. Models
    from before are made again as they were."""
    measured = {"z.running_mean": (40,), "z.running_var": (40,)}
    rng = np.random.default_rng(1)
    base = {**BASE, **{each: rng.uniform(0.5, 1, shape).astype(np.float32) for each, shape in measured.items()}}
    updates = [
        {**each, **{one: base[one] * np.float32(0.1 * (1 + at)) for one in measured}} for at, each in enumerate(UPDATES)
    ]
    files = [put(tmp_path, str(at), each) for at, each in enumerate(updates)]
    start = put(tmp_path, "base", base)
    old = recipe(Strategy(name=name, server_rate=3.0 if name == "fedavgm" else None))
    recipes = {"old": old, "new": replace(old, arithmetic=AVERAGED)}
    means = {one: exact.weighted_mean([each[one] for each in updates], SAMPLES) for one in measured}
    before: dict[str, TensorFile | None] = {"old": None, "new": None}
    for number in (1, 2):
        folded: dict[str, TensorFile] = {}
        for which, how in recipes.items():
            model, state = (tmp_path / f"{what}-{which}-{number}" for what in ("model", "state"))
            fold(files, SAMPLES, how, model, start, before=before[which])
            remember(files, SAMPLES, how, state, start, before[which])
            folded[which], before[which] = TensorFile.open(model), TensorFile.open(state)
        for one in SHAPES:
            assert folded["new"].tensor(one).tobytes() == folded["old"].tensor(one).tobytes()
        for one, mean in means.items():
            assert folded["new"].tensor(one).tobytes() == mean.tobytes()
            kept = before["new"]
            assert kept is not None
            assert not any(np.array(kept.tensor(each)).any() for each in kept if each.endswith(one))
    if name == "fedavgm":
        assert folded["old"].tensor("z.running_var").min() < 0
    assert [Recipe.of(folded[which]).arithmetic for which in recipes] == [old.arithmetic, AVERAGED]


def test_the_gram_matrix_is_that_of_exact_arithmetic(tmp_path: Path) -> None:
    base = put(tmp_path, "base", BASE)
    files = [put(tmp_path, str(at), each) for at, each in enumerate(UPDATES)]
    inputs = [Input.open(each, base) for each in files]
    found = measuring.gram(inputs, Input.open(base, base), base.header.tensors)
    rows = np.stack(
        [
            np.concatenate([(each[name].astype(np.longdouble) - BASE[name]).ravel() for name in SHAPES if name != "n"])
            for each in UPDATES
        ]
    )
    true = rows @ rows.T
    scale = np.sqrt(np.outer(np.diagonal(true), np.diagonal(true)))
    assert (np.abs(found - true) / scale).max() < 1e-11


@pytest.mark.parametrize("name", [StrategyName.KRUM, StrategyName.FEDADAM])
def test_without_its_base_it_is_said(tmp_path: Path, name: StrategyName) -> None:
    files = [put(tmp_path, str(at), each) for at, each in enumerate(UPDATES[:3])]
    with pytest.raises(ValueError, match="goes by what updates change of their base"):
        fold(files, SAMPLES[:3], recipe(Strategy(name=name)), tmp_path / "folded")


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    base = put(tmp_path, "base", BASE)
    files = [put(tmp_path, str(at), each) for at, each in enumerate(UPDATES)]
    state = put(tmp_path, "state", {state_name("m", "a.bias"): np.zeros(3, np.float32)})
    with pytest.raises(tensorfile.MalformedFile, match="does not fit the model"):
        fold(files, SAMPLES, recipe(Strategy(name=StrategyName.FEDADAM)), tmp_path / "f", base, before=state)


def test_what_another_strategy_remembered_does_not_count(tmp_path: Path) -> None:
    """A job may begin with another one's model, which names what that one's strategy remembers."""

    def begun_with(strategy: Strategy | None) -> TensorFile:
        made = {} if strategy is None else replace(recipe(strategy), state="5" * 64).metadata()
        tensorfile.write(tmp_path / "begun", BASE, made)
        return TensorFile.open(tmp_path / "begun")

    adam = Strategy(name=StrategyName.FEDADAM, server_rate=0.1)
    quicker = Strategy(name=StrategyName.FEDADAM, server_rate=0.2)
    assert recipe(quicker).state_before(begun_with(adam)) == "5" * 64
    for other, base in (
        (Strategy(name=StrategyName.SCAFFOLD), adam),
        (Strategy(), adam),
        (Strategy(name=StrategyName.KRUM), adam),
        (adam, None),
    ):
        assert recipe(other).state_before(begun_with(base)) is None


class _Odd:
    """Remembers its own name's length under names whose order is another with what separates them from a tensor's."""

    state = ("c", "c-x", "b")

    def step(self, delta: Any, state: Sequence[Any]) -> tuple[Any, list[Any]]:
        return delta, [np.full(delta.shape, len(what), float) for what in self.state]


def test_what_is_remembered_lies_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "made", lambda _: Optimised(_Odd()))
    base = put(tmp_path, "base", BASE)
    files = [put(tmp_path, str(at), each) for at, each in enumerate(UPDATES)]
    remember(files, SAMPLES, recipe(Strategy(name=StrategyName.FEDADAM)), tmp_path / "kept", base)
    found = TensorFile.open(tmp_path / "kept")
    for name in found:
        assert (found.tensor(name) == len(name.partition(":")[0])).all(), name


# ------------------------------------------------------------------------------------------------------------ the facts


def test_facts_are_bounded_by_the_others() -> None:
    told = [METRICS.model_copy(update={"reach": reach}) for reach in (1.0, 1.0, 1e9, 1e-9)] + [None]
    facts = RoundFacts.of(told, list("abcde"), LocalTraining(), 2, "c")
    assert facts.reach == (1.0, 1.0, FAR, 1 / FAR, 1.0)
    assert (facts.root, facts.hospitals) == (2, 5)
    assert RoundFacts.of([None], ["a"], LocalTraining(), 1, "b").reach == (1.0,)
    assert RoundFacts.of([None], ["a"], LocalTraining(), 1, "b").root is None
    with pytest.raises(ValueError, match="other updates"):
        facts.facts([1, 2])
    assert RoundFacts.model_validate_json(facts.text()) == facts


# --------------------------------------------------------------------------------------------------------- the registry


def mine(parameters: Mapping[str, float]) -> Optimised:
    return Optimised(FedAvgM(parameters["rate"], 0.5))


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package's entry points."""
    module = __name__
    found = EntryPoints(
        EntryPoint(name, f"{module}:{attribute}", registry.GROUP)
        for name, attribute in (
            ("acme.mine", "mine"),
            ("acme.none", "SHAPES"),
            ("acme.two", "mine"),
            ("acme.two", "mine"),
        )
    )

    def entry_points(**wanted: str) -> EntryPoints:
        return found.select(**wanted)

    monkeypatch.setattr(registry, "entry_points", entry_points)


@pytest.mark.usefixtures("others")
def test_another_package_brings_a_strategy(tmp_path: Path) -> None:
    spec = Strategy(name="acme.mine", parameters={"rate": 1.0})
    assert strategies.installed() == ["acme.mine", "acme.none", "acme.two"]
    assert isinstance(strategies.make(spec), Stateful)
    base = put(tmp_path, "base", BASE)
    files = [put(tmp_path, str(at), each) for at, each in enumerate(UPDATES)]
    fold(files, SAMPLES, recipe(spec), tmp_path / "folded", base)
    again = Recipe.of(TensorFile.open(tmp_path / "folded"))
    assert again.strategy == spec
    assert again.facts == FACTS


def test_the_worked_example_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "strategies.md").read_text()
    (code,) = re.findall(r"```python\n# acme_strategies.py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "acme_strategies.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    name, where = re.findall(r'^"(acme\.\w+)" = "([\w:]+)"$', page, re.MULTILINE)[0]
    found = EntryPoints([EntryPoint(name, where, registry.GROUP)])
    monkeypatch.setattr(registry, "entry_points", lambda **wanted: found.select(**wanted))
    base = put(tmp_path, "base", BASE)
    files = [put(tmp_path, str(at), each) for at, each in enumerate(UPDATES)]
    spec = Strategy(name=name, parameters={"share": 0.5})
    fold(files, SAMPLES, recipe(spec), tmp_path / "folded", base)
    found_model = TensorFile.open(tmp_path / "folded")
    lengths = [
        sum(float(np.sum((each[name].astype(float) - BASE[name]) ** 2)) for name in SHAPES if name != "n")
        for each in UPDATES
    ]
    nearest = UPDATES[lengths.index(min(lengths))]
    np.testing.assert_allclose(found_model.tensor("c.weight"), (nearest["c.weight"] + BASE["c.weight"]) / 2, atol=1e-6)


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (Strategy(name="acme.absent"), "0 packages here bring"),
        (Strategy(name="acme.two"), "2 packages here bring"),
        (Strategy(name="acme.mine"), "does not take these parameters"),
        (Strategy(name="acme.none"), "does not take these parameters"),
    ],
)
def test_a_strategy_that_is_not_to_be_had_is_told(spec: Strategy, why: str) -> None:
    with pytest.raises(StrategyUnknown, match=why):
        strategies.make(spec)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "acme"},
        {"name": "Acme.mine"},
        {"name": "krum", "parameters": {"a": 1}},
        {"name": "fltrust"},
        {"name": "dp_fedavg"},
        {"name": "dp_fedavg", "radius": 1},
        {"name": "dp_fedavg", "noise": 1},
        {"name": "dp_fedavg", "radius": 1e7, "noise": 1},
        {"name": "dp_fedavg", "radius": 1e-7, "noise": 1},
        {"name": "dp_fedavg", "radius": 1, "noise": 0.001},
        {"name": "dp_fedavg", "radius": 1, "noise": 1, "delta": 0.5},
        {"name": "dp_fedavg", "radius": 1, "noise": 1, "mixing": "bucketing"},
        {"name": "norm_clipping", "radius": 1, "noise": 1},
        {"name": "fedavg", "delta": 1e-5},
        {"name": "fedavg", "mixing": "bucketing"},
        {"name": "krum", "hostile": 0.5},
        {"name": "acme.mine", "parameters": {"a": "1"}},
        {"name": "acme.mine", "parameters": {"a b": 1}},
        {"name": "acme.mine", "parameters": {f"a{at}": 1 for at in range(33)}},
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Strategy.model_validate(spec)


def test_hospitals_are_given_what_the_strategy_needs() -> None:
    def local(name: StrategyName, **more: Any) -> LocalTraining:
        return strategies.make(Strategy(name=name, **more), Setting(LocalTraining())).local(LocalTraining())

    assert local(StrategyName.SCAFFOLD).control
    assert local(StrategyName.FEDBN).personal is Personal.NORMALISATION
    assert local(StrategyName.FEDREP).personal is Personal.HEAD
    assert local(StrategyName.QFEDAVG).first_loss
    assert local(StrategyName.CLASS_BALANCED).class_counts
    assert local(StrategyName.FEDPROX, proximal_mu=0.5).proximal_mu == 0.5
    assert local(StrategyName.KRUM) == LocalTraining()
    assert local(StrategyName.DP_FEDAVG, radius=1, noise=1) == LocalTraining()


def test_old_jobs_are_written_as_they_were() -> None:
    """Their ids and their models' bytes hang on it."""
    assert Strategy().model_dump(mode="json") == {"name": "fedavg", "proximal_mu": 0.01, "trim": None}
    assert not {"control", "personal", "first_loss", "class_counts"} & set(LocalTraining().model_dump(mode="json"))
    assert not {"reach", "first_loss", "class_counts"} & set(METRICS.model_dump(mode="json"))
    assert set(recipe(Strategy()).metadata()) == {
        f"concilia.{word}" for word in ("architecture", "arithmetic", "round", "strategy")
    }


def names(of: Sequence[Strategy]) -> set[str]:
    return {str(each.name) for each in of}


def test_every_strategy_is_tried_above() -> None:
    assert names(SPECS) == {str(name) for name in StrategyName} - {"fedbuff"}  # which has tests of its own
