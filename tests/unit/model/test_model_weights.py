"""Fitting offered tensors to an architecture; torchvision's ImageNet release behind a server that may lie."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from concilia_kit.wire.training import Architecture
from concilia_model import architectures, pretrained, releases, weights
from concilia_model.errors import WeightsDoNotFit, WeightsUnavailable

NET = Architecture.RESNET18
HEAD = architectures.HEADS[NET]
EXPECTED = architectures.expected(NET)
FRESH = architectures.fresh(NET, 0)
TRAINED = architectures.fresh(NET, 1)


@pytest.fixture
def trained() -> dict[str, Any]:
    return dict(TRAINED)


def fit(offered: dict[str, Any]) -> weights.Fitted:
    return weights.fit(offered, EXPECTED, FRESH, HEAD)


@pytest.mark.parametrize("architecture", list(Architecture))
def test_expectations_are_those_of_a_real_model(architecture: Architecture) -> None:
    fresh = architectures.fresh(architecture, 3)
    assert {name: (array.dtype, array.shape) for name, array in fresh.items()} == {
        name: (spec.dtype, spec.shape) for name, spec in architectures.expected(architecture).items()
    }
    head = architectures.HEADS[architecture]
    assert EXPECTED[f"{HEAD}.weight"].shape[0] == 7
    assert fresh[f"{head}.bias"].shape == (7,)
    weights.check(fresh, architectures.expected(architecture))


def test_a_seed_decides_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = architectures.fresh(NET, 0)
    assert all(np.array_equal(again[name], FRESH[name]) for name in FRESH)
    assert not np.array_equal(TRAINED["conv1.weight"], FRESH["conv1.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_complete_file(trained: dict[str, Any]) -> None:
    fitted = fit(trained)
    assert (fitted.loaded, fitted.fresh, fitted.replaced_head) == (122, 0, None)
    assert all(np.array_equal(fitted.tensors[name], trained[name]) for name in EXPECTED)


def test_a_trunk_alone_gets_a_fresh_head(trained: dict[str, Any]) -> None:
    del trained["fc.weight"], trained["fc.bias"]
    fitted = fit(trained)
    assert (fitted.loaded, fitted.fresh, fitted.replaced_head) == (120, 2, None)
    assert np.array_equal(fitted.tensors["fc.weight"], FRESH["fc.weight"])
    assert np.array_equal(fitted.tensors["conv1.weight"], trained["conv1.weight"])


def test_a_head_for_other_classes_is_replaced(trained: dict[str, Any]) -> None:
    trained["fc.weight"], trained["fc.bias"] = np.ones((1000, 512), np.float32), np.ones(1000, np.float32)
    fitted = fit(trained)
    assert (fitted.loaded, fitted.fresh, fitted.replaced_head) == (120, 2, 1000)
    assert np.array_equal(fitted.tensors["fc.weight"], FRESH["fc.weight"])


def test_counters_of_old_files_may_be_missing(trained: dict[str, Any]) -> None:
    old = {name: array for name, array in trained.items() if not name.endswith("num_batches_tracked")}
    assert fit(old).fresh == 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("conv1.weight"), "conv1.weight is missing"),
        (lambda t: t.pop("fc.bias"), "fc.bias is missing"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), "extra is unexpected"),
        (lambda t: t.update({"bn1.bias": np.zeros(65, np.float32)}), "bn1.bias has shape [65], not [64]"),
        (lambda t: t.update({"bn1.bias": np.zeros(64, np.float64)}), "bn1.bias has dtype float64, not float32"),
        (lambda t: t.update({"bn1.bias": np.full(64, np.nan, np.float32)}), "bn1.bias has values that are not finite"),
        (lambda t: t.update({"fc.weight": np.ones((1000, 511), np.float32)}), "fc.weight has shape [1000, 511]"),
        (lambda t: t.update({"fc.bias": np.ones(9, np.float32)}), "fc.bias has shape [9], not [7]"),
        (lambda t: t.clear(), "conv1.weight is missing"),
    ],
)
def test_what_does_not_fit_is_named(trained: dict[str, Any], change: Callable[[Any], Any], said: str) -> None:
    change(trained)
    with pytest.raises(WeightsDoNotFit) as caught:
        fit(trained)
    assert said in caught.value.detail
    assert said.split(" ")[0] in caught.value.extra["tensors"]


def test_five_tensors_are_named_at_most(trained: dict[str, Any]) -> None:
    with pytest.raises(WeightsDoNotFit) as caught:
        fit({f"foreign.{n}": np.zeros(1, np.float32) for n in range(50)} | trained)
    assert len(caught.value.extra["tensors"]) == 5
    assert caught.value.detail.endswith("and 45 more")


def test_a_complete_model_has_every_tensor(trained: dict[str, Any]) -> None:
    del trained["bn1.num_batches_tracked"]
    with pytest.raises(WeightsDoNotFit, match=r"bn1\.num_batches_tracked is missing"):
        weights.check(trained, EXPECTED)


class _Server:
    """Publishes one file under a name with its hash, as torchvision does."""

    def __init__(self, content: bytes, *, named: bytes | None = None, status: int = 200) -> None:
        name = hashlib.sha256(named or content).hexdigest()[:8]
        self.url = f"https://releases.invalid/models/resnet18-{name}.pth"
        self._answer = httpx.Response(status, content=content)

    def tensors(self) -> dict[str, Any]:
        """Its weights as the service reads them: fetched here, read where torch is."""
        with httpx.Client(transport=httpx.MockTransport(lambda _request: self._answer)) as client:
            source = releases.Releases(client, lambda _architecture: self.url)
            with source.downloaded(NET) as (url, folder):
                return pretrained.read(url, folder)


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class _Rude:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle ran code",)


def test_published_weights_are_read_by_name(trained: dict[str, Any]) -> None:
    content = _saved({name: torch.from_numpy(array) for name, array in trained.items()})
    read = _Server(content).tensors()
    assert read.keys() == trained.keys()
    assert all(np.array_equal(read[name], trained[name]) for name in trained)


@pytest.mark.parametrize(
    ("server", "status"),
    [
        (_Server(b"", status=404), 503),
        (_Server(b"other bytes", named=b"these bytes"), 502),
        (_Server(b"no torch file"), 502),
        (_Server(_saved({"conv1.weight": _Rude()})), 502),
        (_Server(_saved(["no", "tensors"])), 502),
        (_Server(_saved({"conv1.weight": "no tensor"})), 502),
    ],
)
def test_anything_else_is_unavailable(server: _Server, status: int) -> None:
    with pytest.raises(WeightsUnavailable, match="upload a safetensors file") as caught:
        server.tensors()
    assert caught.value.problem_status == status


def test_addresses_are_torchvisions_and_name_their_hash() -> None:
    for architecture in (each for each in Architecture if not each.grouped):
        url = pretrained.torchvision_url(architecture)
        assert url.startswith("https://download.pytorch.org/models/")
        assert releases.HASH_IN_NAME.search(url)
